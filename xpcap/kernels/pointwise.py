"""Element by element: the logistic function, and the cells of the three recurrent networks.

Cells take the two halves of the pre-activations, x Wx + b and h Wh, and keep activated values,
because the derivatives need only those: sigma'(a) = s (1 - s) and tanh'(a) = 1 - t^2, with s and t
the outputs. They write into arrays that they are given, so that a step of training allocates
nothing. A gradient arrives in two parts as well: from the layer above, and from the next step.
"""

from __future__ import annotations

import numpy

from xpcap.backend import Array, Namespace
from xpcap.kernels import kernel
from xpcap.kernels.subnormals import flushed


@kernel
def sigmoid(xp: Namespace, a: Array) -> Array:
    """Logistic function 1 / (1 + e^-a), written with tanh so that no exponential overflows."""
    return 0.5 * xp.tanh(0.5 * a) + 0.5


@kernel
def rnn_cell(xp: Namespace, ax: Array, ah: Array, next_h: Array) -> None:
    """Vanilla cell: `next_h = tanh(ax + ah)`, all `(N, H)`."""
    next_h[...] = xp.tanh(ax + ah)


@rnn_cell.override("numpy")
def _rnn_cell_in_place(xp: Namespace, ax: Array, ah: Array, next_h: Array) -> None:
    """The reference without temporary arrays."""
    numpy.add(ax, ah, out=next_h)
    numpy.tanh(next_h, out=next_h)


@kernel
def rnn_cell_gradient(xp: Namespace, above: Array, back: Array, next_h: Array, da: Array) -> None:
    """Gradient of `rnn_cell`: `da = (above + back) (1 - next_h^2)`, all `(N, H)`."""
    with flushed(xp, da):
        da[...] = (above + back) * (1 - next_h * next_h)


@rnn_cell_gradient.override("numpy")
def _rnn_cell_gradient_in_place(
    xp: Namespace, above: Array, back: Array, next_h: Array, da: Array
) -> None:
    """The reference with one temporary array."""
    with flushed(xp, da):
        numpy.multiply(next_h, next_h, out=da)
        numpy.subtract(1, da, out=da)
        da *= above + back


@kernel
def lstm_cell(
    xp: Namespace,
    gates: Array,
    ah: Array,
    prev_c: Array,
    next_c: Array,
    tanh_c: Array,
    next_h: Array,
) -> None:
    """LSTM cell (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    Parameters
    ----------
    gates
        `(N, 4H)`: x Wx + b of i, f, o, g, in this order; becomes the activated gates.
    ah
        `(N, 4H)`: h Wh.
    prev_c
        Cell state `(N, H)`.
    next_c, tanh_c, next_h
        `(N, H)`, written: c' = f c + i g; tanh(c'); h' = o tanh(c').
    """
    H = prev_c.shape[1]
    gates += ah
    gates[:, : 3 * H] = sigmoid(xp, gates[:, : 3 * H])
    gates[:, 3 * H :] = xp.tanh(gates[:, 3 * H :])
    i, f, o, g = split_gates(gates, 4)
    with flushed(xp, next_c, tanh_c, next_h):
        next_c[...] = f * prev_c + i * g
        tanh_c[...] = xp.tanh(next_c)
        next_h[...] = o * tanh_c


@lstm_cell.override("numpy")
def _lstm_cell_in_place(
    xp: Namespace,
    gates: Array,
    ah: Array,
    prev_c: Array,
    next_c: Array,
    tanh_c: Array,
    next_h: Array,
) -> None:
    """The reference without temporary arrays."""
    H = prev_c.shape[1]
    gates += ah
    _activate(gates, 3 * H)
    i, f, o, g = split_gates(gates, 4)
    with flushed(xp, next_c, tanh_c, next_h):
        numpy.multiply(i, g, out=tanh_c)
        numpy.multiply(f, prev_c, out=next_c)
        next_c += tanh_c
        numpy.tanh(next_c, out=tanh_c)
        numpy.multiply(o, tanh_c, out=next_h)


def _activate(a: Array, logistic: int) -> None:
    """Apply the logistic function to the first columns and tanh to the others, in place."""
    a[:, :logistic] *= 0.5
    numpy.tanh(a, out=a)
    a[:, :logistic] *= 0.5
    a[:, :logistic] += 0.5


@kernel
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
    """Gradient of `lstm_cell`.

    Parameters
    ----------
    above, back
        `(N, H)`: the two parts of the gradient of h'.
    dc
        `(N, H)`: gradient of c' from the next step; becomes that of c.
    gates, prev_c, tanh_c
        As `lstm_cell` left them.
    da
        `(N, 4H)`, written: gradient of the pre-activations.
    """
    i, f, o, g = split_gates(gates, 4)
    with flushed(xp, dc, da):
        dh = above + back
        dc += dh * o * (1 - tanh_c * tanh_c)
        di, df, do, dg = split_gates(da, 4)
        di[...] = dc * g * i * (1 - i)
        df[...] = dc * prev_c * f * (1 - f)
        do[...] = dh * tanh_c * o * (1 - o)
        dg[...] = dc * i * (1 - g * g)
        dc *= f


