"""The gated recurrent unit (Cho et al. 2014), in the form "reset after" of cuDNN and PyTorch.

r, z = sigma(x Wx + h Wh + b); n = tanh(x Wx_n + b_n + r (h Wh_n + bn)); h' = (1 - z) n + z h.
"""

from __future__ import annotations

from typing import NamedTuple

from xpcap.backend import Array, namespace
from xpcap.kernels.pointwise import gru_cell, gru_cell_gradient
from xpcap.kernels.recurrence import gru_recurrence, gru_recurrence_gradient
from xpcap.kernels.sums import column_sum
from xpcap.layers._checks import check_shapes
from xpcap.layers._sequence import Packing, hidden_states, pack, unpack
from xpcap.workspace import Workspace


class GRUStepCache(NamedTuple):
    """What the backward pass of one step needs.

    `gates` are the activated r, z, n `(N, 3H)`; `ah_n (N, H)` is h Wh_n + bn.
    """

    x: Array
    prev_h: Array
    Wx: Array
    Wh: Array
    gates: Array
    ah_n: Array


class GRUStepGradients(NamedTuple):
    """Gradients in the order of the forward arguments."""

    dx: Array
    dprev_h: Array
    dWx: Array
    dWh: Array
    db: Array
    dbn: Array


class GRUUnrolled(NamedTuple):
    """A packed sequence run through the cell, M rows.

    `h`, `prev_h`, `ah_n (M, H)`: the states after and before each step, and h Wh_n + bn;
    `gates (M, 3H)`.
    """

    h: Array
    prev_h: Array
    ah_n: Array
    gates: Array


class GRUCache(NamedTuple):
    """What the backward pass of a sequence needs: its inputs, packed `(T N, D)`, and its run."""

    steps: Array
    run: GRUUnrolled
    Wx: Array
    Wh: Array
    packing: Packing


class GRUGradients(NamedTuple):
    """Gradients in the order of the forward arguments."""

    dx: Array
    dh0: Array
    dWx: Array
    dWh: Array
    db: Array
    dbn: Array


def gru_step_forward(
    x: Array, prev_h: Array, Wx: Array, Wh: Array, b: Array, bn: Array
) -> tuple[Array, GRUStepCache]:
    """Take one step.

    Parameters
    ----------
    x
        Inputs `(N, D)`.
    prev_h
        Hidden state `(N, H)`.
    Wx, Wh, b
        Weights `(D, 3H)`, `(H, 3H)` and biases `(3H,)`, in the order r, z, n.
    bn
        The hidden bias of n, `(H,)`.

    Returns
    -------
    next_h, cache
        The new hidden state `(N, H)`; and what `gru_step_backward` needs.

    Raises
    ------
    ShapeError
        If the shapes do not fit together.
    """
    xp = namespace(x, prev_h, Wx, Wh, b, bn)
    check_shapes(
        "gru_step_forward",
        x=(x, "N D"), prev_h=(prev_h, "N H"), Wx=(Wx, "D 3H"), Wh=(Wh, "H 3H"), b=(b, "3H"),
        bn=(bn, "H"),
    )  # fmt: skip
    gates = x @ Wx + b
    ah_n, next_h = (xp.empty(prev_h.shape, dtype=gates.dtype) for _ in range(2))
    gru_cell(xp, gates, prev_h @ Wh, bn, prev_h, ah_n, next_h)
    return next_h, GRUStepCache(x, prev_h, Wx, Wh, gates, ah_n)


def gru_step_backward(dnext_h: Array, cache: GRUStepCache) -> GRUStepGradients:
    """Gradients of `gru_step_forward`.

    With dn = dnext_h (1-z) (1-n^2), dr = dn ah_n r(1-r) and dz = dnext_h (h-n) z(1-z): the gradient
    of x Wx + b is dr, dz, dn side by side, that of h Wh is dr, dz, dn r.

    Parameters
    ----------
    dnext_h
        Gradient of the new hidden state, `(N, H)`.
    cache
        From the forward pass.

    Returns
    -------
    dx, dprev_h, dWx, dWh, db, dbn
        Of the shapes of the forward arguments.
    """
    x, prev_h, Wx, Wh, gates, ah_n = cache
    xp = namespace(dnext_h, gates)
    dax, dah, dprev_h = xp.empty_like(gates), xp.empty_like(gates), xp.zeros_like(dnext_h)
    gru_cell_gradient(xp, dnext_h, dprev_h, gates, ah_n, prev_h, dax, dah)
    H = prev_h.shape[1]
    return GRUStepGradients(
        dax @ Wx.T,
        dprev_h + dah @ Wh.T,
        x.T @ dax,
        prev_h.T @ dah,
        dax.sum(axis=0),
        dah[:, 2 * H :].sum(axis=0),
    )


