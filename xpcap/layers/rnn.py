"""The vanilla recurrent layer (Elman 1990): h' = tanh(x Wx + h Wh + b)."""

from __future__ import annotations

from typing import NamedTuple

from xpcap.backend import Array, namespace
from xpcap.kernels.pointwise import rnn_cell, rnn_cell_gradient
from xpcap.layers._checks import check_shapes
from xpcap.layers._sequence import project_inputs, time_major, weight_gradients


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


class RNNCache(NamedTuple):
    """What the backward pass of a sequence needs; `steps (T, N, D)`, `states (T+1, N, H)`."""

    steps: Array
    states: Array
    Wx: Array
    Wh: Array


class RNNGradients(NamedTuple):
    """Gradients in the order of the forward arguments."""

    dx: Array
    dh0: Array
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
    next_h = rnn_cell(xp, x @ Wx + prev_h @ Wh + b)
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
    da = rnn_cell_gradient(xp, dnext_h, next_h)
    return RNNStepGradients(da @ Wx.T, da @ Wh.T, x.T @ da, prev_h.T @ da, da.sum(axis=0))


def rnn_forward(x: Array, h0: Array, Wx: Array, Wh: Array, b: Array) -> tuple[Array, RNNCache]:
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
    xp = namespace(x, h0, Wx, Wh, b)
    size = check_shapes(
        "rnn_forward",
        x=(x, "N T D"), h0=(h0, "N H"), Wx=(Wx, "D H"), Wh=(Wh, "H H"), b=(b, "H"),
    )  # fmt: skip
    T, N, H = size["T"], size["N"], size["H"]
    steps = time_major(x)
    projected = project_inputs(steps, Wx, b)
    states = xp.empty((T + 1, N, H), dtype=projected.dtype)
    states[0] = h0
    for t in range(T):
        states[t + 1] = rnn_cell(xp, projected[t] + states[t] @ Wh)
    return time_major(states[1:]), RNNCache(steps, states, Wx, Wh)


def rnn_backward(dh: Array, cache: RNNCache) -> RNNGradients:
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
    steps, states, Wx, Wh = cache
    xp = namespace(dh, states)
    above = time_major(dh)
    da = xp.empty_like(above)
    dstate = xp.zeros_like(states[0])
    for t in reversed(range(above.shape[0])):
        da[t] = rnn_cell_gradient(xp, above[t] + dstate, states[t + 1])
        dstate = da[t] @ Wh.T
    dx, dWx, dWh, db = weight_gradients(steps, Wx, states[:-1], da, da)
    return RNNGradients(dx, dstate, dWx, dWh, db)