@lstm_cell_gradient.override("numpy")
def _lstm_cell_gradient_in_place(
    xp: Namespace,
    above: Array,
    back: Array,
    dc: Array,
    gates: Array,
    prev_c: Array,
    tanh_c: Array,
    da: Array,
) -> None:
    """The reference with two small temporary arrays."""
    H = prev_c.shape[1]
    i, f, o, g = split_gates(gates, 4)
    di, df, do, dg = split_gates(da, 4)
    with flushed(xp, dc, da):
        dh = above + back
        part = tanh_c * tanh_c
        numpy.subtract(1, part, out=part)
        part *= o
        part *= dh
        dc += part
        logistic = gates[:, : 3 * H]
        numpy.subtract(1, logistic, out=da[:, : 3 * H])
        da[:, : 3 * H] *= logistic
        di *= g
        di *= dc
        df *= prev_c
        df *= dc
        do *= tanh_c
        do *= dh
        numpy.multiply(g, g, out=dg)
        numpy.subtract(1, dg, out=dg)
        dg *= i
        dg *= dc
        dc *= f


@kernel
def gru_cell(
    xp: Namespace,
    gates: Array,
    ah: Array,
    bn: Array,
    prev_h: Array,
    ah_n: Array,
    next_h: Array,
) -> None:
    """GRU cell in the form "reset after" (Cho et al. 2014; the variant of cuDNN and PyTorch).

    Parameters
    ----------
    gates
        `(N, 3H)`: x Wx + b of r, z, n, in this order; becomes the activated gates, with
        n = tanh(ax_n + r ah_n).
    ah
        `(N, 3H)`: h Wh.
    bn
        `(H,)`: the bias beside h Wh in the part of n.
    prev_h
        Hidden state `(N, H)`.
    ah_n, next_h
        `(N, H)`, written: h Wh_n + bn; h' = (1 - z) n + z h.
    """
    H = prev_h.shape[1]
    ah_n[...] = ah[:, 2 * H :] + bn
    gates[:, : 2 * H] = sigmoid(xp, gates[:, : 2 * H] + ah[:, : 2 * H])
    r, z, n = split_gates(gates, 3)
    with flushed(xp, n, next_h):
        n[...] = xp.tanh(n + r * ah_n)
        next_h[...] = (1 - z) * n + z * prev_h


@gru_cell.override("numpy")
def _gru_cell_in_place(
    xp: Namespace,
    gates: Array,
    ah: Array,
    bn: Array,
    prev_h: Array,
    ah_n: Array,
    next_h: Array,
) -> None:
    """The reference without temporary arrays; h' = n + z (h - n)."""
    H = prev_h.shape[1]
    r, z, n = split_gates(gates, 3)
    numpy.add(ah[:, 2 * H :], bn, out=ah_n)
    gates[:, : 2 * H] += ah[:, : 2 * H]
    _activate(gates[:, : 2 * H], 2 * H)
    with flushed(xp, n, next_h):
        numpy.multiply(r, ah_n, out=next_h)
        n += next_h
        numpy.tanh(n, out=n)
        numpy.subtract(prev_h, n, out=next_h)
        next_h *= z
        next_h += n


@kernel
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
    """Gradient of `gru_cell`.

    Parameters
    ----------
    above
        `(N, H)`: gradient of h' from the layer above.
    back
        `(N, H)`: from the next step; becomes the share of the gradient of h that does not pass
        through `ah`.
    gates, ah_n, prev_h
        As `gru_cell` left them.
    dax, dah
        `(N, 3H)`, written: gradients of x Wx + b and of h Wh.
    """
    r, z, n = split_gates(gates, 3)
    with flushed(xp, back, dax, dah):
        dh = above + back
        dr, dz, dn = split_gates(dax, 3)
        dn[...] = dh * (1 - z) * (1 - n * n)
        dr[...] = dn * ah_n * r * (1 - r)
        dz[...] = dh * (prev_h - n) * z * (1 - z)
        dah[...] = dax
        dah[:, 2 * r.shape[1] :] *= r
        back[...] = dh * z


@gru_cell_gradient.override("numpy")
def _gru_cell_gradient_in_place(
    xp: Namespace,
    above: Array,
    back: Array,
    gates: Array,
    ah_n: Array,
    prev_h: Array,
    dax: Array,
    dah: Array,
) -> None:
    """The reference with the two outputs as scratch, and no temporary arrays."""
    H = prev_h.shape[1]
    r, z, n = split_gates(gates, 3)
    dr, dz, dn = split_gates(dax, 3)
    with flushed(xp, back, dax, dah):
        back += above
        numpy.subtract(1, gates[:, : 2 * H], out=dah[:, : 2 * H])  # 1 - r, 1 - z
        numpy.multiply(n, n, out=dn)
        numpy.subtract(1, dn, out=dn)
        dn *= dah[:, H : 2 * H]
        dn *= back
        numpy.multiply(dah[:, : 2 * H], gates[:, : 2 * H], out=dax[:, : 2 * H])
        dr *= ah_n
        dr *= dn
        numpy.subtract(prev_h, n, out=dah[:, :H])
        dz *= dah[:, :H]
        dz *= back
        dah[:, : 2 * H] = dax[:, : 2 * H]
        numpy.multiply(dn, r, out=dah[:, 2 * H :])
        back *= z


def split_gates(gates: Array, count: int) -> list[Array]:
    """Return `count` views `(N, H)` of gates that lie side by side in `(N, count H)`."""
    H = gates.shape[1] // count
    return [gates[:, k * H : (k + 1) * H] for k in range(count)]
