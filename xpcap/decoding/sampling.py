"""Captions drawn at random, word by word, from what the model believes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy

from xpcap.backend import Array, Namespace, namespace
from xpcap.decoding.captioner import Captioner, Decoded, check_words
from xpcap.decoding.constraints import Constraints
from xpcap.errors import ConfigurationError
from xpcap.layers.loss import log_softmax, softmax


@dataclass(frozen=True)
class Sampling:
    """How to draw.

    Parameters
    ----------
    count
        How many captions of each image.
    temperature
        Scores are divided by it: below 1 likely words become likelier, above 1 less so.
    top_k
        Draw among so many likeliest words only; 0 takes all.
    top_p
        Draw among the fewest likeliest words that have this probability together (Holtzman et
        al., "The curious case of neural text degeneration", 2020).
    seed
        Of the draws.
    constraints
        What no caption may be.

    Raises
    ------
    ConfigurationError
        If a value cannot be used.
    """

    count: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    constraints: Constraints = field(default_factory=Constraints)

    def __post_init__(self) -> None:
        if self.count < 1 or self.top_k < 0 or self.seed < 0:
            raise ConfigurationError(
                f"count {self.count}, top-k {self.top_k} and seed {self.seed} cannot be used;"
                " expected count >= 1, top-k >= 0 and seed >= 0"
            )
        if not 0 < self.temperature < float("inf"):
            raise ConfigurationError(f"temperature must be finite and > 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigurationError(f"top-p must be in (0, 1], got {self.top_p}")


def sample(model: Captioner, features: Array, sampling: Sampling, first: int = 0) -> Decoded:
    """Draw captions of images.

    An image's draws depend on its place among all images and on how it is drawn, on nothing else.

    Parameters
    ----------
    model
        What is asked for the likelihood of words.
    features
        `(N, D)` floating, where the model is.
    sampling
        How to draw.
    first
        The place of the first of these images among all, where they are captioned in parts.

    Returns
    -------
    Decoded
        `sampling.count` captions of each image, the likeliest first; T is `max_length + 1`.
        Log-probabilities are the model's own, whatever the temperature and the choice.

    Raises
    ------
    ConfigurationError
        If the vocabulary has no `<START>` or no `<END>`.
    """
    start, end = check_words(model)
    context, state = model.start(features)
    xp, dtype = namespace(*state), state[0].dtype
    N, B, T = len(features), sampling.count, sampling.constraints.max_length + 1
    generator = numpy.random.PCG64(sampling.seed).advance(first * B * T)  # a step a draw
    draws = xp.asarray(numpy.random.Generator(generator).random((N * B, T)))
    images = xp.repeat(xp.arange(N), B)
    said = xp.full((N * B, T), model.null, dtype=numpy.int32)
    spoken = xp.zeros((N * B, T), dtype=dtype)
    rows = xp.arange(N * B)  # of the captions that go on
    parents = images  # the rows of the state that they follow
    words = xp.full(N * B, start, dtype=numpy.int32)
    for t in range(T):
        scores, state = model.step(words, parents, state, context)
        log_probs = log_softmax(xp, scores)
        may = log_probs.copy()
        sampling.constraints.apply(xp, may, said[rows, :t], end)
        words = _draw(xp, may, draws[rows, t], sampling).astype(numpy.int32)
        said[rows, t] = words
        spoken[rows, t] = log_probs[xp.arange(len(rows)), words]
        goes_on = xp.nonzero(words != end)[0]
        if not len(goes_on):
            break
        rows, words, parents = rows[goes_on], words[goes_on], goes_on
    totals = spoken.sum(axis=1).reshape(N, B)
    order = xp.argsort(-totals, axis=1, kind="stable")
    image = xp.arange(N)[:, None]
    return Decoded(
        said.reshape(N, B, T)[image, order],
        spoken.reshape(N, B, T)[image, order],
        totals[image, order],
    )


def _draw(xp: Namespace, log_probs: Array, draws: Array, sampling: Sampling) -> Array:
    """Draw a word of each row: the first, likeliest words first, whose sum exceeds the draw."""
    order = xp.argsort(-log_probs, axis=1, kind="stable")
    ordered = xp.take_along_axis(log_probs, order, axis=1) / sampling.temperature
    if sampling.top_k:
        ordered[:, sampling.top_k :] = -xp.inf
    probs = softmax(xp, ordered)
    before = xp.cumsum(probs, axis=1) - probs
    probs = xp.where(before < sampling.top_p, probs, 0)
    sums = xp.cumsum(probs, axis=1)
    places = (sums <= draws[:, None] * sums[:, -1:]).sum(axis=1)
    # rounding may place a draw behind the last word that has any probability
    places = xp.minimum(places, (probs > 0).sum(axis=1) - 1)
    return order[xp.arange(len(order)), places]
