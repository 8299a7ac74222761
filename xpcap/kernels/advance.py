"""One step of each cell, for captions of which several say the same word or begin alike.

Many captions of a beam go on with one word, and several from one beginning. So x Wx + b has a row
for each distinct word, h Wh and what the cell keeps have a row for each distinct beginning, and a
caption names a row of either.
"""

from __future__ import annotations

from xpcap.backend import Array, Namespace
from xpcap.kernels import kernel
from xpcap.kernels.pointwise import gru_cell, lstm_cell, rnn_cell


@kernel
def rnn_advance(
    xp: Namespace, ax: Array, ah: Array, prev_h: Array, words: Array, parents: Array, next_h: Array
) -> None:
    """Vanilla cell.

    Parameters
    ----------
    ax
        `(D, H)`: x Wx + b of each word.
    ah, prev_h
        `(P, H)`: h Wh of each beginning; and h, which this cell does not need.
    words, parents
        `(N,)`: the rows of `ax` and `ah` of each caption.
    next_h
        `(N, H)`, written.
    """
    rnn_cell(xp, ax[words], ah[parents], next_h)


@kernel
def lstm_advance(
    xp: Namespace,
    ax: Array,
    ah: Array,
    prev_c: Array,
    words: Array,
    parents: Array,
    next_h: Array,
    next_c: Array,
) -> None:
    """LSTM cell.

    Parameters
    ----------
    ax
        `(D, 4H)`: x Wx + b of each word.
    ah, prev_c
        `(P, 4H)` and `(P, H)`: h Wh and the cell state of each beginning.
    words, parents
        `(N,)`: the rows of `ax`, and of `ah` and `prev_c`, of each caption.
    next_h, next_c
        `(N, H)`, written.
    """
    tanh_c = xp.empty_like(next_c)
    lstm_cell(xp, ax[words], ah[parents], prev_c[parents], next_c, tanh_c, next_h)


@kernel
def gru_advance(
    xp: Namespace,
    ax: Array,
    ah: Array,
    prev_h: Array,
    bn: Array,
    words: Array,
    parents: Array,
    next_h: Array,
) -> None:
    """GRU cell.

    Parameters
    ----------
    ax
        `(D, 3H)`: x Wx + b of each word.
    ah, prev_h
        `(P, 3H)` and `(P, H)`: h Wh and the hidden state of each beginning.
    bn
        `(H,)`: the bias beside h Wh in the part of n.
    words, parents
        `(N,)`: the rows of `ax`, and of `ah` and `prev_h`, of each caption.
    next_h
        `(N, H)`, written.
    """
    ah_n = xp.empty_like(next_h)
    gru_cell(xp, ax[words], ah[parents], bn, prev_h[parents], ah_n, next_h)
