"""Sums over the rows of a matrix, such as the gradient of a bias."""

from __future__ import annotations

from xpcap.backend import Array, Namespace
from xpcap.kernels import kernel


@kernel
def column_sum(xp: Namespace, rows: Array, out: Array) -> None:
    """Write the sum of each column of `rows (M, D)` into `out (D,)`."""
    rows.sum(axis=0, out=out)
