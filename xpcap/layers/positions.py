"""Positions: what tells a Transformer where in its sentence a word stands."""

from __future__ import annotations

from xpcap.backend import Array, Namespace


def sinusoids(xp: Namespace, count: int, width: int) -> Array:
    """Return vectors `(count, width)` of the positions from 0 on, of sines and cosines.

    Vaswani et al., "Attention is all you need" (2017): with wavelengths from 2 pi to 10,000 * 2 pi,

        P[t, 2i] = sin(t / 10000^(2i / width))          P[t, 2i + 1] = cos(t / 10000^(2i / width))
    """
    column = xp.arange(width)
    angle = xp.arange(count)[:, None] / 10000 ** (column // 2 * 2 / width)
    return xp.where(column % 2, xp.cos(angle), xp.sin(angle))
