"""The recurrences as one launch for a whole sequence, in `recurrence.cu`; importing registers them.

Step by step, the product and the cell of each step are launches that wait for each other. Here the
weights stay on chip, and the blocks of one launch wait for each other instead.

That is possible for float32, equal steps and a hidden size of up to 512 that is a multiple of 4, on
a device of compute capability 8.0 or more on which all blocks are resident at once (on an H100, up
to 256 captions of an LSTM with 512 units). Otherwise the reference runs. With the precisions `tf32`
and `bf16`, h and da are rounded to TF32.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, TypeAlias

import numpy

from xpcap.backend import Array, Namespace
from xpcap.kernels.cuda.launch import Source, has_rows, open_source, row_stride
from xpcap.kernels.products import current_precision
from xpcap.layers.gru import GRU
from xpcap.layers.lstm import LSTM
from xpcap.layers.recurrence import Cell, Packing, Unrolled, Weights
from xpcap.layers.rnn import RNN

_UNITS, _WARPS, _THREADS, _TILE = 16, 8, 256, 16  # as in the source; a tile has 16 captions
_LARGEST = 512  # H: the weights of an LSTM's 16 units take 128 KB then
_ROWS = (16, 32, 64)  # captions of a block
_COUNTERS = 2**16
_FLOAT32 = numpy.dtype(numpy.float32)

_States: TypeAlias = tuple[tuple[Array, Array], ...]
"""Arrays of the states before each step and after it; the kernel takes them as one array."""

int32 = numpy.int32


class _Plan(NamedTuple):
    """How a recurrence is launched: captions of a block, and bytes of shared memory."""

    source: Source
    blocks: tuple[int, int]
    rows: int
    forward: int
    backward: int


@functools.cache
def _plan(xp: Namespace, device: int, gates: int, N: int, H: int, precision: str) -> _Plan | None:
    """Return how to launch it with the fewest captions a block, or None where it does not fit.

    The blocks of a group wait for each other, so all of them have to be resident at once. Products
    in TF32 need compute capability 8.0.
    """
    runtime = xp.cuda.runtime
    properties = runtime.getDeviceProperties(device)
    most = runtime.deviceGetAttribute(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, device)
    width, group = _UNITS * gates, -(-H // _UNITS)
    weights = 2 * width * _THREADS * -(-H // 128)
    for rows in _ROWS:
        tiles, groups = rows // _TILE, -(-N // rows)
        forward = weights + 4 * min(2, tiles) * _WARPS * _TILE * (width + 8)
        backward = weights + 4 * rows * (width + 16) + 16 * _THREADS * tiles
        resident = properties["cooperativeLaunch"] and (
            group * groups <= properties["multiProcessorCount"]
        )
        fits = max(forward, backward) <= most and 2 * groups <= _COUNTERS
        if properties["major"] >= 8 and fits and (resident or group == 1):
            passes = 3 if precision == "float32" else 1
            macros = {"GATES": gates, "HIDDEN": H, "ROWS": rows, "PASSES": passes}
            options = tuple(f"-D{name}={value}" for name, value in macros.items())
            source = open_source(xp, "recurrence", options, cooperative=group > 1)
            return _Plan(source, (group, groups), rows, forward, backward)
    return None


def _plan_of(
    xp: Namespace, Wh: Array, packing: Packing, states: _States, *arrays: Array
) -> _Plan | None:
    """Return the plan for these arrays, or None where the reference has to run."""
    H, N = Wh.shape[0], packing.captions
    if not (packing.even and len(packing.rows) > 1 and N) or H % 4 or H > _LARGEST:
        return None
    if {Wh.dtype, *(array.dtype for array in arrays)} != {_FLOAT32}:
        return None
    if not (has_rows(Wh) and all(array.flags.c_contiguous for array in arrays)):
        return None
    if any(after.data.ptr != before.data.ptr + 4 * N * H for before, after in states):
        return None
    device = xp.cuda.runtime.getDevice()
    return _plan(xp, device, Wh.shape[1] // H, N, H, current_precision())


@functools.cache
def _counters(xp: Namespace, device: int) -> Array:
    """Return the counters at which blocks wait for each other: zero before and after a launch.

    A device has one array of them, so that only one recurrence may run on it at a time.
    """
    return xp.zeros(_COUNTERS, dtype=numpy.uint32)


def _register(cell: Cell) -> None:
    """Let one launch run all steps of a cell; where a cell lacks an array, any is passed."""

    def kept(run: Unrolled) -> Array:
        return next((run.more[name] for name in cell.kept), run.gates)

    def further(run: Unrolled) -> _States:
        return tuple((run.more[f"{name}0"], run.more[name]) for name in cell.states[1:])

    def sizes(Wh: Array, packing: Packing) -> tuple[Any, ...]:
        return int32(len(packing.rows)), int32(packing.captions), row_stride(Wh)

    @cell.unroll.version("cupy")
    def forward(
        xp: Namespace, run: Unrolled, b: Array | None, weights: Weights, packing: Packing
    ) -> None:
        Wh, gates, last = weights["Wh"], run.gates, kept(run)
        bn = next((weights[name] for name in cell.biases), gates)
        states = ((run.prev_h, run.h), *further(run))
        (h, _), (c, _) = states[0], states[-1]
        plan = _plan_of(xp, Wh, packing, states, gates, gates if b is None else b, bn, h, c, last)
        if plan is None:
            cell.unroll.reference(xp, run, b, weights, packing)
            return
        if b is None:
            b = xp.zeros(gates.shape[1], dtype=gates.dtype)
        counters = _counters(xp, xp.cuda.runtime.getDevice())
        arrays = (Wh, b, bn, gates, h, c, last, counters)
        plan.source.launch(
            "forward", plan.blocks, _THREADS, *sizes(Wh, packing), *arrays, shared=plan.forward
        )

    @cell.unroll_backward.version("cupy")
    def backward(
        xp: Namespace, dh: Array, run: Unrolled, weights: Weights, dax: Array, dah: Array,
        back: Array, packing: Packing,
    ) -> None:  # fmt: skip
        Wh, gates, last, states = weights["Wh"], run.gates, kept(run), further(run)
        h = run.prev_h if cell.direct else run.h
        c = states[0][0] if states else h
        plan = _plan_of(xp, Wh, packing, states, dh, gates, h, c, last, dax, dah, back)
        if plan is None:
            cell.unroll_backward.reference(xp, dh, run, weights, dax, dah, back, packing)
            return
        counters = _counters(xp, xp.cuda.runtime.getDevice())
        group, groups = plan.blocks
        parts = xp.empty((2 * groups * group * group, plan.rows * _UNITS), dtype=numpy.float32)
        arrays = (Wh, dh, gates, h, c, last, dax, dah, back, parts, counters)
        plan.source.launch(
            "backward", plan.blocks, _THREADS, *sizes(Wh, packing), *arrays, shared=plan.backward
        )


for _cell in (RNN, LSTM, GRU):
    _register(_cell)
