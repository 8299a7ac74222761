"""Kernels in CUDA C++, run by CuPy: one source file each, compiled for the device at first use.

Importing this module registers them. Each passes over its arrays once where CuPy's own functions
would be several launches with temporary arrays between them. None waits for the device or takes a
value from it, so their launches can be captured in a CUDA graph, after a first call outside one
that compiles them. Shapes are the callers' to get right; a dtype that a kernel does not know, or an
array that is not contiguous (some allow rows that are padded), is the reference's.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import numpy

from xpcap.backend import Array, Namespace
from xpcap.kernels.batches import next_batch
from xpcap.kernels.cuda.launch import Source, cuda_version, open_source, row_stride
from xpcap.kernels.updates import adam_update, loss_and_norm, square_sum
from xpcap.layers.affine import column_sum
from xpcap.layers.attention import (
    additive_attention,
    additive_attention_gradient,
    dot_product_attention,
    dot_product_attention_gradient,
)
from xpcap.layers.embedding import add_rows, take_rows
from xpcap.layers.gru import gru_cell, gru_cell_gradient
from xpcap.layers.loss import softmax_cross_entropy
from xpcap.layers.lstm import lstm_cell, lstm_cell_gradient
from xpcap.layers.random import keep_mask
from xpcap.layers.regions import mean_of_present, present_regions
from xpcap.layers.rnn import rnn_cell, rnn_cell_gradient
from xpcap.operations import Operation

importlib.import_module("xpcap.kernels.cuda.recurrence")  # registers the recurrences

_WORD = 0xFFFFFFFFFFFFFFFF
_PARTIAL_SUMS = 512
_WIDE = 4096  # columns, from which on blocks of 32 columns are enough to occupy a GPU

int32, int64, uint32, uint64 = numpy.int32, numpy.int64, numpy.uint32, numpy.uint64


def _parts(size: int, of: int) -> int:
    return -(-size // of)


def _launch_cell(made: Operation[Any, None], state: int) -> None:
    """Let a thread compute a hidden unit of a caption; argument `state` is an array `(N, H)`."""
    kernel, names = made.reference.__name__, list(inspect.signature(made.reference).parameters)[1:]

    @cuda_version(made, REAL=" ".join(names))
    def run(source: Source, xp: Namespace, *arrays: Array) -> None:
        N, H = arrays[state].shape
        source.launch(kernel, (N, _parts(H, 128)), 128, int32(H), *arrays)


for _cell in (rnn_cell, lstm_cell, gru_cell):
    _launch_cell(_cell, -1)
for _gradient in (lstm_cell_gradient, gru_cell_gradient):
    _launch_cell(_gradient, 0)


@cuda_version(rnn_cell_gradient, REAL="above back h da")
def _rnn_cell_gradient(
    source: Source, xp: Namespace, above: Array, back: Array, h: Array, da: Array
) -> None:
    blocks = (_parts(da.size, 256),)
    source.launch("rnn_cell_gradient", blocks, 256, int64(da.size), above, back, h, da)


def _blocks_of_queries(query: Array, values: Array) -> tuple[Any, ...]:
    """Return blocks, threads and the sizes L, A and D: a block computes a query."""
    (R, A), (_, L, D) = query.shape, values.shape
    return (R,), 512, int32(L), int32(A), int32(D)


def _launch_attention(made: Operation[Any, None], arrays: str) -> None:
    kernel = made.reference.__name__

    @cuda_version(made, REAL=arrays, bool="present", INDEX="image")
    def run(
        source: Source, xp: Namespace, query: Array, keys: Array, values: Array, *others: Array
    ) -> None:
        sizes = _blocks_of_queries(query, values)
        source.launch(kernel, *sizes, query, keys, values, *others)


_launch_attention(dot_product_attention, "query keys values weights context")
_launch_attention(additive_attention, "query keys values w weights context")


def _launch_gradient(made: Operation[Any, None]) -> None:
    """Let a block compute the gradient of a query, with memory for that of its scores."""
    kernel, names = made.reference.__name__, list(inspect.signature(made.reference).parameters)[1:]
    query, values = names.index("query"), names.index("values")

    @cuda_version(made, REAL=" ".join(names))
    def run(source: Source, xp: Namespace, *arrays: Array) -> None:
        (R, _), (_, L, _) = arrays[query].shape, arrays[values].shape
        dscores = xp.empty((R, L), dtype=arrays[query].dtype)
        sizes = _blocks_of_queries(arrays[query], arrays[values])
        source.launch(kernel, *sizes, *arrays, dscores)


_launch_gradient(dot_product_attention_gradient)
_launch_gradient(additive_attention_gradient)


@cuda_version(present_regions, REAL="regions", bool="out")
def _present_regions(source: Source, xp: Namespace, regions: Array, out: Array) -> None:
    D = regions.shape[2]
    source.launch(
        "present_regions", (_parts(out.size, 8),), 256, int64(out.size), int32(D), regions, out
    )


@cuda_version(mean_of_present, REAL="regions out", bool="present")
def _mean_of_present(
    source: Source, xp: Namespace, regions: Array, present: Array, out: Array
) -> None:
    N, L, D = regions.shape
    blocks = (N, _parts(D, 128))
    source.launch("mean_of_present", blocks, 128, int32(L), int32(D), regions, present, out)


@cuda_version(
    softmax_cross_entropy, REAL="scores bias scale losses", INDEX="targets", padded="scores"
)
def _softmax_cross_entropy(
    source: Source,
    xp: Namespace,
    scores: Array,
    bias: Array,
    targets: Array,
    scale: Array,
    losses: Array,
    smoothing: float = 0.0,
) -> None:
    M, V = scores.shape
    arrays = (int32(V), row_stride(scores), scores, bias, targets, scale, losses)
    source.launch("softmax_cross_entropy", (M,), 256, *arrays, scores.dtype.type(smoothing))


@cuda_version(take_rows, ELEMENT="table out", INDEX="indices", padded="table")
def _take_rows(source: Source, xp: Namespace, table: Array, indices: Array, out: Array) -> None:
    (size, D), M = table.shape, len(indices)
    blocks = (M, _parts(D, 128))
    numbers = (int64(size), int32(D), row_stride(table))
    source.launch("take_rows", blocks, 128, *numbers, table, indices, out)


@cuda_version(add_rows, INDEX="indices", REAL="rows out", padded="out")
def _add_rows(source: Source, xp: Namespace, indices: Array, rows: Array, out: Array) -> None:
    size, D = out.shape
    blocks = (size, _parts(D, 256))
    numbers = (int32(len(indices)), int32(D), row_stride(out))
    source.launch("add_rows", blocks, 256, *numbers, indices, rows, out)


@cuda_version(column_sum, REAL="rows out", padded="rows")
def _column_sum(source: Source, xp: Namespace, rows: Array, out: Array) -> None:
    M, D = rows.shape
    numbers = (int32(M), int32(D), row_stride(rows))
    if D < _WIDE:
        source.launch("column_sum", (_parts(D, 8),), 512, *numbers, rows, out)
    else:
        source.launch("column_sum_of_wide_rows", (_parts(D, 32),), 512, *numbers, rows, out)


@cuda_version(keep_mask, STREAM="stream", bool="out")
def _keep_mask(
    source: Source, xp: Namespace, threshold: int, seed: int, stream: int | Array, out: Array
) -> None:
    which = uint64(stream & _WORD) if isinstance(stream, int) else stream
    numbers = (int64(out.size), uint32(threshold), uint64(seed & _WORD))
    source.launch("keep_mask", (_parts(out.size, 4096),), 256, *numbers, which, out)


@cuda_version(adam_update, REAL="w dw m v settings")
def _adam_update(source: Source, xp: Namespace, w: Array, *others: Any) -> None:
    *arrays, beta1, beta2, epsilon, decay = others
    numbers = map(w.dtype.type, (beta1, 1 - beta1, beta2, 1 - beta2, epsilon, decay))
    blocks = (_parts(w.size, 256),)
    source.launch("adam_update", blocks, 256, int64(w.size), w, *arrays, *numbers)


def _square_sums(source: Source, xp: Namespace, values: Array) -> Array:
    count = min(max(_parts(values.size, 256), 1), _PARTIAL_SUMS)
    partial = xp.empty(count, dtype=numpy.float64)
    source.launch("square_sums", (count,), 256, int64(values.size), values, partial)
    return partial


@cuda_version(square_sum, REAL="values out")
def _square_sum(source: Source, xp: Namespace, values: Array, out: Array) -> None:
    partial = _square_sums(source, xp, values)
    source.launch("sum_of_sums", (1,), 256, int32(partial.size), partial, out)


@cuda_version(loss_and_norm, REAL="losses gradients totals settings")
def _loss_and_norm(source: Source, xp: Namespace, *arguments: Any) -> None:
    losses, gradients, max_norm, totals, settings = arguments
    partial = _square_sums(open_source(xp, "square_sum", source.options), xp, gradients)
    most = totals.dtype.type(max_norm or 0)
    numbers = (int32(losses.size), losses, int32(partial.size), partial, most)
    source.launch("loss_and_norm", (1,), 256, *numbers, totals, settings)


@cuda_version(
    next_batch,
    REAL="table weight settings",
    int32="captions image_idxs order words targets images",
    int64="position",
    uint64="streams",
)
def _next_batch(source: Source, xp: Namespace, *arguments: Any) -> None:
    captions, image_idxs, order, table, position, null, *written = arguments
    (M, columns), (batches, K) = captions.shape, table.shape
    N = written[3].shape[0]
    sizes = (int64(M), int32(columns - 1), int32(N), int32(batches), int32(K))
    read = (captions, image_idxs, order, table, position, int32(null))
    source.launch("next_batch", (1,), 1024, *sizes, *read, *written)
