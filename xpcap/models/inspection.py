"""What only a backward pass shows: gradients on their way back, and what speaks for a word.

Here a captioner runs step by step, through the public `*_step_forward` and `*_step_backward` of its
cell, so that every gate, every state and every gradient of a state is at hand. That is slower than
`CaptioningRNN.loss`, and computes the same.

R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural networks"
(ICML 2013), look at gradients through time; A. Karpathy, J. Johnson and L. Fei-Fei, "Visualizing
and understanding recurrent networks" (ICLR workshop 2016), at saturated gates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy

from xpcap.backend import Array, namespace, to_host
from xpcap.data.vocabulary import START
from xpcap.errors import ConfigurationError, ShapeError
from xpcap.kernels.pointwise import split_gates
from xpcap.kernels.softmax import softmax_cross_entropy
from xpcap.layers import word_embedding_forward
from xpcap.layers.lstm import LSTMStepCache
from xpcap.models.captioner import CaptioningRNN

GATES = {
    "rnn": ("hidden state",),
    "lstm": ("input", "forget", "output", "candidate"),
    "gru": ("reset", "update", "candidate"),
}
"""For each cell what it computes with, in the order of its weights; the last is a tanh."""

_LOW, _LOW_TANH, _HIGH = 0.1, -0.9, 0.9  # beyond which a unit is saturated


class GradientFlow(NamedTuple):
    """How long the gradient of a caption's loss is at each state, on average over captions.

    A caption's loss is the cross entropy of its words in nats, added up. Norms are Euclidean, in
    float64, so that those that vanish do not become zero.

    Attributes
    ----------
    captions
        `(T,)`: how many captions have a word to predict at step t; the averages are over these.
    hidden
        `(T,)`: dL/dh of the hidden state h after step t, all of it: from the word predicted there
        and from all later ones.
    cell
        `(T,)`: dL/dc of an LSTM's cell state c after step t, through the next cell state and
        through h = o tanh(c): `dnext_c + dnext_h o (1 - tanh(c)^2)` of `lstm_step_backward`.
        None for other cells.
    first
        dL/dh of the hidden state that the image sets, of no axes, over captions with any word.
    """

    captions: Array
    hidden: Array
    cell: Array | None
    first: Array


class GateSaturation(NamedTuple):
    """Where the G gates of a cell are, on average over units and captions.

    Attributes
    ----------
    names
        What the gates are called, of `GATES`.
    low, high
        `(G, T)`: the share of units below 0.1 and above 0.9 at step t, over captions with a word to
        predict there; for what is a tanh, below -0.9 and above 0.9.
    mean
        `(G, T)`: the mean activation.
    """

    names: tuple[str, ...]
    low: Array
    high: Array
    mean: Array


def gradient_flow(model: CaptioningRNN, features: Array, captions: Array) -> GradientFlow:
    """Follow the gradient of captions' losses back through time, without dropout.

    Parameters
    ----------
    model
        The captioner.
    features
        `(N, D)` floating, an image a caption, where the model is.
    captions
        Word indices `(N, T+1)` as for `CaptioningRNN.loss`.

    Returns
    -------
    GradientFlow
        T here is that of the longest caption.

    Raises
    ------
    ShapeError
        If the captions are not a row an image, or a word is not in the vocabulary (seen on the CPU
        only).
    """
    with model.backend.activate():
        run = _unroll(model, features, captions)
        _, dh = _predict(model, run)
        xp, T = namespace(dh), len(dh)
        hidden = xp.empty(T, dtype=xp.float64)
        cell = xp.empty(T, dtype=xp.float64) if model.cell.states == 2 else None
        dstate = tuple(map(xp.zeros_like, run.start))
        for t in reversed(range(T)):
            dstate = (dstate[0] + dh[t], *dstate[1:])
            hidden[t] = _mean(_norms(dstate[0]), run.counted[t])
            if cell is not None:
                dcell = _cell_gradient(dstate[0], dstate[1], run.caches[t])
                cell[t] = _mean(_norms(dcell), run.counted[t])
            dstate = _step_back(model, dstate, run.caches[t])
        first = _mean(_norms(dstate[0]), run.counted.any(axis=0))
        return GradientFlow(run.counted.sum(axis=1), hidden, cell, first)


def gate_saturation(model: CaptioningRNN, features: Array, captions: Array) -> GateSaturation:
    """Find how many units of each gate are saturated while captions are read, without dropout.

    Parameters
    ----------
    model
        The captioner.
    features
        `(N, D)` floating, an image a caption, where the model is.
    captions
        Word indices `(N, T+1)` as for `CaptioningRNN.loss`.

    Returns
    -------
    GateSaturation
        T here is that of the longest caption.

    Raises
    ------
    ShapeError
        If the captions are not a row an image, or a word is not in the vocabulary (seen on the CPU
        only).
    """
    with model.backend.activate():
        run = _unroll(model, features, captions)
        xp, (T, N, H) = namespace(run.h), run.h.shape
        names = GATES[model.cell_type]
        G = len(names)
        lowest = xp.asarray([_LOW] * (G - 1) + [_LOW_TANH], dtype=xp.float64)[:, None]
        low, high, mean = (xp.empty((G, T), dtype=xp.float64) for _ in range(3))
        for t, cache in enumerate(run.caches):
            gates = cache.next_h if model.cell_type == "rnn" else cache.gates
            units = gates.reshape(N, G, H).astype(xp.float64)
            for out, of_units in ((low, units < lowest), (high, units > _HIGH), (mean, units)):
                out[:, t] = _mean(of_units.mean(axis=2), run.counted[t])
        return GateSaturation(names, low, high, mean)


def word_gradients(model: CaptioningRNN, features: Array, words: Array) -> tuple[Array, Array]:
    """Differentiate the log-probability of each word of captions with respect to the features.

    Times the features, less those of a reference image if there is one, a gradient says how much
    each of them speaks for the word, to first order (M. Ancona and others, "Towards better
    understanding of gradient-based attribution methods for deep neural networks", ICLR 2018).

    Parameters
    ----------
    model
        The captioner.
    features
        `(N, D)` floating, an image a caption, where the model is.
    words
        Indices `(N, T)` as decoding returns them: without `<START>`, `<NULL>` after `<END>`.

    Returns
    -------
    log_probs, gradients
        `(N, T)` in nats, of each word given the image and the words before it, and `(N, T, D)` its
        gradients; both of the parameters' dtype, and 0 where the word is `<NULL>`.

    Raises
    ------
    ConfigurationError
        If the vocabulary has no `<START>`.
    ShapeError
        If the captions are not a row an image, or a word is not in the vocabulary (seen on the CPU
        only).
    """
    if model.start_word is None:
        raise ConfigurationError(f"the vocabulary lacks {START}, with which captions begin")
    if words.ndim != 2:
        raise ShapeError(f"expected words (N, T), got {words.shape}")
    with model.backend.activate():
        xp, (N, T) = namespace(features, words), words.shape
        start = xp.full((N, 1), model.start_word, dtype=words.dtype)
        run = _unroll(model, features, xp.concatenate([start, words], axis=1))
        losses, dh = _predict(model, run)
        longest, _, H = dh.shape
        W_proj = model.params["W_proj"]
        log_probs = xp.zeros((N, T), dtype=dh.dtype)
        log_probs[:, :longest] -= losses.T
        dh0 = xp.zeros((N, T, H), dtype=dh.dtype)
        for t in range(longest):  # from each word all the way back to the image
            dstate = (-dh[t], *map(xp.zeros_like, run.start[1:]))
            for cache in reversed(run.caches[: t + 1]):
                dstate = _step_back(model, dstate, cache)
            dh0[:, t] = dstate[0]
        return log_probs, (dh0.reshape(N * T, H) @ W_proj.T).reshape(N, T, len(W_proj))


class _Run(NamedTuple):
    """Captions read step by step, as far as the longest one has words to predict, T steps.

    `start` is the state that the image sets, `caches` are those of the steps, `h (T, N, H)` the
    hidden states after them; `targets (T, N)` the words to predict, `counted` whether there is one.
    """

    start: tuple[Array, ...]
    caches: list[Any]
    h: Array
    targets: Array
    counted: Array


def _unroll(model: CaptioningRNN, features: Array, captions: Array) -> _Run:
    params, cell = model.params, model.cell
    xp = namespace(features, captions, *params.values())
    if captions.ndim != 2 or captions.shape[1] < 1 or len(captions) != len(features):
        raise ShapeError(
            f"expected captions (N, T+1) for features (N, D), got {captions.shape} and"
            f" {features.shape}"
        )
    places = numpy.nonzero(to_host(captions)[:, 1:] != model.null)[1]
    T = int(places.max(initial=-1)) + 1
    vectors, _ = word_embedding_forward(captions[:, : T + 1], params["W_embed"])
    targets = xp.ascontiguousarray(captions[:, 1 : T + 1].T)
    weights = [params[name] for name in cell.weights]
    start = model.start(features)
    state = list(start)
    h = xp.empty((T, *start[0].shape), dtype=start[0].dtype)
    caches = []
    for t in range(T):
        *state, cache = cell.step_forward(vectors[:, t], *state, *weights)
        h[t] = state[0]
        caches.append(cache)
    return _Run(start, caches, h, targets, targets != model.null)


def _predict(model: CaptioningRNN, run: _Run) -> tuple[Array, Array]:
    """Return the cross entropy of each word `(T, N)`, and its gradient at the state before it.

    The gradient `(T, N, H)` is that of the hidden state from which the word is predicted.
    """
    xp, (T, N, H) = namespace(run.h), run.h.shape
    W_vocab = model.params["W_vocab"]
    scores = run.h.reshape(T * N, H) @ W_vocab
    losses = xp.empty(T * N, dtype=scores.dtype)
    scale = run.counted.reshape(T * N).astype(scores.dtype)
    targets = run.targets.reshape(T * N)
    softmax_cross_entropy(xp, scores, model.params["b_vocab"], targets, scale, losses)
    dscores = scores  # in their place
    return losses.reshape(T, N), (dscores @ W_vocab.T).reshape(T, N, H)


def _step_back(model: CaptioningRNN, dstate: tuple[Array, ...], cache: Any) -> tuple[Array, ...]:
    """Return the gradient of the state before a step from that of the state after it."""
    _, *gradients = model.cell.step_backward(*dstate, cache)
    return tuple(gradients[: model.cell.states])


def _cell_gradient(dnext_h: Array, dnext_c: Array, cache: LSTMStepCache) -> Array:
    _, _, o, _ = split_gates(cache.gates, 4)
    return dnext_c + dnext_h * o * (1 - cache.tanh_c**2)


def _norms(gradients: Array) -> Array:
    """Return the Euclidean norm of each row."""
    xp = namespace(gradients)
    return xp.sqrt((gradients.astype(xp.float64) ** 2).sum(axis=1))


def _mean(values: Array, counted: Array) -> Array:
    """Average values `(N, ...)` over the captions that are counted; 0 if there are none."""
    xp = namespace(values)
    return counted.astype(xp.float64) @ values / xp.maximum(counted.sum(), 1)
