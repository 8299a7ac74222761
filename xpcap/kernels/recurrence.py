"""The recurrences: a sequence run through a cell, step by step, and backpropagation through time.

Each is a loop of one product and one cell a step over packed rows, time-major: step t has the rows
`packing.rows[t]`, of all N captions or, where some have ended, of the first of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from xpcap.backend import Array, Namespace, namespace
from xpcap.kernels import kernel
from xpcap.kernels.pointwise import (
    gru_cell,
    gru_cell_gradient,
    lstm_cell,
    lstm_cell_gradient,
    rnn_cell,
    rnn_cell_gradient,
)
from xpcap.kernels.products import product
from xpcap.workspace import passing


class Steps(Protocol):
    """N captions, and the rows of each step.

    If `even`, all steps have N rows, and the states before and after each step are views of one
    array that begins with the first state. Otherwise those before lie apart, the first ones given.
    """

    captions: int
    even: bool

    @property
    def rows(self) -> Sequence[slice]:
        """Return the rows of each step."""


def _carry(prev_h: Array, h: Array, packing: Steps, t: int) -> None:
    """Copy the active rows of the state after step t - 1, unless they are there already."""
    if t > 0 and not packing.even:
        before, rows = packing.rows[t - 1 : t + 1]
        prev_h[rows] = h[before][: rows.stop - rows.start]


def _memory(name: str, like: Array, *shape: int) -> Array:
    """Return memory until the kernel returns, of the library and the dtype of an array."""
    return passing(namespace(like), like.dtype).empty(name, *shape)


@kernel
def rnn_recurrence(
    xp: Namespace,
    ax: Array,
    b: Array | None,
    Wh: Array,
    prev_h: Array,
    h: Array,
    packing: Steps,
) -> None:
    """Vanilla network: h_t = tanh(ax_t + b + h_{t-1} Wh); `ax` may be changed.

    Parameters
    ----------
    ax, b
        `(M, H)` and `(H,)`: x Wx, and the bias; None if it is added already.
    Wh
        `(H, H)`.
    prev_h, h
        `(M, H)`, written: the states before and after each step.
    packing
        The rows of each step.
    """
    if b is not None:
        ax += b
    ah = _memory("ah", h, packing.captions, Wh.shape[1])
    for t, rows in enumerate(packing.rows):
        _carry(prev_h, h, packing, t)
        product(xp, prev_h[rows], Wh, ah[: rows.stop - rows.start])
        rnn_cell(xp, ax[rows], ah[: rows.stop - rows.start], h[rows])


@kernel
def rnn_recurrence_gradient(
    xp: Namespace,
    dh: Array,
    Wh: Array,
    h: Array,
    da: Array,
    back: Array,
    packing: Steps,
) -> None:
    """Gradient of `rnn_recurrence`.

    Parameters
    ----------
    dh
        `(M, H)`: gradient of each h from the layer above.
    Wh, h
        As `rnn_recurrence` left them.
    da
        `(M, H)`, written: gradient of ax_t and of h_{t-1} Wh.
    back
        `(N, H)`: zeros, becomes the gradient of the first state.
    packing
        The rows of each step.
    """
    for rows in reversed(packing.rows):
        n = rows.stop - rows.start
        rnn_cell_gradient(xp, dh[rows], back[:n], h[rows], da[rows])
        product(xp, da[rows], Wh.T, back[:n])


@kernel
def lstm_recurrence(
    xp: Namespace,
    gates: Array,
    b: Array | None,
    Wh: Array,
    prev_h: Array,
    h: Array,
    c0: Array,
    c: Array,
    tanh_c: Array,
    packing: Steps,
) -> None:
    """LSTM: see `lstm_cell`.

    Parameters
    ----------
    gates, b
        `(M, 4H)` and `(4H,)`: x Wx, and the bias; None if it is added already. The first becomes
        the activated gates.
    Wh
        `(H, 4H)`.
    prev_h, h
        `(M, H)`, written: the states before and after each step.
    c0
        `(N, H)`: the first cell state.
    c, tanh_c
        `(M, H)`, written: the cell states after each step, and tanh of them.
    packing
        The rows of each step.
    """
    if b is not None:
        gates += b
    ah, cell = _memory("ah", h, packing.captions, Wh.shape[1]), c0
    for t, rows in enumerate(packing.rows):
        n = rows.stop - rows.start
        _carry(prev_h, h, packing, t)
        product(xp, prev_h[rows], Wh, ah[:n])
        lstm_cell(xp, gates[rows], ah[:n], cell[:n], c[rows], tanh_c[rows], h[rows])
        cell = c[rows]


@kernel
def lstm_recurrence_gradient(
    xp: Namespace,
    dh: Array,
    Wh: Array,
    gates: Array,
    c0: Array,
    c: Array,
    tanh_c: Array,
    da: Array,
    back: Array,
    packing: Steps,
) -> None:
    """Gradient of `lstm_recurrence`.

    Parameters
    ----------
    dh
        `(M, H)`: gradient of each h from the layer above.
    Wh, gates, c0, c, tanh_c
        As `lstm_recurrence` left them.
    da
        `(M, 4H)`, written: gradient of the pre-activations.
    back
        `(N, H)`: zeros, becomes the gradient of the first hidden state.
    packing
        The rows of each step.
    """
    dc = _memory("dc", back, *back.shape)
    dc[...] = 0
    cells = [c0, *(c[rows] for rows in packing.rows)][:-1]
    for rows, cell in zip(reversed(packing.rows), reversed(cells), strict=True):
        n = rows.stop - rows.start
        lstm_cell_gradient(
            xp, dh[rows], back[:n], dc[:n], gates[rows], cell[:n], tanh_c[rows], da[rows]
        )
        product(xp, da[rows], Wh.T, back[:n])


@kernel
def gru_recurrence(
    xp: Namespace,
    gates: Array,
    b: Array | None,
    Wh: Array,
    bn: Array,
    prev_h: Array,
    h: Array,
    ah_n: Array,
    packing: Steps,
) -> None:
    """GRU: see `gru_cell`.

    Parameters
    ----------
    gates, b
        `(M, 3H)` and `(3H,)`: x Wx, and the bias; None if it is added already. The first becomes
        the activated gates.
    Wh, bn
        `(H, 3H)` and `(H,)`.
    prev_h, h
        `(M, H)`, written: the states before and after each step.
    ah_n
        `(M, H)`, written: h Wh_n + bn.
    packing
        The rows of each step.
    """
    if b is not None:
        gates += b
    ah = _memory("ah", h, packing.captions, Wh.shape[1])
    for t, rows in enumerate(packing.rows):
        n = rows.stop - rows.start
        _carry(prev_h, h, packing, t)
        product(xp, prev_h[rows], Wh, ah[:n])
        gru_cell(xp, gates[rows], ah[:n], bn, prev_h[rows], ah_n[rows], h[rows])


@kernel
def gru_recurrence_gradient(
    xp: Namespace,
    dh: Array,
    Wh: Array,
    gates: Array,
    ah_n: Array,
    prev_h: Array,
    dax: Array,
    dah: Array,
    back: Array,
    packing: Steps,
) -> None:
    """Gradient of `gru_recurrence`.

    Parameters
    ----------
    dh
        `(M, H)`: gradient of each h from the layer above.
    Wh, gates, ah_n, prev_h
        As `gru_recurrence` left them.
    dax, dah
        `(M, 3H)`, written: gradients of x Wx + b and of h Wh.
    back
        `(N, H)`: zeros, becomes the gradient of the first state.
    packing
        The rows of each step.
    """
    more = _memory("product", back, *back.shape)
    for rows in reversed(packing.rows):
        n = rows.stop - rows.start
        gru_cell_gradient(
            xp, dh[rows], back[:n], gates[rows], ah_n[rows], prev_h[rows], dax[rows], dah[rows]
        )
        product(xp, dah[rows], Wh.T, more[:n])
        back[:n] += more[:n]
