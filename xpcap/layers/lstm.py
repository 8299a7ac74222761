"""Long short-term memory (Hochreiter and Schmidhuber 1997; forget gate of Gers et al. 2000).

a = x Wx + h Wh + b is split in i, f, o (logistic) and g (tanh); c' = f c + i g; h' = o tanh(c').
"""

from __future__ import annotations

from typing import NamedTuple

from xpcap.backend import Array, namespace
from xpcap.kernels.pointwise import lstm_cell, lstm_cell_gradient
from xpcap.kernels.recurrence import lstm_recurrence, lstm_recurrence_gradient
from xpcap.layers._checks import check_shapes
from xpcap.layers._sequence import Packing, hidden_states, pack, unpack
from xpcap.workspace import Workspace


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


class LSTMUnrolled(NamedTuple):
    """A packed sequence run through the cell, M rows; `c0 (N, H)` is the first cell state.

    `h`, `prev_h`, `c`, `tanh_c (M, H)`: the states after and before each step; `gates (M, 4H)`.
    """

    h: Array
    prev_h: Array
    c0: Array
    c: Array
    tanh_c: Array
    gates: Array


class LSTMCache(NamedTuple):
    """What the backward pass of a sequence needs: its inputs, packed `(T N, D)`, and its run."""

    steps: Array
    run: LSTMUnrolled
    Wx: Array
    Wh: Array
    packing: Packing


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
    gates = x @ Wx + b
    next_c, tanh_c, next_h = (xp.empty(prev_c.shape, dtype=gates.dtype) for _ in range(3))
    lstm_cell(xp, gates, prev_h @ Wh, prev_c, next_c, tanh_c, next_h)
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
    da, dprev_c = xp.empty_like(gates), dnext_c.copy()
    lstm_cell_gradient(xp, dnext_h, xp.zeros_like(dnext_h), dprev_c, gates, prev_c, tanh_c, da)
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
    steps, packing = pack(x)
    gates = steps @ Wx + b
    run = lstm_unroll(gates, None, h0, Wh, packing, Workspace(xp, gates.dtype))
    return unpack(run.h, size["N"], size["T"]), LSTMCache(steps, run, Wx, Wh, packing)


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
    steps, run, Wx, Wh, packing = cache
    xp = namespace(dh, run.h)
    N, T, _ = dh.shape
    workspace = Workspace(xp, run.h.dtype)
    da, _, dh0 = lstm_unroll_backward(pack(dh)[0], run, Wh, packing, workspace)
    dx = unpack(da @ Wx.T, N, T)
    return LSTMGradients(dx, dh0, steps.T @ da, run.prev_h.T @ da, da.sum(axis=0))


def lstm_unroll(
    gates: Array,
    b: Array | None,
    h0: Array,
    Wh: Array,
    packing: Packing,
    workspace: Workspace,
    c0: Array | None = None,
) -> LSTMUnrolled:
    """Run the cell over a packed sequence.

    Parameters
    ----------
    gates, b
        `(M, 4H)` and `(4H,)`: x Wx of every row, and the bias, or None if it is added already.
        The first becomes the activated gates.
    h0, Wh
        First hidden state `(N, H)`, and weights `(H, 4H)`.
    packing
        Which rows are which step's.
    workspace
        Where the arrays of the result lie.
    c0
        First cell state `(N, H)`, zero if None.
    """
    (N, H), total = h0.shape, packing.total
    h, prev_h = hidden_states(h0, packing, workspace)
    cells = workspace.empty("cells", N + total, H, most=N + packing.capacity)
    cells[:N] = 0 if c0 is None else c0
    c0, c, tanh_c = cells[:N], cells[N:], packing.empty(workspace, "tanh_c", H)
    lstm_recurrence(workspace.xp, gates, b, Wh, prev_h, h, c0, c, tanh_c, packing)
    return LSTMUnrolled(h, prev_h, c0, c, tanh_c, gates)


def lstm_unroll_backward(
    dh: Array, run: LSTMUnrolled, Wh: Array, packing: Packing, workspace: Workspace
) -> tuple[Array, Array, Array]:
    """Backpropagation through time of `lstm_unroll`.

    Parameters
    ----------
    dh
        `(M, H)`: gradient of every hidden state from the layer above.
    run, Wh, packing
        Of the forward pass.
    workspace
        Where the results lie.

    Returns
    -------
    dax, dah, dh0
        Gradients of x Wx + b and of h Wh, `(M, 4H)`, here one and the same array; and of h0.
    """
    H = Wh.shape[0]
    da, back = packing.empty(workspace, "da", 4 * H), workspace.zeros("dh0", packing.captions, H)
    lstm_recurrence_gradient(
        workspace.xp, dh, Wh, run.gates, run.c0, run.c, run.tanh_c, da, back, packing
    )
    return da, da, back
