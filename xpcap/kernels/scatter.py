"""Adding rows where indices say: the gradient of looking rows up, word by word."""

from __future__ import annotations

import numpy

from xpcap.backend import Array, Namespace
from xpcap.kernels import kernel


@kernel
def add_rows(xp: Namespace, indices: Array, rows: Array, size: int) -> Array:
    """Sum `rows (M, D)` into `(size, D)` at `indices (M,)`; repeated indices add up.

    The product with a one-hot matrix, because its order of summation is the same every time;
    atomic additions are not, and fancy `out[indices] += rows` loses the repeated ones.
    """
    one_hot = (xp.arange(size)[:, None] == indices[None, :]).astype(rows.dtype)
    return one_hot @ rows


@add_rows.override("numpy")
def _add_rows_sorted(xp: Namespace, indices: Array, rows: Array, size: int) -> Array:
    """Sort once, then sum each index's run of rows: M D additions instead of size M D products."""
    out = numpy.zeros((size, *rows.shape[1:]), rows.dtype)
    order = numpy.argsort(indices, kind="stable")
    gathered = rows[order]
    distinct, starts = numpy.unique(indices[order], return_index=True)
    ends = numpy.append(starts, len(order))[1:]
    for index, start, end in zip(distinct, starts, ends, strict=True):
        numpy.add.reduce(gathered[start:end], axis=0, out=out[index])
    return out
