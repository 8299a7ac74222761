"""Operations on NumPy arrays without temporary arrays, or on as many rows as stay in a cache."""

from __future__ import annotations

import numpy

from xpcap.backend import Array, Namespace
from xpcap.layers.affine import product
from xpcap.layers.embedding import add_rows, take_rows
from xpcap.layers.gru import gru_cell, gru_cell_gradient
from xpcap.layers.loss import log_normalizer, softmax_cross_entropy
from xpcap.layers.lstm import lstm_cell, lstm_cell_gradient
from xpcap.layers.recurrence import split_gates
from xpcap.layers.rnn import rnn_cell, rnn_cell_gradient
from xpcap.subnormals import flushed, lowest

FEW = 3  # rows: 3 times 512 numbers times 512 x 2,048 take 0.28, not 0.35 ms; 2 0.22, not 0.40
_BLOCK = 2**18  # elements: 1 MB of float32, half of a core's cache


@product.version("numpy")
def _product_row_by_row(xp: Namespace, a: Array, b: Array, out: Array) -> None:
    """Few rows are multiplied each by itself, as products of matrices first copy all of b."""
    if len(a) > FEW:
        numpy.matmul(a, b, out=out)
    else:
        for row, result in zip(a, out, strict=True):
            numpy.matmul(row, b, out=result)


@rnn_cell.version("numpy")
def _rnn_cell_in_place(xp: Namespace, gates: Array, ah: Array, h: Array) -> None:
    """The reference without temporary arrays."""
    numpy.add(gates, ah, out=h)
    numpy.tanh(h, out=h)


@rnn_cell_gradient.version("numpy")
def _rnn_cell_gradient_in_place(
    xp: Namespace, above: Array, back: Array, h: Array, da: Array
) -> None:
    """The reference with one temporary array."""
    with flushed(xp, da):
        numpy.multiply(h, h, out=da)
        numpy.subtract(1, da, out=da)
        da *= above + back


@lstm_cell.version("numpy")
def _lstm_cell_in_place(
    xp: Namespace,
    gates: Array,
    ah: Array,
    prev_c: Array,
    c: Array,
    tanh_c: Array,
    h: Array,
) -> None:
    """The reference without temporary arrays."""
    H = prev_c.shape[1]
    gates += ah
    _activate(gates, 3 * H)
    i, f, o, g = split_gates(gates, 4)
    with flushed(xp, c, tanh_c, h):
        numpy.multiply(i, g, out=tanh_c)
        numpy.multiply(f, prev_c, out=c)
        c += tanh_c
        numpy.tanh(c, out=tanh_c)
        numpy.multiply(o, tanh_c, out=h)


def _activate(a: Array, logistic: int) -> None:
    """Apply the logistic function to the first columns and tanh to the others, in place."""
    a[:, :logistic] *= 0.5
    numpy.tanh(a, out=a)
    a[:, :logistic] *= 0.5
    a[:, :logistic] += 0.5


@lstm_cell_gradient.version("numpy")
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


@gru_cell.version("numpy")
def _gru_cell_in_place(
    xp: Namespace,
    gates: Array,
    ah: Array,
    bn: Array,
    prev_h: Array,
    ah_n: Array,
    h: Array,
) -> None:
    """The reference without temporary arrays; h' = n + z (h - n)."""
    H = prev_h.shape[1]
    r, z, n = split_gates(gates, 3)
    numpy.add(ah[:, 2 * H :], bn, out=ah_n)
    gates[:, : 2 * H] += ah[:, : 2 * H]
    _activate(gates[:, : 2 * H], 2 * H)
    with flushed(xp, n, h):
        numpy.multiply(r, ah_n, out=h)
        n += h
        numpy.tanh(n, out=n)
        numpy.subtract(prev_h, n, out=h)
        h *= z
        h += n


@gru_cell_gradient.version("numpy")
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


@take_rows.version("numpy")
def _take_rows_at_once(xp: Namespace, table: Array, indices: Array, out: Array) -> None:
    """The reference without a temporary array, which the mode "raise" would make."""
    if table.dtype == out.dtype:
        numpy.take(table, indices, axis=0, out=out, mode="clip")
    else:
        out[...] = table[indices]


@add_rows.version("numpy")
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


@log_normalizer.version("numpy")
def _log_normalizer_in_blocks(xp: Namespace, scores: Array) -> Array:
    """The reference, on as many rows at a time as stay in a core's cache."""
    height = max(1, _BLOCK // scores.itemsize // max(1, scores.shape[1]))
    found = numpy.empty(len(scores), scores.dtype)
    for first in range(0, len(scores), height):
        rows = slice(first, first + height)
        found[rows] = log_normalizer.reference(xp, scores[rows])
    return found


@softmax_cross_entropy.version("numpy")
def _softmax_cross_entropy_in_blocks(
    xp: Namespace,
    scores: Array,
    bias: Array,
    targets: Array,
    scale: Array,
    losses: Array,
    smoothing: float = 0.0,
) -> None:
    """The reference, on as many rows at a time as stay in a core's cache."""
    height = max(1, _BLOCK // scores.shape[1])
    least = lowest(scores.dtype)
    for first in range(0, len(scores), height):
        rows = slice(first, first + height)
        part, weight, target = scores[rows], scale[rows], targets[rows]
        places = numpy.arange(len(part))
        part += bias
        part -= part.max(axis=1, keepdims=True)
        expected = part[places, target]
        if smoothing:
            expected = (1 - smoothing) * expected + smoothing * part.mean(axis=1)
        if part.min() < least:
            part[part < least] = -numpy.inf  # whose power is 0
        numpy.exp(part, out=part)
        total = part.sum(axis=1)
        numpy.multiply(weight, numpy.log(total) - expected, out=losses[rows])
        part *= (weight / total)[:, None]
        if smoothing:
            part -= (smoothing / part.shape[1] * weight)[:, None]
        part[places, target] -= (1 - smoothing) * weight
        silent = weight == 0
        if silent.any():
            part[silent] = 0
            losses[rows][silent] = 0
