"""Long short-term memory (Hochreiter and Schmidhuber 1997; forget gate of Gers et al. 2000).

a = x Wx + h Wh + b is split in four blocks; then, element by element,

    i, f, o = sigma(a_i), sigma(a_f), sigma(a_o)    input, forget and output gate
    g = tanh(a_g)                                   candidate
    c' = f c + i g                                  cell state
    h' = o tanh(c')                                 hidden state
"""

from __future__ import annotations

from typing import NamedTuple

from xpcap.backend import Array, Namespace, namespace
from xpcap.layers._checks import check_gradients
from xpcap.layers.activations import sigmoid
from xpcap.layers.recurrence import (
    Cell,
    SequenceCache,
    SequenceGradients,
    sequence_backward,
    sequence_forward,
    split_gates,
)
from xpcap.operations import operation
from xpcap.subnormals import flushed


@operation
def lstm_cell(
    xp: Namespace, gates: Array, ah: Array, prev_c: Array, c: Array, tanh_c: Array, h: Array
) -> None:
    """Write c', tanh(c') and h' `(N, H)`; a has come in two parts, `gates` and `ah` `(N, 4H)`.

    `gates` become i, f, o, g, which are all that the gradient needs.
    """
    H = prev_c.shape[1]
    gates += ah
    gates[:, : 3 * H] = sigmoid(xp, gates[:, : 3 * H])
    gates[:, 3 * H :] = xp.tanh(gates[:, 3 * H :])
    i, f, o, g = split_gates(gates, 4)
    with flushed(xp, c, tanh_c, h):
        c[...] = f * prev_c + i * g
        tanh_c[...] = xp.tanh(c)
        h[...] = o * tanh_c


@operation
def lstm_cell_gradient(
    xp: Namespace,
    above: Array,
    back: Array,
    dc: Array,
    gates: Array,
    prev_c: Array,
    tanh_c: Array,
    da: Array,
) -> None:
    """Write the gradient of a `(N, 4H)`; that of c', `dc (N, H)`, becomes that of c.

    sigma'(a) = s (1 - s) and tanh'(a) = 1 - t^2, with s and t the activated values.
    """
    i, f, o, g = split_gates(gates, 4)
    di, df, do, dg = split_gates(da, 4)
    with flushed(xp, dc, da):
        dh = above + back
        dc += dh * o * (1 - tanh_c * tanh_c)  # from h' = o tanh(c')
        di[...] = dc * g * i * (1 - i)  # from c' = f c + i g
        df[...] = dc * prev_c * f * (1 - f)
        do[...] = dh * tanh_c * o * (1 - o)
        dg[...] = dc * i * (1 - g * g)
        dc *= f


LSTM = Cell(
    lstm_cell,
    lstm_cell_gradient,
    gates=("input", "forget", "output", "candidate"),
    states=("h", "c"),
    kept=("tanh_c",),
)


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


def lstm_step_forward(
    x: Array, prev_h: Array, prev_c: Array, Wx: Array, Wh: Array, b: Array
) -> tuple[Array, Array, LSTMStepCache]:
    """Take one step; return the new hidden and cell state, `(N, H)` each.

    Inputs `x (N, D)`, states `prev_h`, `prev_c (N, H)`, weights `Wx (D, 4H)` and `Wh (H, 4H)` and
    biases `b (4H,)` in the order i, f, o, g. Raises `ShapeError` if the shapes do not fit together.
    """
    xp = LSTM.check(
        "lstm_step_forward", "N D", x=x, prev_h=prev_h, prev_c=prev_c, Wx=Wx, Wh=Wh, b=b
    )
    gates = x @ Wx + b
    next_c, tanh_c, next_h = (xp.empty(prev_c.shape, dtype=gates.dtype) for _ in range(3))
    lstm_cell(xp, gates, prev_h @ Wh, prev_c, next_c, tanh_c, next_h)
    return next_h, next_c, LSTMStepCache(x, prev_h, prev_c, Wx, Wh, gates, tanh_c)


def lstm_step_backward(dnext_h: Array, dnext_c: Array, cache: LSTMStepCache) -> LSTMStepGradients:
    """Gradients of `lstm_step_forward`; `dnext_c` is not changed.

    With dc = dnext_c + dnext_h o (1 - tanh(c')^2): da is dc g i(1-i), dc c f(1-f),
    dnext_h tanh(c') o(1-o), dc i (1-g^2) side by side, and dprev_c = dc f.
    """
    x, prev_h, prev_c, Wx, Wh, gates, tanh_c = cache
    xp = namespace(dnext_h, dnext_c, gates)
    shape = prev_c.shape
    check_gradients("lstm_step_backward", dnext_h=(dnext_h, shape), dnext_c=(dnext_c, shape))
    da, dprev_c = xp.empty_like(gates), dnext_c.copy()
    lstm_cell_gradient(xp, dnext_h, xp.zeros_like(dnext_h), dprev_c, gates, prev_c, tanh_c, da)
    return LSTMStepGradients(da @ Wx.T, da @ Wh.T, dprev_c, x.T @ da, prev_h.T @ da, da.sum(axis=0))


def lstm_forward(
    x: Array, h0: Array, Wx: Array, Wh: Array, b: Array
) -> tuple[Array, SequenceCache]:
    """Run over a sequence from a cell state of zero; return each step's hidden state, `(N, T, H)`.

    Inputs `x (N, T, D)`, first state `h0 (N, H)`, weights `Wx (D, 4H)` and `Wh (H, 4H)` and biases
    `b (4H,)` in the order i, f, o, g. Raises `ShapeError` if the shapes do not fit together.
    """
    return sequence_forward(LSTM, "lstm_forward", x, h0, Wx, Wh, b)


def lstm_backward(dh: Array, cache: SequenceCache) -> SequenceGradients:
    """Backpropagation through time of `lstm_forward`, from the gradient of every hidden state.

    `dh (N, T, H)` comes from the layer above; what comes back from the next step is added to it
    here.
    """
    return SequenceGradients(**sequence_backward(LSTM, "lstm_backward", dh, cache))
