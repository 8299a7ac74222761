"""The vanilla recurrent layer (Elman 1990): h' = tanh(x Wx + h Wh + b)."""

from __future__ import annotations

from typing import NamedTuple

from xpcap.backend import Array, namespace
from xpcap.kernels.pointwise import rnn_cell, rnn_cell_gradient
from xpcap.kernels.recurrence import rnn_recurrence, rnn_recurrence_gradient
from xpcap.layers._checks import check_shapes
from xpcap.layers._sequence import Packing, hidden_states, pack, unpack
from xpcap.workspace import Workspace


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


class RNNUnrolled(NamedTuple):
    """A packed sequence run through the cell: the states after and before each step, `(M, H)`."""

    h: Array
    prev_h: Array


class RNNCache(NamedTuple):
    """What the backward pass of a sequence needs: its inputs, packed `(T N, D)`, and its run."""

    steps: Array
    run: RNNUnrolled
    Wx: Array
    Wh: Array
    packing: Packing


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
    steps, packing = pack(x)
    ax = steps @ Wx + b
    run = rnn_unroll(ax, None, h0, Wh, packing, Workspace(xp, ax.dtype))
    return unpack(run.h, size["N"], size["T"]), RNNCache(steps, run, Wx, Wh, packing)


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
    steps, run, Wx, Wh, packing = cache
    xp = namespace(dh, run.h)
    N, T, _ = dh.shape
    workspace = Workspace(xp, run.h.dtype)
    da, _, dh0 = rnn_unroll_backward(pack(dh)[0], run, Wh, packing, workspace)
    dx = unpack(da @ Wx.T, N, T)
    return RNNGradients(dx, dh0, steps.T @ da, run.prev_h.T @ da, da.sum(axis=0))


def rnn_unroll(
    ax: Array, b: Array | None, h0: Array, Wh: Array, packing: Packing, workspace: Workspace
) -> RNNUnrolled:
    """Run the cell over a packed sequence.

    Parameters
    ----------
    ax, b
        `(M, H)` and `(H,)`: x Wx of every row, and the bias, or None if it is added already.
    h0, Wh
        First hidden state `(N, H)`, and weights `(H, H)`.
    packing
        Which rows are which step's.
    workspace
        Where the arrays of the result lie.
    """
    h, prev_h = hidden_states(h0, packing, workspace)
    rnn_recurrence(workspace.xp, ax, b, Wh, prev_h, h, packing)
    return RNNUnrolled(h, prev_h)


def rnn_unroll_backward(
    dh: Array, run: RNNUnrolled, Wh: Array, packing: Packing, workspace: Workspace
) -> tuple[Array, Array, Array]:
    """Backpropagation through time of `rnn_unroll`.

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
        Gradients of x Wx + b and of h Wh, `(M, H)`, here one and the same array; and of h0.
    """
    H = Wh.shape[0]
    da, back = packing.empty(workspace, "da", H), workspace.zeros("dh0", packing.captions, H)
    rnn_recurrence_gradient(workspace.xp, dh, Wh, run.h, da, back, packing)
    return da, da, back
