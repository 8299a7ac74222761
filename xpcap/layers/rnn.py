"""The vanilla recurrent layer (Elman 1990): h' = tanh(x Wx + h Wh + b)."""

from __future__ import annotations

from typing import NamedTuple

from xpcap.backend import Array, Namespace, namespace
from xpcap.layers._checks import check_shapes
from xpcap.layers.recurrence import (
    Cell,
    SequenceCache,
    sequence_backward,
    sequence_forward,
)
from xpcap.operations import operation
from xpcap.subnormals import flushed


@operation
def rnn_cell(xp: Namespace, gates: Array, ah: Array, h: Array) -> None:
    """Write h' = tanh(a), where a = x Wx + b + h Wh has come in two parts, `gates` and `ah`."""
    h[...] = xp.tanh(gates + ah)


@operation
def rnn_cell_gradient(xp: Namespace, above: Array, back: Array, h: Array, da: Array) -> None:
    """Write the gradient of a: tanh'(a) = 1 - tanh(a)^2, so da = dh' (1 - h'^2)."""
    with flushed(xp, da):
        da[...] = (above + back) * (1 - h * h)


RNN = Cell(rnn_cell, rnn_cell_gradient, gates=("hidden state",))


class RNNStepCache(NamedTuple):
    """What the backward pass of one step needs."""

    x: Array
    prev_h: Array
    Wx: Array
    Wh: Array
    next_h: Array


class RNNStepGradients(NamedTuple):
    """Gradients in the order of the forward arguments."""

    dx: Array
    dprev_h: Array
    dWx: Array
    dWh: Array
    db: Array


def rnn_step_forward(
    x: Array, prev_h: Array, Wx: Array, Wh: Array, b: Array
) -> tuple[Array, RNNStepCache]:
    """Take one step: `next_h = tanh(x Wx + prev_h Wh + b)`.

    Parameters
    ----------
    x
        Inputs `(N, D)`.
    prev_h
        Hidden state `(N, H)`.
    Wx, Wh, b
        Weights `(D, H)`, `(H, H)` and biases `(H,)`.

    Returns
    -------
    next_h, cache
        The new hidden state `(N, H)`; and what `rnn_step_backward` needs.

    Raises
    ------
    ShapeError
        If the shapes do not fit together.
    """
    xp = namespace(x, prev_h, Wx, Wh, b)
    check_shapes(
        "rnn_step_forward",
        x=(x, "N D"), prev_h=(prev_h, "N H"), Wx=(Wx, "D H"), Wh=(Wh, "H H"), b=(b, "H"),
    )  # fmt: skip
    next_h = x @ Wx + b
    rnn_cell(xp, next_h, prev_h @ Wh, next_h)
    return next_h, RNNStepCache(x, prev_h, Wx, Wh, next_h)


def rnn_step_backward(dnext_h: Array, cache: RNNStepCache) -> RNNStepGradients:
    """Gradients of `rnn_step_forward`, through da = dnext_h (1 - next_h^2).

    Parameters
    ----------
    dnext_h
        Gradient of the new hidden state, `(N, H)`.
    cache
        From the forward pass.

    Returns
    -------
    dx, dprev_h, dWx, dWh, db
        Of the shapes of the forward arguments.
    """
    x, prev_h, Wx, Wh, next_h = cache
    xp = namespace(dnext_h, next_h)
    da = xp.empty_like(next_h)
    rnn_cell_gradient(xp, dnext_h, xp.zeros_like(dnext_h), next_h, da)
    return RNNStepGradients(da @ Wx.T, da @ Wh.T, x.T @ da, prev_h.T @ da, da.sum(axis=0))


class RNNGradients(NamedTuple):
    """Gradients in the order of the forward arguments."""

    dx: Array
    dh0: Array
    dWx: Array
    dWh: Array
    db: Array


def rnn_forward(x: Array, h0: Array, Wx: Array, Wh: Array, b: Array) -> tuple[Array, SequenceCache]:
    """Run over a sequence.

    Parameters
    ----------
    x
        Inputs `(N, T, D)`.
    h0
        First hidden state `(N, H)`.
    Wx, Wh, b
        Weights `(D, H)`, `(H, H)` and biases `(H,)`.

    Returns
    -------
    h, cache
        The hidden state after each step, `(N, T, H)`; and what `rnn_backward` needs.

    Raises
    ------
    ShapeError
        If the shapes do not fit together.
    """
    namespace(x, h0, Wx, Wh, b)
    check_shapes(
        "rnn_forward",
        x=(x, "N T D"), h0=(h0, "N H"), Wx=(Wx, "D H"), Wh=(Wh, "H H"), b=(b, "H"),
    )  # fmt: skip
    return sequence_forward(RNN, x, h0, Wx, b, {"Wh": Wh})


def rnn_backward(dh: Array, cache: SequenceCache) -> RNNGradients:
    """Backpropagation through time of `rnn_forward`.

    Parameters
    ----------
    dh
        Gradient of every hidden state from the layer above, `(N, T, H)`; what comes back from
        the next step is added to it here.
    cache
        From the forward pass.

    Returns
    -------
    dx, dh0, dWx, dWh, db
        Of the shapes of the forward arguments.
    """
    found = sequence_backward(RNN, dh, cache)
    return RNNGradients(*(found[name[1:]] for name in RNNGradients._fields))
