"""Gradients through time and through layers, gates, attention, and the gradient of each word.

The forward pass is the model's. For gradients through time the cell's gradient is taken step by
step, so that the gradient of every state is at hand; that of a word with respect to the features is
the model's backward pass from this word alone. That is slower than `CaptionModel.loss`, and
computes the same.

R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural networks"
(ICML 2013), look at gradients through time; A. Karpathy, J. Johnson and L. Fei-Fei, "Visualizing
and understanding recurrent networks" (ICLR workshop 2016), at saturated gates.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy

from xpcap.backend import Array, Namespace, namespace, to_host
from xpcap.data.vocabulary import START
from xpcap.errors import ConfigurationError, ShapeError
from xpcap.layers.recurrence import Cell, split_gates
from xpcap.models.model import CaptionModel
from xpcap.models.objective import Objective

_LOW, _LOW_TANH, _HIGH = 0.1, -0.9, 0.9  # beyond which a unit is saturated


class Inspectable(CaptionModel):
    """A model that runs a recurrent cell over packed captions, whose states can be looked at.

    The cache of its `forward` has `run`, an `Unrolled`, `batch`, and the `more_input` of `unroll`.
    """

    @property
    @abc.abstractmethod
    def cell(self) -> Cell:
        """The cell that is run."""

    @abc.abstractmethod
    def recurrent_weights(self) -> dict[str, Array]:
        """Return `Wh` and the further biases of the cell."""


class GradientFlow(NamedTuple):
    """How long the gradient of a caption's loss is at each state, on average over captions.

    A caption's loss is the cross entropy of its words in nats, added up. Norms are Euclidean, in
    float64, so that those that vanish do not become zero. At step t, `hidden` is dL/dh of the
    hidden state h after it, all of it: from the word predicted there and from all later ones.
    `cell` is dL/dc of an LSTM's cell state c, through the next one and through h = o tanh(c):
    `dnext_c + dnext_h o (1 - tanh(c)^2)` of `lstm_step_backward`.
    """

    captions: Array  # (T,): how many have a word to predict at a step; averages are over these
    hidden: Array  # (T,)
    cell: Array | None  # (T,); None for other cells than the LSTM
    first: Array  # dL/dh of the first hidden state, a 0-d array, over captions with any word


class GateSaturation(NamedTuple):
    """Where the G gates of a cell are at each step, on average over units and captions.

    Of captions with a word to predict there, `low` and `high` are the shares of units below 0.1 and
    above 0.9; for what is a tanh, below -0.9 and above 0.9. `mean` is the mean activation.
    """

    names: tuple[str, ...]  # what the gates compute, of `Cell.gates`
    low: Array  # (G, T), as the others
    high: Array
    mean: Array


def gradient_flow(model: Inspectable, features: Array, captions: Array) -> GradientFlow:
    """Follow the gradient of captions' losses back through time, without dropout.

    Features and captions are as for `CaptionModel.loss`, an image a caption, where the model is; T
    is that of the longest caption. Raises `ShapeError` if the captions are not a row an image, or a
    word is not in the vocabulary (seen on the CPU only).
    """
    with model.backend.activate():
        namespace(features, captions)
        batch, _, dh, cache = Objective(model).words(features, to_host(captions))
        packing, run, cell = batch.packing, cache.run, model.cell
        xp, T, (N, H) = namespace(dh), len(packing.rows), (packing.captions, dh.shape[1])
        hidden, of_cell = (xp.zeros(T, dtype=xp.float64) for _ in range(2))
        back, further = _zeros(cell, xp, N, H, dh.dtype)
        if cache.more_input is not None:
            cache.more_input.from_above(dh)
        for t, rows in reversed(list(enumerate(packing.rows))):
            n = rows.stop - rows.start
            counted = batch.counted()[rows]
            whole = dh[rows] + back[:n]
            hidden[t] = _mean(_norms(whole), counted)
            if "dc" in further:  # through h = o tanh(c), and through the next cell state
                _, _, o, _ = split_gates(run.gates[rows], 4)
                tanh_c = run.more["tanh_c"][rows]
                dc = further["dc"][:n] + whole * o * (1 - tanh_c**2)
                of_cell[t] = _mean(_norms(dc), counted)
            _step_back(model, cache, t, dh[rows], back[:n], further)
        counts = xp.zeros(T, dtype=int)
        spoken = xp.zeros(N, dtype=bool)
        for t, rows in enumerate(packing.rows):
            counted = batch.counted()[rows]
            counts[t] = counted.sum()
            spoken[: len(counted)] |= counted
        first = _mean(_norms(back), spoken)
        return GradientFlow(counts, hidden, of_cell if "dc" in further else None, first)


def gate_saturation(model: Inspectable, features: Array, captions: Array) -> GateSaturation:
    """Measure the gates, without dropout; arguments and errors are those of `gradient_flow`."""
    with model.backend.activate():
        namespace(features, captions)
        batch, _, cache = Objective(model).read(features, to_host(captions))
        run, names, rows = cache.run, model.cell.gates, batch.packing.rows
        xp, (G, T) = namespace(run.h), (len(names), len(batch.packing.rows))
        lowest = xp.asarray([_LOW] * (G - 1) + [_LOW_TANH], dtype=xp.float64)[:, None]
        low, high, mean = (xp.empty((G, T), dtype=xp.float64) for _ in range(3))
        activated = run.h if G == 1 else run.gates  # of the vanilla cell, h is its only gate
        for t, part in enumerate(rows):
            units = activated[part].reshape(part.stop - part.start, G, -1).astype(xp.float64)
            counted = batch.counted()[part]
            for out, of_units in ((low, units < lowest), (high, units > _HIGH), (mean, units)):
                out[:, t] = _mean(of_units.mean(axis=2), counted)
        return GateSaturation(names, low, high, mean)


def word_gradients(model: CaptionModel, features: Array, words: Array) -> tuple[Array, Array]:
    """Differentiate the log-probability of each word of captions with respect to the features.

    Times the features, less those of a reference image if there is one, a gradient says how much
    each of them speaks for the word, to first order (M. Ancona and others, "Towards better
    understanding of gradient-based attribution methods for deep neural networks", ICLR 2018).

    `words (N, T)` are as decoding returns them: without `<START>`, `<NULL>` after `<END>`. Errors
    are those of `gradient_flow`, and `ConfigurationError` if the vocabulary has no `<START>`.

    Returns
    -------
    log_probs, gradients
        `(N, T)` in nats, of each word given the image and the words before it; and its gradients,
        `(N, T, ...)` for features `(N, ...)`. Both of the parameters' dtype, and 0 where the word
        is `<NULL>`.
    """
    with model.backend.activate():
        objective, captions = Objective(model), _with_start(model, words)
        xp, (N, T) = namespace(features, words), words.shape
        batch, losses, dh, _ = objective.words(features, captions)
        unused = {name: xp.zeros_like(value) for name, value in model.params.items()}
        log_probs = xp.zeros((N, T), dtype=dh.dtype)
        gradients = xp.zeros((N, T, *features.shape[1:]), dtype=dh.dtype)
        of_images = xp.empty(features.shape, dtype=dh.dtype)
        for t, rows in enumerate(batch.packing.rows):
            _, _, cache = objective.read(features, captions)
            images, above = batch.images[: rows.stop - rows.start], xp.zeros_like(dh)
            above[rows] = -dh[rows]
            model.backward(above, cache, unused, of_images)
            log_probs[images, t] = -losses[rows]
            gradients[images, t] = of_images[: len(images)]
        return log_probs, gradients


@runtime_checkable
class Attends(Protocol):
    """The ability of a model that looks at regions of the image, a different mean for each word."""

    def attention(self, cache: Any) -> Array:
        """Return the weight of each region for each word read, after `forward`.

        They are `(K, A, M, L)`, of K layers with A heads.
        """


class Layered(CaptionModel):
    """A model with a residual stream x of words, which attend to each other."""

    @abc.abstractmethod
    def backward(
        self,
        dhidden: Array,
        cache: Any,
        gradients: Mapping[str, Array],
        dfeatures: Array | None = None,
        look: Callable[[str, Array], None] | None = None,
    ) -> None:
        """Backpropagate; `look` is called with each layer's name and dL/dx `(M, H)` after it."""

    @abc.abstractmethod
    def self_attention(self, cache: Any) -> Array:
        """Return the weight of each word read for each word read, after `forward`.

        They are `(K, A, N, T, T)`, of K layers with A heads, N captions in the batch's order.
        """


class LayerGradients(NamedTuple):
    """How long gradients are in each of S layers, from the first to the last.

    `words` are norms of dL/dx, x being the residual stream after the layer, at each word read:
    averages over captions, where L is a caption's loss, as in `GradientFlow`. `parameters` are
    norms of the gradient of the layer's parameters, where L is the mean of the captions' losses.
    """

    names: tuple[str, ...]  # with which the names of the layers' parameters begin
    words: Array  # (S, T)
    parameters: Array  # (S,)


def layer_gradients(model: Layered, features: Array, captions: Array) -> LayerGradients:
    """Follow the gradient of captions' losses back through the layers, without dropout.

    Arguments and errors are those of `gradient_flow`.
    """
    with model.backend.activate():
        namespace(features, captions)
        batch, _, dhidden, cache = Objective(model).words(features, to_host(captions))
        xp, counted, steps = namespace(dhidden), batch.counted(), batch.packing.rows
        gradients = {name: xp.zeros_like(value) for name, value in model.params.items()}
        found = dict[str, Array]()

        def look(name: str, dx: Array) -> None:
            norms = _norms(dx)
            found[name] = xp.zeros(len(steps), dtype=xp.float64)
            for t, rows in enumerate(steps):
                found[name][t] = _mean(norms[rows], counted[rows])

        model.backward(dhidden, cache, gradients, look=look)
        names = tuple(found)[::-1]
        own = [
            [value.reshape(-1) for key, value in gradients.items() if key.startswith(f"{name}.")]
            for name in names
        ]
        parameters = xp.concatenate([_norms(xp.concatenate(values)[None]) for values in own])
        parameters /= max(batch.packing.captions, 1)
        return LayerGradients(names, xp.stack([found[name] for name in names]), parameters)


def attends(model: CaptionModel, shape: Sequence[int]) -> bool:
    """Return whether a model looks at regions in features of a shape, `(L, D)` or `(D,)`."""
    return isinstance(model, Attends) and len(shape) > 1


def attention_maps(model: CaptionModel, features: Array, words: Array) -> Array:
    """Return the weight of each region for each word of captions `(N, T, L)`.

    Word t was predicted after looking at the image with these weights, which add up to 1, or are 0
    where the word is `<NULL>` or there is no region; of several heads, they are the mean of those
    of the last layer. `words (N, T)` and errors are as for `word_gradients`; `ConfigurationError`
    too if the model does not look at regions.
    """
    return attention_heads(model, features, words)[:, -1].mean(axis=1)


def attention_heads(model: CaptionModel, features: Array, words: Array) -> Array:
    """Return `attention_maps` of each of K layers and of its A heads, `(N, K, A, T, L)`.

    A recurrent model with attention has one of each.
    """
    if not attends(model, features.shape[1:]):
        raise without_attention(model)
    assert isinstance(model, Attends)
    with model.backend.activate():
        namespace(features, words)
        batch, _, cache = Objective(model).read(features, _with_start(model, words))
        weights = model.attention(cache)
        xp, (N, T), (K, A, _, L) = namespace(weights), words.shape, weights.shape
        found = xp.zeros((N, K, A, T, L), dtype=weights.dtype)
        for t, rows in enumerate(batch.packing.rows):
            counted = batch.counted()[rows, None]
            of_step = (weights[:, :, rows] * counted).transpose(2, 0, 1, 3)
            found[batch.images[: len(counted)], :, :, t] = of_step
        return found


def without_attention(model: CaptionModel) -> ConfigurationError:
    """Return the error of a model without attention to regions."""
    return ConfigurationError(
        f"a model of the family '{model.family}' has no attention to regions of these features;"
        " expected a run of xpcap train --model attention, or transformer, on features of regions"
    )


def self_attention(model: Layered, features: Array, words: Array) -> Array:
    """Return the weight of each word read for each word of captions, `(N, K, A, T, T)`.

    Word t of `words (N, T)` was predicted after looking, in K layers with A heads, at the words up
    to the one before it: `<START>`, at place 0, and words 0 to t - 1, at places 1 to t. Weights add
    up to 1, or are 0 where the word is `<NULL>`. Errors are as for `word_gradients`.
    """
    with model.backend.activate():
        namespace(features, words)
        batch, _, cache = Objective(model).read(features, _with_start(model, words))
        weights = model.self_attention(cache)
        xp, (N, T), (K, A, count, length, _) = namespace(weights), words.shape, weights.shape
        found = xp.zeros((N, K, A, T, T), dtype=weights.dtype)
        own = weights.transpose(2, 0, 1, 3, 4)
        found[batch.images[:count], :, :, :length, :length] = own
        return found * (words != model.null)[:, None, None, :, None]


def _with_start(model: CaptionModel, words: Array) -> numpy.ndarray:
    """Return captions `(N, T+1)` on the host, from what decoding returns."""
    if model.start_word is None:
        raise ConfigurationError(f"the vocabulary lacks {START}, with which captions begin")
    if words.ndim != 2:
        raise ShapeError(f"expected words (N, T), got {words.shape}")
    start = numpy.full((len(words), 1), model.start_word)
    return numpy.concatenate([start, to_host(words)], axis=1)


def _zeros(cell: Cell, xp: Namespace, n: int, H: int, dtype: Any) -> tuple[Array, dict[str, Array]]:
    """Return zero gradients `(n, H)` of the hidden state and of further states."""
    further = {f"d{name}": xp.zeros((n, H), dtype=dtype) for name in cell.states[1:]}
    return xp.zeros((n, H), dtype=dtype), further


def _step_back(
    model: Inspectable, cache: Any, t: int, above: Array, back: Array, further: dict[str, Array]
) -> None:
    """Take gradients of the first n captions' states after step t back to those before it."""
    xp, cell, run, n = namespace(above), model.cell, cache.run, len(above)
    Wh = model.recurrent_weights()["Wh"]
    dah = xp.empty((n, Wh.shape[1]), dtype=above.dtype)
    dax = xp.empty_like(dah) if cell.separate else dah
    arrays = {name: array[:n] for name, array in run.at(cell, cache.batch.packing, t).items()}
    gradients = {name: gradient[:n] for name, gradient in further.items()}
    gradients |= {"above": above, "back": back, "da": dah, "dah": dah, "dax": dax}
    cell.step_backward(xp, {**model.recurrent_weights(), **arrays, **gradients})
    through = dah @ Wh.T
    back[...] = back + through if cell.direct else through
    if cache.more_input is not None:
        rows = cache.batch.packing.rows[t]
        cache.more_input.backward(slice(rows.start, rows.start + n), dax, back)


def _norms(gradients: Array) -> Array:
    """Return the Euclidean norm of each row."""
    xp = namespace(gradients)
    return xp.sqrt((gradients.astype(xp.float64) ** 2).sum(axis=1))


def _mean(values: Array, counted: Array) -> Array:
    """Average values `(N, ...)` over the captions that are counted; 0 if there are none."""
    xp = namespace(values)
    return counted.astype(xp.float64) @ values / xp.maximum(counted.sum(), 1)