def gru_forward(
    x: Array, h0: Array, Wx: Array, Wh: Array, b: Array, bn: Array
) -> tuple[Array, GRUCache]:
    """Run over a sequence.

    Parameters
    ----------
    x
        Inputs `(N, T, D)`.
    h0
        First hidden state `(N, H)`.
    Wx, Wh, b
        Weights `(D, 3H)`, `(H, 3H)` and biases `(3H,)`, in the order r, z, n.
    bn
        The hidden bias of n, `(H,)`.

    Returns
    -------
    h, cache
        The hidden state after each step, `(N, T, H)`; and what `gru_backward` needs.

    Raises
    ------
    ShapeError
        If the shapes do not fit together.
    """
    xp = namespace(x, h0, Wx, Wh, b, bn)
    size = check_shapes(
        "gru_forward",
        x=(x, "N T D"), h0=(h0, "N H"), Wx=(Wx, "D 3H"), Wh=(Wh, "H 3H"), b=(b, "3H"),
        bn=(bn, "H"),
    )  # fmt: skip
    steps, packing = pack(x)
    gates = steps @ Wx + b
    run = gru_unroll(gates, None, h0, Wh, bn, packing, Workspace(xp, gates.dtype))
    return unpack(run.h, size["N"], size["T"]), GRUCache(steps, run, Wx, Wh, packing)


def gru_backward(dh: Array, cache: GRUCache) -> GRUGradients:
    """Backpropagation through time of `gru_forward`.

    Parameters
    ----------
    dh
        Gradient of every hidden state from the layer above, `(N, T, H)`; what comes back from
        the next step is added to it here.
    cache
        From the forward pass.

    Returns
    -------
    dx, dh0, dWx, dWh, db, dbn
        Of the shapes of the forward arguments.
    """
    steps, run, Wx, Wh, packing = cache
    xp = namespace(dh, run.h)
    N, T, _ = dh.shape
    workspace = Workspace(xp, run.h.dtype)
    dax, dah, dh0, dbn = gru_unroll_backward(pack(dh)[0], run, Wh, packing, workspace)
    dx = unpack(dax @ Wx.T, N, T)
    return GRUGradients(dx, dh0, steps.T @ dax, run.prev_h.T @ dah, dax.sum(axis=0), dbn)


def gru_unroll(
    gates: Array,
    b: Array | None,
    h0: Array,
    Wh: Array,
    bn: Array,
    packing: Packing,
    workspace: Workspace,
) -> GRUUnrolled:
    """Run the cell over a packed sequence.

    Parameters
    ----------
    gates, b
        `(M, 3H)` and `(3H,)`: x Wx of every row, and the bias, or None if it is added already.
        The first becomes the activated gates.
    h0, Wh, bn
        First hidden state `(N, H)`, weights `(H, 3H)` and the hidden bias of n, `(H,)`.
    packing
        Which rows are which step's.
    workspace
        Where the arrays of the result lie.
    """
    h, prev_h = hidden_states(h0, packing, workspace)
    ah_n = packing.empty(workspace, "ah_n", h0.shape[1])
    gru_recurrence(workspace.xp, gates, b, Wh, bn, prev_h, h, ah_n, packing)
    return GRUUnrolled(h, prev_h, ah_n, gates)


def gru_unroll_backward(
    dh: Array, run: GRUUnrolled, Wh: Array, packing: Packing, workspace: Workspace
) -> tuple[Array, Array, Array, Array]:
    """Backpropagation through time of `gru_unroll`.

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
    dax, dah, dh0, dbn
        Gradients of x Wx + b and of h Wh, `(M, 3H)`; of h0; and of bn.
    """
    xp, H = workspace.xp, Wh.shape[0]
    dax, dah = (packing.empty(workspace, name, 3 * H) for name in ("dax", "dah"))
    back, dbn = workspace.zeros("dh0", packing.captions, H), workspace.empty("dbn", H)
    gru_recurrence_gradient(xp, dh, Wh, run.gates, run.ah_n, run.prev_h, dax, dah, back, packing)
    column_sum(xp, dah[:, 2 * H :], dbn)
    return dax, dah, back, dbn
