"""Taking rows at indices, and its gradient: adding rows where indices say."""

from __future__ import annotations

import numpy

from xpcap.backend import Array, Namespace
from xpcap.kernels import kernel


@kernel
def take_rows(xp: Namespace, table: Array, indices: Array, out: Array) -> None:
    """Write `table[indices]` into `out (M, D)`; `table (size, D)`, `indices (M,)` below size.

    For the index -1, which stands for no row, it is some row of the table.
    """
    out[...] = table[indices]


@take_rows.override("numpy")
def _take_rows_at_once(xp: Namespace, table: Array, indices: Array, out: Array) -> None:
    """The reference without a temporary array, which the mode "raise" would make."""
    numpy.take(table, indices, axis=0, out=out, mode="clip")


@kernel
def add_rows(xp: Namespace, indices: Array, rows: Array, out: Array) -> None:
    """Write the sum of the `rows (M, D)` of each index into `out (size, D)`; others become 0.

    Rows of the index -1 are ignored.

    The product with a one-hot matrix, because its order of summation is the same every time;
    atomic additions are not, and fancy `out[indices] += rows` loses the repeated ones.
    """
    one_hot = (xp.arange(len(out))[:, None] == indices[None, :]).astype(rows.dtype)
    out[...] = one_hot @ rows


@add_rows.override("numpy")
def _add_rows_sorted(xp: Namespace, indices: Array, rows: Array, out: Array) -> None:
    """Sort once, then sum each index's run of rows: M D additions instead of size M D products."""
    order = numpy.argsort(indices, kind="stable")
    order = order[numpy.count_nonzero(indices < 0) :]
    distinct, starts = numpy.unique(indices[order], return_index=True)
    ends = numpy.append(starts, len(order))[1:]
    if len(distinct) < len(out):
        out[...] = 0
    for index, start, end in zip(distinct, starts, ends, strict=True):
        numpy.add.reduce(rows[order[start:end]], axis=0, out=out[index])
