"""Greedy decoding of many captions together: always the most likely next word.

On the CPU captions that have ended leave the batch, eight at a time, and each word is projected
once, however often it is said. On a GPU that would need the words on the host, so there all
captions go on to the end, and whether any still does is asked every few steps only. A model's
decoders are kept, so that later batches of the same size replay the graph of the first.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy

from xpcap import threads
from xpcap.backend import Array, is_host, namespace
from xpcap.kernels import fastest
from xpcap.kernels.graphs import Repeated
from xpcap.kernels.products import current_precision, product
from xpcap.kernels.scatter import take_rows
from xpcap.layers._sequence import Packing
from xpcap.workspace import Workspace

if TYPE_CHECKING:
    from xpcap.models.captioner import CaptioningRNN

_ASK_EVERY = 4  # steps between two questions whether all captions have ended
_KEPT = 4  # decoders of a model, each for another N or length: full batches, the last one, ...
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
    if is_host(xp):
        parts = [features[part] for part in threads.spans(len(features))]
        tasks = [partial(_with_those_that_go_on, model, part, max_length) for part in parts]
        return numpy.concatenate(threads.run(tasks))
    with _lock:
        return _decoder(model, features, max_length)(model, features)


class _Decoder:
    """Decodes N captions to the end of the last one, in static memory, so that a graph can do it.

    Parameters
    ----------
    model
        Its parameters are kept and read at each call; the model itself is not referenced.
    features
        `(N, D)`: for the sizes and dtypes of the memory.
    max_length
        How many words at most.
    """

    def __init__(self, model: CaptioningRNN, features: Array, max_length: int) -> None:
        self._params, self._cell, self._end = dict(model.params), model.cell, model.end
        self._xp = xp = fastest(namespace(features))
        self._state = model.start(features)
        N, dtype = len(features), self._state[0].dtype
        self._space = Workspace(xp, dtype)
        self._captions = xp.empty((max_length, N), dtype=numpy.int32)
        self._words = xp.empty(N, dtype=numpy.int32)
        self._active = xp.empty(N, dtype=bool)
        self._times = xp.arange(max_length)[:, None]
        self._now = xp.empty(1, dtype=numpy.int64)
        self._repeated = Repeated(xp, dtype)

    def __call__(self, model: CaptioningRNN, features: Array) -> Array:
        """Caption images; features `(N, D)` give words `(N, max_length)`."""
        for part, first in zip(self._state, model.start(features), strict=True):
            part[...] = first
        self._captions[...] = model.null
        self._words[...] = model.start_word
        self._active[...] = True
        self._now[...] = 0
        for t in range(len(self._captions)):
            self._repeated(self._step)
            ask = self._end is not None and t % _ASK_EVERY == _ASK_EVERY - 1
            if ask and not self._active.any():
                break
        return self._captions.T.copy()

    def _step(self) -> None:
        params, xp, space, state = self._params, self._xp, self._space, self._state
        words, active, N = self._words, self._active, len(self._words)
        vectors = space.empty("vectors", N, params["W_embed"].shape[1])
        take_rows(xp, params["W_embed"], words, vectors)
        gates = space.empty("gates", N, params["Wx"].shape[1])
        product(xp, vectors, params["Wx"], gates)
        weights = self._cell.weights
        recurrent = [params[name] for name in (weights[1], *weights[3:])]
        packing = Packing(N, [N])
        run = self._cell.unroll(
            gates, params["b"], state[0], *recurrent, packing, space, *state[1:]
        )
        for old, new in zip(state, (run.h, run.c) if len(state) == 2 else (run.h,), strict=True):
            old[...] = new
        scores = space.empty("scores", N, len(params["b_vocab"]))
        product(xp, run.h, params["W_vocab"], scores)
        scores[...] += params["b_vocab"]
        words[...] = scores.argmax(axis=1)
        now = (self._times == self._now) & active
        self._captions[...] = xp.where(now, words, self._captions)
        if self._end is not None:
            active[...] &= words != self._end
        self._now[...] += 1


class _Decoders(NamedTuple):
    """The decoders of one model, last used last, and the parameters that they read."""

    params: dict[str, Array]
    by_key: dict[Hashable, _Decoder]


_decoders: weakref.WeakKeyDictionary[CaptioningRNN, _Decoders] = weakref.WeakKeyDictionary()
_lock = threading.Lock()  # a decoder's memory holds one batch at a time


def _decoder(model: CaptioningRNN, features: Array, max_length: int) -> _Decoder:
    """Return a model's decoder for as many captions as there are features, perhaps a new one.

    Parameters that were changed in place are seen, as a graph reads them from where they are; where
    a parameter is another array now, all of the model's decoders are made anew.
    """
    known = _decoders.get(model)
    if known is None or not _same_arrays(known.params, model.params):
        known = _decoders[model] = _Decoders(dict(model.params), {})
    key = len(features), max_length, model.end, current_precision()
    decoder = known.by_key.pop(key, None) or _Decoder(model, features, max_length)
    known.by_key[key] = decoder
    if len(known.by_key) > _KEPT:
        del known.by_key[next(iter(known.by_key))]
    return decoder


def _same_arrays(some: Mapping[str, Array], others: Mapping[str, Array]) -> bool:
    return some.keys() == others.keys() and all(some[name] is others[name] for name in some)


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
