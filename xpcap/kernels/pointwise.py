"""Element by element: the logistic function, and the cells of the three recurrent networks.

Cells take pre-activations and return activated values, because the derivatives need only those:
sigma'(a) = s (1 - s) and tanh'(a) = 1 - t^2, with s and t the outputs.
"""

from __future__ import annotations

from xpcap.backend import Array, Namespace
from xpcap.kernels import kernel


@kernel
def sigmoid(xp: Namespace, a: Array) -> Array:
    """Logistic function 1 / (1 + e^-a), written with tanh so that no exponential overflows."""
    return 0.5 * xp.tanh(0.5 * a) + 0.5


@kernel
def rnn_cell(xp: Namespace, a: Array) -> Array:
    """Vanilla cell: `a (N, H)` -> `next_h = tanh(a) (N, H)`."""
    return xp.tanh(a)


@kernel
def rnn_cell_gradient(xp: Namespace, dnext_h: Array, next_h: Array) -> Array:
    """Gradient of `rnn_cell` with respect to `a (N, H)`."""
    return dnext_h * (1 - next_h * next_h)


@kernel
def lstm_cell(xp: Namespace, a: Array, prev_c: Array) -> tuple[Array, Array, Array, Array]:
    """LSTM cell (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    Parameters
    ----------
    a
        Pre-activations `(N, 4H)` of i, f, o, g, in this order.
    prev_c
        Cell state `(N, H)`.

    Returns
    -------
    gates, next_c, tanh_c, next_h
        Activated i, f, o, g `(N, 4H)`; c' = f c + i g; tanh(c'); h' = o tanh(c'), all `(N, H)`.
    """
    H = prev_c.shape[1]
    gates = xp.empty_like(a)
    gates[:, : 3 * H] = sigmoid(xp, a[:, : 3 * H])
    gates[:, 3 * H :] = xp.tanh(a[:, 3 * H :])
    i, f, o, g = split_gates(gates, 4)
    next_c = f * prev_c + i * g
    tanh_c = xp.tanh(next_c)
    return gates, next_c, tanh_c, o * tanh_c


@kernel
def lstm_cell_gradient(
    xp: Namespace, dnext_h: Array, dnext_c: Array, gates: Array, prev_c: Array, tanh_c: Array
) -> tuple[Array, Array]:
    """Gradient of `lstm_cell`: `da (N, 4H)` and `dprev_c (N, H)`."""
    i, f, o, g = split_gates(gates, 4)
    dc = dnext_c + dnext_h * o * (1 - tanh_c * tanh_c)
    da = xp.concatenate(
        [
            dc * g * i * (1 - i),
            dc * prev_c * f * (1 - f),
            dnext_h * tanh_c * o * (1 - o),
            dc * i * (1 - g * g),
        ],
        axis=1,
    )
    return da, dc * f


@kernel
def gru_cell(xp: Namespace, ax: Array, ah: Array, prev_h: Array) -> tuple[Array, Array]:
    """GRU cell in the form "reset after" (Cho et al. 2014; the variant of cuDNN and PyTorch).

    Parameters
    ----------
    ax
        Input pre-activations `(N, 3H)` of r, z, n: x Wx + b.
    ah
        Hidden pre-activations `(N, 3H)`: h Wh, plus `bn` in the part of n.
    prev_h
        Hidden state `(N, H)`.

    Returns
    -------
    gates, next_h
        r, z, n `(N, 3H)` with n = tanh(ax_n + r ah_n); h' = (1 - z) n + z h `(N, H)`.
    """
    H = prev_h.shape[1]
    gates = xp.empty_like(ax)
    gates[:, : 2 * H] = sigmoid(xp, ax[:, : 2 * H] + ah[:, : 2 * H])
    gates[:, 2 * H :] = xp.tanh(ax[:, 2 * H :] + gates[:, :H] * ah[:, 2 * H :])
    _, z, n = split_gates(gates, 3)
    return gates, (1 - z) * n + z * prev_h


@kernel
def gru_cell_gradient(
    xp: Namespace, dnext_h: Array, gates: Array, ah_n: Array, prev_h: Array
) -> tuple[Array, Array, Array]:
    """Gradient of `gru_cell`; `ah_n (N, H)` is the part of `ah` that belongs to n.

    Returns
    -------
    dax, dah, dprev_h
        With respect to `ax (N, 3H)` and `ah (N, 3H)`; and to `prev_h (N, H)`, the share only that
        does not pass through `ah`.
    """
    r, z, n = split_gates(gates, 3)
    dan = dnext_h * (1 - z) * (1 - n * n)
    dar = dan * ah_n * r * (1 - r)
    daz = dnext_h * (prev_h - n) * z * (1 - z)
    dax = xp.concatenate([dar, daz, dan], axis=1)
    dah = xp.concatenate([dar, daz, dan * r], axis=1)
    return dax, dah, dnext_h * z


def split_gates(gates: Array, count: int) -> list[Array]:
    """Return `count` views `(N, H)` of gates that lie side by side in `(N, count H)`."""
    H = gates.shape[1] // count
    return [gates[:, k * H : (k + 1) * H] for k in range(count)]
