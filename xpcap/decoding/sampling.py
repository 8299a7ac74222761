"""Sampling: captions drawn word by word from the model's distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy

from xpcap.backend import Array, Namespace, namespace
from xpcap.decoding.captioner import Captioner, Decoded, start_and_end
from xpcap.decoding.constraints import EXTREME, LARGEST, Constraints
from xpcap.layers.loss import log_softmax, softmax
from xpcap.options import check_counts, check_number


@dataclass(frozen=True)
class Sampling:
    """Options of sampling `count` captions per image.

    The temperature divides scores: lower is more conservative. Words are drawn from the `top_k`
    most probable ones, 0 takes all, and of these from the smallest set with the total probability
    `top_p` (Holtzman et al., "The curious case of neural text degeneration", 2020).
    """

    count: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    constraints: Constraints = field(default_factory=Constraints)

    def __post_init__(self) -> None:
        check_counts(1, LARGEST, **{"the number of captions": self.count})
        check_counts(0, math.inf, top_k=self.top_k, seed=self.seed)
        check_number("temperature", self.temperature, "(0, inf)")
        check_number("top_p", self.top_p, "(0, 1]")


def sample(model: Captioner, features: Array, sampling: Sampling, first: int = 0) -> Decoded:
    """Sample `sampling.count` captions per image, most probable first; T is their limit + 1.

    The model is any captioner with `<START>` and `<END>`; `features (N, D)` are where it is.
    Log-probabilities are those of the model, without temperature and truncation. The captions of an
    image depend on its index among all images, not on the other images; `first` is the index of the
    first one, if they are captioned in parts.
    """
    start, end = start_and_end(model, sampling.constraints.limit)
    context, state = model.start(features)
    xp, dtype = namespace(*state), state[0].dtype
    N, B, T = len(features), sampling.count, sampling.constraints.limit + 1
    generator = numpy.random.PCG64(sampling.seed).advance(first * B * T)  # one step per draw
    uniform = xp.asarray(numpy.random.Generator(generator).random((N * B, T)))
    tokens = xp.full((N * B, T), model.null, dtype=numpy.int32)
    token_log_probs = xp.zeros((N * B, T), dtype=dtype)
    rows = xp.arange(N * B)  # active captions
    parents = xp.repeat(xp.arange(N), B)  # their rows in the state
    words = xp.full(N * B, start, dtype=numpy.int32)
    for t in range(T):
        scores, state = model.step(words, parents, state, context)
        log_probs = log_softmax(xp, scores)
        allowed = log_probs.copy()
        sampling.constraints.apply(xp, allowed, tokens[rows, :t], end)
        words = _draw(xp, allowed, uniform[rows, t], sampling).astype(numpy.int32)
        tokens[rows, t] = words
        token_log_probs[rows, t] = log_probs[xp.arange(len(rows)), words]
        active = xp.nonzero(words != end)[0]
        if not len(active):
            break
        rows, words, parents = rows[active], words[active], active
    token_log_probs = token_log_probs.reshape(N, B, T)
    return Decoded(tokens.reshape(N, B, T), token_log_probs, token_log_probs.sum(axis=2)).best(B)


def _draw(xp: Namespace, log_probs: Array, uniform: Array, sampling: Sampling) -> Array:
    """Invert each row's cumulative distribution, most probable word first, at `uniform (R,)`."""
    order = xp.argsort(-log_probs, axis=1, kind="stable")
    ordered = xp.take_along_axis(log_probs, order, axis=1)
    ordered = (ordered - ordered[:, :1]) / min(max(sampling.temperature, 1 / EXTREME), EXTREME)
    if sampling.top_k:
        ordered[:, sampling.top_k :] = -xp.inf
    probs = softmax(xp, ordered)
    before = xp.cumsum(probs, axis=1) - probs
    kept = before < sampling.top_p
    kept[:, 0] = True  # also where float32 rounds top_p to 0
    probs = xp.where(kept, probs, 0)
    sums = xp.cumsum(probs, axis=1)
    ranks = (sums <= uniform[:, None] * sums[:, -1:]).sum(axis=1)
    # rounding may lead past the last word with a probability
    ranks = xp.minimum(ranks, (probs > 0).sum(axis=1) - 1)
    return order[xp.arange(len(order)), ranks]
