"""Long short-term memory (Hochreiter and Schmidhuber 1997; forget gate of Gers et al. 2000).

a = x Wx + h Wh + b is split in i, f, o (logistic) and g (tanh); c' = f c + i g; h' = o tanh(c').
"""

from __future__ import annotations

from typing import NamedTuple

from xpcap.backend import Array, namespace
from xpcap.kernels.pointwise import lstm_cell, lstm_cell_gradient
from xpcap.layers._checks import check_shapes
from xpcap.layers._sequence import project_inputs, time_major, weight_gradients


class LSTMStepCache(NamedTuple):
    """What the backward pass of one step needs; `gates` are the activated i, f, o, g."""

    x: Array
    prev_h: Array
    prev_c: Array
    Wx: Array
    Wh: Array
    gates: Array
    tanh_c: Array


class LSTMStepGradients(NamedTuple):
    """Gradients in the order of the forward arguments."""

    dx: Array
    dprev_h: Array
    dprev_c: Array
    dWx: Array
    dWh: Array
    db: Array


class LSTMCache(NamedTuple):
    """What the backward pass of a sequence needs, time first.

    `steps (T, N, D)`; `states`, `cells (T+1, N, H)` before and after each step;
    `gates (T, N, 4H)`; `tanh_c (T, N, H)`.
    """

    steps: Array
    states: Array
    cells: Array
    gates: Array
    tanh_c: Array
    Wx: Array
    Wh: Array


class LSTMGradients(NamedTuple):
    """Gradients in the order of the forward arguments."""

    dx: Array
    dh0: Array
    dWx: Array
    dWh: Array
    db: Array


def lstm_step_forward(
    x: Array, prev_h: Array, prev_c: Array, Wx: Array, Wh: Array, b: Array
) -> tuple[Array, Array, LSTMStepCache]:
    """Take one step.

    Parameters
    ----------
    x
        Inputs `(N, D)`.
    prev_h, prev_c
        Hidden state and cell state, `(N, H)` each.
    Wx, Wh, b
        Weights `(D, 4H)`, `(H, 4H)` and biases `(4H,)`, in the order i, f, o, g.

    Returns
    -------
    next_h, next_c, cache
        The new states `(N, H)`; and what `lstm_step_backward` needs.

    Raises
    ------
    ShapeError
        If the shapes do not fit together.
    """
    xp = namespace(x, prev_h, prev_c, Wx, Wh, b)
    check_shapes(
        "lstm_step_forward",
        x=(x, "N D"), prev_h=(prev_h, "N H"), prev_c=(prev_c, "N H"),
        Wx=(Wx, "D 4H"), Wh=(Wh, "H 4H"), b=(b, "4H"),
    )  # fmt: skip
    gates, next_c, tanh_c, next_h = lstm_cell(xp, x @ Wx + prev_h @ Wh + b, prev_c)
    return next_h, next_c, LSTMStepCache(x, prev_h, prev_c, Wx, Wh, gates, tanh_c)


def lstm_step_backward(dnext_h: Array, dnext_c: Array, cache: LSTMStepCache) -> LSTMStepGradients:
    """Gradients of `lstm_step_forward`; `dnext_c` is not changed.

    With dc = dnext_c + dnext_h o (1 - tanh(c')^2): da is dc g i(1-i), dc c f(1-f),
    dnext_h tanh(c') o(1-o), dc i (1-g^2) side by side, and dprev_c = dc f.

    Parameters
    ----------
    dnext_h, dnext_c
        Gradients of the new states, `(N, H)` each.
    cache
        From the forward pass.

    Returns
    -------
    dx, dprev_h, dprev_c, dWx, dWh, db
        Of the shapes of the forward arguments.
    """
    x, prev_h, prev_c, Wx, Wh, gates, tanh_c = cache
    xp = namespace(dnext_h, dnext_c, gates)
    da, dprev_c = lstm_cell_gradient(xp, dnext_h, dnext_c, gates, prev_c, tanh_c)
    return LSTMStepGradients(da @ Wx.T, da @ Wh.T, dprev_c, x.T @ da, prev_h.T @ da, da.sum(axis=0))


def lstm_forward(x: Array, h0: Array, Wx: Array, Wh: Array, b: Array) -> tuple[Array, LSTMCache]:
    """Run over a sequence; the first cell state is zero.

    Parameters
    ----------
    x
        Inputs `(N, T, D)`.
    h0
        First hidden state `(N, H)`.
    Wx, Wh, b
        Weights `(D, 4H)`, `(H, 4H)` and biases `(4H,)`, in the order i, f, o, g.

    Returns
    -------
    h, cache
        The hidden state after each step, `(N, T, H)`; and what `lstm_backward` needs.

    Raises
    ------
    ShapeError
        If the shapes do not fit together.
    """
    xp = namespace(x, h0, Wx, Wh, b)
    size = check_shapes(
        "lstm_forward",
        x=(x, "N T D"), h0=(h0, "N H"), Wx=(Wx, "D 4H"), Wh=(Wh, "H 4H"), b=(b, "4H"),
    )  # fmt: skip
    T, N, H = size["T"], size["N"], size["H"]
    steps = time_major(x)
    gates = project_inputs(steps, Wx, b)  # pre-activations, until the loop activates them
    states = xp.empty((T + 1, N, H), dtype=gates.dtype)
    cells, tanh_c = xp.zeros_like(states), xp.empty_like(states[1:])
    states[0] = h0
    for t in range(T):
        a = gates[t] + states[t] @ Wh
        gates[t], cells[t + 1], tanh_c[t], states[t + 1] = lstm_cell(xp, a, cells[t])
    return time_major(states[1:]), LSTMCache(steps, states, cells, gates, tanh_c, Wx, Wh)


def lstm_backward(dh: Array, cache: LSTMCache) -> LSTMGradients:
    """Backpropagation through time of `lstm_forward`.

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
    steps, states, cells, gates, tanh_c, Wx, Wh = cache
    xp = namespace(dh, states)
    above = time_major(dh)
    da = xp.empty_like(gates)
    dstate, dcell = xp.zeros_like(states[0]), xp.zeros_like(cells[0])
    for t in reversed(range(above.shape[0])):
        da[t], dcell = lstm_cell_gradient(
            xp, above[t] + dstate, dcell, gates[t], cells[t], tanh_c[t]
        )
        dstate = da[t] @ Wh.T
    dx, dWx, dWh, db = weight_gradients(steps, Wx, states[:-1], da, da)
    return LSTMGradients(dx, dstate, dWx, dWh, db)
