"""Greedy decoding of many captions together: always the most likely next word.

On the CPU captions that have ended leave the batch, eight at a time, and each word is projected
once, however often it is said. On a GPU that would need the words on the host, so there all
captions go on to the end, and whether any still does is asked every few steps only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy

from xpcap.backend import Array, is_host, namespace
from xpcap.kernels import fastest
from xpcap.kernels.graphs import Repeated
from xpcap.kernels.products import product
from xpcap.kernels.scatter import take_rows
from xpcap.layers._sequence import Packing
from xpcap.workspace import Workspace

if TYPE_CHECKING:
    from xpcap.models.captioner import CaptioningRNN

_ASK_EVERY = 4  # steps between two questions whether all captions have ended
_TILE = 8  # rows that a product on a CPU takes together: 41 of them need as long as 48, or longer


def greedy(model: CaptioningRNN, features: Array, max_length: int) -> Array:
    """Caption images, as `CaptioningRNN.sample` says.

    Parameters
    ----------
    model
        With a `<START>` in its vocabulary.
    features
        `(N, D)` floating.
    max_length
        How many words at most.
    """
    xp = namespace(features, *model.params.values())
    run = _with_those_that_go_on if is_host(xp) else _all_together
    return run(model, features, max_length)


def _all_together(model: CaptioningRNN, features: Array, max_length: int) -> Array:
    """Decode to the end of the last caption; a step is one CUDA graph on a GPU."""
    params, cell, N = model.params, model.cell, features.shape[0]
    xp = fastest(namespace(features))
    state = model.start(features)
    space = Workspace(xp, state[0].dtype)
    recurrent = [params[name] for name in (cell.weights[1], *cell.weights[3:])]
    captions = xp.full((max_length, N), model.null, dtype=numpy.int32)
    words = xp.full(N, model.start_word, dtype=numpy.int32)
    going_on = xp.ones(N, dtype=bool)
    times, now = xp.arange(max_length)[:, None], xp.zeros(1, dtype=numpy.int64)

    def step() -> None:
        vectors = space.empty("vectors", N, params["W_embed"].shape[1])
        take_rows(xp, params["W_embed"], words, vectors)
        gates = space.empty("gates", N, params["Wx"].shape[1])
        product(xp, vectors, params["Wx"], gates)
        gates[...] += params["b"]
        run = cell.unroll(gates, state[0], *recurrent, Packing(N, [N]), space, *state[1:])
        for old, new in zip(state, (run.h, run.c) if cell.states == 2 else (run.h,), strict=True):
            old[...] = new
        scores = space.empty("scores", N, len(params["b_vocab"]))
        product(xp, run.h, params["W_vocab"], scores)
        scores[...] += params["b_vocab"]
        words[...] = scores.argmax(axis=1)
        captions[...] = xp.where((times == now) & going_on, words, captions)
        if model.end is not None:
            going_on[...] &= words != model.end
        now[...] += 1

    repeated = Repeated(xp, step, space.dtype)
    for t in range(max_length):
        repeated()
        if model.end is not None and t % _ASK_EVERY == _ASK_EVERY - 1 and not going_on.any():
            break
    return xp.ascontiguousarray(captions.T)


def _with_those_that_go_on(
    model: CaptioningRNN, features: numpy.ndarray, max_length: int
) -> numpy.ndarray:
    params, cell, N = model.params, model.cell, len(features)
    captions = numpy.full((N + 1, max_length), model.null, numpy.int32)
    caption_of = numpy.arange(N)  # of each row of the state; N, which nobody reads: it has ended
    words = numpy.full(N, model.start_word)
    state = model.start(features)
    xp, dtype = fastest(numpy), state[0].dtype
    Wh, *biases = (params[name] for name in (cell.weights[1], *cell.weights[3:]))
    ah = numpy.empty((N, Wh.shape[1]), dtype)
    scores = numpy.empty((N, len(params["b_vocab"])), dtype)
    projected = numpy.empty((len(params["W_embed"]), params["Wx"].shape[1]), dtype)
    known = numpy.zeros(len(projected), bool)
    for t in range(max_length):
        n = len(words)
        new = words[~known[words]]
        if len(new):
            new = numpy.unique(new)
            projected[new] = params["W_embed"][new] @ params["Wx"] + params["b"]
            known[new] = True
        product(xp, state[0], Wh, ah[:n])
        after = tuple(numpy.empty_like(part) for part in state)
        cell.advance(xp, projected, ah[:n], state[-1], *biases, words, numpy.arange(n), *after)
        state = after
        product(xp, state[0], params["W_vocab"], scores[:n])
        scores[:n] += params["b_vocab"]
        words = scores[:n].argmax(axis=1)
        captions[caption_of, t] = words
        caption_of[words == model.end] = N
        going_on = numpy.count_nonzero(caption_of < N)
        if not going_on:
            break
        rows = -(-going_on // _TILE) * _TILE
        if rows < n:
            kept = caption_of.argsort(kind="stable")[:rows]
            words, caption_of = words[kept], caption_of[kept]
            state = tuple(part[kept] for part in state)
    return captions[:N]
