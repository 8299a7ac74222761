"""The gated recurrent unit (Cho et al. 2014), in the form "reset after" of cuDNN and PyTorch.

x Wx + b and h Wh are split in three blocks each; then, element by element,

    r, z = sigma(ax_r + ah_r), sigma(ax_z + ah_z)   reset and update gate
    n = tanh(ax_n + r (ah_n + bn))                  candidate
    h' = (1 - z) n + z h                            hidden state
"""

from __future__ import annotations

from typing import NamedTuple

from xpcap.backend import Array, Namespace, namespace
from xpcap.layers._checks import check_shapes
from xpcap.layers.activations import sigmoid
from xpcap.layers.recurrence import (
    Cell,
    SequenceCache,
    sequence_backward,
    sequence_forward,
    split_gates,
)
from xpcap.operations import operation
from xpcap.subnormals import flushed


@operation
def gru_cell(
    xp: Namespace, gates: Array, ah: Array, bn: Array, prev_h: Array, ah_n: Array, h: Array
) -> None:
    """Write h' and ah_n + bn `(N, H)`; `gates`, x Wx + b `(N, 3H)`, become r, z, n."""
    H = prev_h.shape[1]
    ah_n[...] = ah[:, 2 * H :] + bn
    gates[:, : 2 * H] = sigmoid(xp, gates[:, : 2 * H] + ah[:, : 2 * H])
    r, z, n = split_gates(gates, 3)
    with flushed(xp, n, h):
        n[...] = xp.tanh(n + r * ah_n)
        h[...] = (1 - z) * n + z * prev_h


@operation
def gru_cell_gradient(
    xp: Namespace,
    above: Array,
    back: Array,
    gates: Array,
    ah_n: Array,
    prev_h: Array,
    dax: Array,
    dah: Array,
) -> None:
    """Write the gradients of x Wx + b and of h Wh `(N, 3H)`.

    `back (N, H)` becomes the part of the gradient of h that does not pass through h Wh. The two
    gradients differ in the block of n alone, where ah_n counts r times.
    """
    r, z, n = split_gates(gates, 3)
    dr, dz, dn = split_gates(dax, 3)
    with flushed(xp, back, dax, dah):
        dh = above + back
        dn[...] = dh * (1 - z) * (1 - n * n)  # from h' = (1 - z) n + z h
        dr[...] = dn * ah_n * r * (1 - r)  # from n = tanh(ax_n + r ah_n)
        dz[...] = dh * (prev_h - n) * z * (1 - z)
        dah[...] = dax
        dah[:, 2 * r.shape[1] :] *= r
        back[...] = dh * z


GRU = Cell(
    gru_cell,
    gru_cell_gradient,
    gates=("reset", "update", "candidate"),
    kept=("ah_n",),
    biases={"bn": 2},
    direct=True,
)


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


class GRUGradients(NamedTuple):
    """Gradients in the order of the forward arguments."""

    dx: Array
    dh0: Array
    dWx: Array
    dWh: Array
    db: Array
    dbn: Array


def gru_forward(
    x: Array, h0: Array, Wx: Array, Wh: Array, b: Array, bn: Array
) -> tuple[Array, SequenceCache]:
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
        The bias of h Wh in the block of n, `(H,)`.

    Returns
    -------
    h, cache
        The hidden state after each step, `(N, T, H)`; and what `gru_backward` needs.

    Raises
    ------
    ShapeError
        If the shapes do not fit together.
    """
    namespace(x, h0, Wx, Wh, b, bn)
    check_shapes(
        "gru_forward",
        x=(x, "N T D"), h0=(h0, "N H"), Wx=(Wx, "D 3H"), Wh=(Wh, "H 3H"), b=(b, "3H"),
        bn=(bn, "H"),
    )  # fmt: skip
    return sequence_forward(GRU, x, h0, Wx, b, {"Wh": Wh, "bn": bn})


def gru_backward(dh: Array, cache: SequenceCache) -> GRUGradients:
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
    found = sequence_backward(GRU, dh, cache)
    return GRUGradients(*(found[name[1:]] for name in GRUGradients._fields))
