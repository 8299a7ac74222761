"""Captions of many images together: greedily, or drawn from the model's distribution.

On the CPU captions that have ended leave the batch, once some have. On a GPU that would need the
words on the host, so there all captions continue to the end, and whether any is still active is
asked every few steps only. A model's decoders are kept, so that later batches of the same size
replay the graph of the first.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from xpcap import threads
from xpcap.backend import Array, is_host, namespace
from xpcap.kernels import fastest
from xpcap.kernels.graphs import Repeated
from xpcap.kernels.products import current_precision
from xpcap.layers.affine import product
from xpcap.layers.embedding import take_rows
from xpcap.layers.sampling import draw_words
from xpcap.workspace import Workspace, passing

if TYPE_CHECKING:
    from xpcap.models.model import CaptionModel

_WORK = 2**22  # rows times H^2 that are worth a thread: 105 images with 200 hidden units
_ASK_EVERY = 4  # steps between two questions whether all captions have ended
_KEPT = 4  # decoders of a model, each for another N or length: full batches, the last one, ...
_ENDED = 1 / 8  # of the captions for whose sake the others are copied
_TILE = 8  # rows that a product on a CPU takes together: 41 of them need as long as 48, or longer


def greedy(model: CaptionModel, features: Array, max_length: int) -> Array:
    """Caption images, as `CaptionModel.sample` says; the vocabulary has a `<START>`."""
    return _generate(model, features, max_length, None)[0]


def sampled(
    model: CaptionModel, features: Array, max_length: int, uniform: Array
) -> tuple[Array, Array]:
    """Draw captions of at most `max_length` words, the same number of each image.

    Parameters
    ----------
    features
        `(N, ...)` floating.
    uniform
        `(N K, max_length)` in [0, 1), of the parameters' dtype: the numbers that the captions of
        the first image are drawn with, one for each word, then those of the next.

    Returns
    -------
    captions, log_probs
        Word indices `(N K, max_length)` int32, `<NULL>` after `<END>`; and the log-probability
        `(N K,)` of each caption, `<END>` included.
    """
    with model.backend.activate():
        return _generate(model, features, max_length, uniform)


def _generate(
    model: CaptionModel, features: Array, max_length: int, uniform: Array | None
) -> tuple[Array, Array]:
    xp = namespace(features, *model.params.values())
    if not is_host(xp):
        with _lock:
            return _decoder(model, features, max_length, uniform)(model, features, uniform)
    copies = 1 if uniform is None else len(uniform) // len(features)
    tasks = [
        partial(
            _dropping_ended, model, features[part], max_length,
            None if uniform is None else uniform[part.start * copies : part.stop * copies],
        )
        for part in decoding_spans(model, len(features), copies)
    ]  # fmt: skip
    captions, log_probs = zip(*threads.run(tasks), strict=True)
    return numpy.concatenate(captions), numpy.concatenate(log_probs)


def decoding_spans(model: CaptionModel, count: int, copies: int = 1) -> list[slice]:
    """Return the spans of `count` images that threads decode, one if they are not on the host.

    Each has `copies` captions. Small products are not worth a thread: Python is called between
    them, by one thread at a time.
    """
    if not is_host(model.backend.xp):
        return [slice(0, count)]
    H = len(model.vocabulary_layer(model.params)[0])
    return threads.spans(count, -(-max(threads.LEAST, _WORK // H**2) // copies))


def _dropping_ended(
    model: CaptionModel,
    features: numpy.ndarray,
    max_length: int,
    uniform: numpy.ndarray | None = None,
) -> tuple[numpy.ndarray, numpy.ndarray]:
    images = numpy.arange(len(features))
    kept = None if uniform is None else numpy.repeat(images, len(uniform) // len(images))
    N = len(images) if kept is None else len(kept)
    captions = numpy.full((N + 1, max_length), model.null, numpy.int32)
    caption_of = numpy.arange(N)  # of each row of the state; N, which is not returned: it has ended
    words = numpy.full(N, model.start_word, numpy.int32)
    context, state = model.start(features)
    W, b = model.vocabulary_layer(model.params)
    memory, xp = passing(numpy, state[0].dtype), fastest(numpy)
    log_probs = numpy.zeros(N + 1, state[0].dtype)
    for t in range(max_length):
        hidden, state = model.advance(words, kept, state, context)
        scores = memory.empty("scores", len(words), len(b), most=N)
        product(xp, hidden, W, scores)
        scores += b
        if uniform is None:
            words = scores.argmax(axis=1)
        else:
            drawn = uniform[numpy.minimum(caption_of, N - 1), t]
            words, log_prob = numpy.empty(len(drawn), numpy.int32), numpy.empty_like(drawn)
            draw_words(xp, scores, drawn, words, log_prob)
            log_probs[caption_of] += log_prob
        captions[caption_of, t] = words
        caption_of[words == model.end] = N
        active = numpy.count_nonzero(caption_of < N)
        if not active:
            break
        rows, kept = -(-active // _TILE) * _TILE, None
        if rows <= len(words) * (1 - _ENDED):
            kept = caption_of.argsort(kind="stable")[:rows]
            words, caption_of = words[kept], caption_of[kept]
    return captions[:N], log_probs[:N]


class _Decoder:
    """Decodes N captions to the end of the last one, in static memory, so that a graph can do it.

    The model's parameters are kept and read at each call; the model itself is not referenced. From
    `features (N, ...)` and, if captions are drawn, the number of rows of `uniform` come the sizes
    and dtypes of the memory.
    """

    def __init__(
        self, model: CaptionModel, features: Array, max_length: int, uniform: Array | None
    ) -> None:
        self._model = weakref.proxy(model)
        self._end = model.end
        self._xp = xp = fastest(namespace(features))
        count = len(features) if uniform is None else len(uniform)
        self._parents = xp.repeat(xp.arange(len(features)), count // len(features))
        self._context, self._state = self._start(model, features)
        dtype = self._state[0].dtype
        self._space = Workspace(xp, dtype)
        self._captions = xp.empty((max_length, count), dtype=numpy.int32)
        self._words = xp.empty(count, dtype=numpy.int32)
        self._active = xp.empty(count, dtype=bool)
        self._log_probs = xp.zeros(count, dtype=dtype)
        self._uniform: Any = None
        if uniform is not None:
            self._uniform = xp.empty((max_length, count), dtype=dtype)
        self._times = xp.arange(max_length)[:, None]
        self._now = xp.empty(1, dtype=numpy.int64)
        self._repeated = Repeated(xp, dtype)

    def _start(self, model: CaptionModel, features: Array) -> tuple[Any, tuple[Array, ...]]:
        context, state = model.start(features)
        if len(self._parents) == len(features):
            return context, state
        return context, tuple(part[self._parents] for part in state)

    def __call__(
        self, model: CaptionModel, features: Array, uniform: Array | None
    ) -> tuple[Array, Array]:
        """Caption images; features `(N, ...)` give words `(N K, max_length)`, as `sampled` does."""
        context, state = self._start(model, features)
        ours = *_of_images(self._context), *self._state
        for part, first in zip(ours, (*_of_images(context), *state), strict=True):
            part[...] = first
        if uniform is not None:
            self._uniform[...] = uniform.T
            self._log_probs[...] = 0
        self._captions[...] = model.null
        self._words[...] = model.start_word
        self._active[...] = True
        self._now[...] = 0
        for t in range(len(self._captions)):
            self._repeated(self._step)
            ask = self._end is not None and t % _ASK_EVERY == _ASK_EVERY - 1
            if ask and not self._active.any():
                break
        log_probs = self._log_probs if uniform is None else self._log_probs.copy()
        return self._captions.T.copy(), log_probs

    def _step(self) -> None:
        xp, words, active, model = self._xp, self._words, self._active, self._model
        hidden, after = model.advance(words, None, self._state, self._context)
        for old, new in zip(self._state, after, strict=True):
            if new is not old:  # a state that `advance` has written into
                old[...] = new
        W, b = model.vocabulary_layer(model.params)
        scores = self._space.empty("scores", len(words), len(b))
        product(xp, hidden, W, scores)
        scores[...] += b
        if self._uniform is None:
            words[...] = scores.argmax(axis=1)
        else:
            drawn, log_probs = (self._space.empty(name, len(words)) for name in ("drawn", "log"))
            take_rows(xp, self._uniform, self._now, drawn[None])
            draw_words(xp, scores, drawn, words, log_probs)
            log_probs *= active
            self._log_probs[...] += log_probs
        now = (self._times == self._now) & active
        self._captions[...] = xp.where(now, words, self._captions)
        if self._end is not None:
            active[...] &= words != self._end
        self._now[...] += 1


def _of_images(context: Any) -> list[Array]:
    """Return what of a context belongs to the images; see `CaptionModel.start`."""
    parts = context if isinstance(context, tuple) else ()
    return [part for part in parts if hasattr(part, "shape")]


class _Decoders(NamedTuple):
    """The decoders of one model, last used last, and the parameters that they read."""

    params: dict[str, Array]
    by_key: dict[Hashable, _Decoder]


_decoders: weakref.WeakKeyDictionary[CaptionModel, _Decoders] = weakref.WeakKeyDictionary()
_lock = threading.Lock()  # a decoder's memory holds one batch at a time


def _decoder(
    model: CaptionModel, features: Array, max_length: int, uniform: Array | None
) -> _Decoder:
    """Return a model's decoder for arrays of these shapes, perhaps a new one.

    Parameters that were changed in place are seen, as a graph reads them from where they are; where
    a parameter is another array now, all of the model's decoders are made anew.
    """
    known = _decoders.get(model)
    if known is None or not _same_arrays(known.params, model.params):
        known = _decoders[model] = _Decoders(dict(model.params), {})
    drawn = 0 if uniform is None else len(uniform)
    key = *features.shape, max_length, drawn, model.end, current_precision()
    decoder = known.by_key.pop(key, None) or _Decoder(model, features, max_length, uniform)
    known.by_key[key] = decoder
    if len(known.by_key) > _KEPT:
        del known.by_key[next(iter(known.by_key))]
    return decoder


def _same_arrays(some: Mapping[str, Array], others: Mapping[str, Array]) -> bool:
    return some.keys() == others.keys() and all(some[name] is others[name] for name in some)
