"""The gated recurrent unit (Cho et al. 2014), in the form "reset after" of cuDNN and PyTorch.

x Wx + b and h Wh are split in three blocks each; then, element by element,

    r, z = sigma(ax_r + ah_r), sigma(ax_z + ah_z)   reset and update gate
    n = tanh(ax_n + r (ah_n + bn))                  candidate
    h' = (1 - z) n + z h                            hidden state
"""

from __future__ import annotations

from typing import NamedTuple

from xpcap.backend import Array, Namespace, namespace
from xpcap.layers._checks import check_gradients
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
    """Take one step; return the new hidden state, `(N, H)`.

    Inputs `x (N, D)`, state `prev_h (N, H)`, weights `Wx (D, 3H)` and `Wh (H, 3H)` and biases `b
    (3H,)` in the order r, z, n; `bn (H,)` is the bias of h Wh in the block of n. Raises
    `ShapeError` if the shapes do not fit together.
    """
    xp = GRU.check("gru_step_forward", "N D", x=x, prev_h=prev_h, Wx=Wx, Wh=Wh, b=b, bn=bn)
    gates = x @ Wx + b
    ah_n, next_h = (xp.empty(prev_h.shape, dtype=gates.dtype) for _ in range(2))
    gru_cell(xp, gates, prev_h @ Wh, bn, prev_h, ah_n, next_h)
    return next_h, GRUStepCache(x, prev_h, Wx, Wh, gates, ah_n)


def gru_step_backward(dnext_h: Array, cache: GRUStepCache) -> GRUStepGradients:
    """Gradients of `gru_step_forward`.

    With dn = dnext_h (1-z) (1-n^2), dr = dn ah_n r(1-r) and dz = dnext_h (h-n) z(1-z): the gradient
    of x Wx + b is dr, dz, dn side by side, that of h Wh is dr, dz, dn r.
    """
    x, prev_h, Wx, Wh, gates, ah_n = cache
    xp = namespace(dnext_h, gates)
    check_gradients("gru_step_backward", dnext_h=(dnext_h, prev_h.shape))
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
    """Run over a sequence; return the hidden state after each step, `(N, T, H)`.

    Inputs `x (N, T, D)`, first state `h0 (N, H)`; weights, biases and errors as in
    `gru_step_forward`.
    """
    return sequence_forward(GRU, "gru_forward", x, h0, Wx, Wh, b, bn=bn)


def gru_backward(dh: Array, cache: SequenceCache) -> GRUGradients:
    """Backpropagation through time of `gru_forward`, from the gradient of every hidden state.

    `dh (N, T, H)` comes from the layer above; what comes back from the next step is added to it
    here.
    """
    return GRUGradients(**sequence_backward(GRU, "gru_backward", dh, cache))
