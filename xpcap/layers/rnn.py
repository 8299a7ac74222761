"""The vanilla recurrent layer (Elman 1990): h' = tanh(x Wx + h Wh + b)."""

from __future__ import annotations

from typing import NamedTuple

from xpcap.backend import Array, Namespace, namespace
from xpcap.layers._checks import check_gradients
from xpcap.layers.recurrence import (
    Cell,
    SequenceCache,
    SequenceGradients,
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
    """Take one step: `next_h = tanh(x Wx + prev_h Wh + b)`, `(N, H)`.

    Inputs `x (N, D)`, state `prev_h (N, H)`, weights `Wx (D, H)` and `Wh (H, H)`, biases `b (H,)`.
    Raises `ShapeError` if the shapes do not fit together.
    """
    xp = RNN.check("rnn_step_forward", "N D", x=x, prev_h=prev_h, Wx=Wx, Wh=Wh, b=b)
    next_h = x @ Wx + b
    rnn_cell(xp, next_h, prev_h @ Wh, next_h)
    return next_h, RNNStepCache(x, prev_h, Wx, Wh, next_h)


def rnn_step_backward(dnext_h: Array, cache: RNNStepCache) -> RNNStepGradients:
    """Gradients of `rnn_step_forward`, through da = dnext_h (1 - next_h^2)."""
    x, prev_h, Wx, Wh, next_h = cache
    xp = namespace(dnext_h, next_h)
    check_gradients("rnn_step_backward", dnext_h=(dnext_h, next_h.shape))
    da = xp.empty_like(next_h)
    rnn_cell_gradient(xp, dnext_h, xp.zeros_like(dnext_h), next_h, da)
    return RNNStepGradients(da @ Wx.T, da @ Wh.T, x.T @ da, prev_h.T @ da, da.sum(axis=0))


def rnn_forward(x: Array, h0: Array, Wx: Array, Wh: Array, b: Array) -> tuple[Array, SequenceCache]:
    """Run over a sequence; return the hidden state after each step, `(N, T, H)`.

    Inputs `x (N, T, D)`, first state `h0 (N, H)`, weights `Wx (D, H)` and `Wh (H, H)`, biases `b
    (H,)`. Raises `ShapeError` if the shapes do not fit together.
    """
    return sequence_forward(RNN, "rnn_forward", x, h0, Wx, Wh, b)


def rnn_backward(dh: Array, cache: SequenceCache) -> SequenceGradients:
    """Backpropagation through time of `rnn_forward`, from the gradient of every hidden state.

    `dh (N, T, H)` comes from the layer above; what comes back from the next step is added to it
    here.
    """
    return SequenceGradients(**sequence_backward(RNN, "rnn_backward", dh, cache))
