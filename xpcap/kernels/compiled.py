"""Operations compiled for the CPU by numba (the extra `fast`), in single precision.

Each makes one pass over memory where NumPy makes several, and releases the GIL, so that threads
with a share of a batch each run side by side. What was measured against NumPy's own version, at 128
captions, 512 hidden units and 1,004 words on one thread, stands beside each: milliseconds per
training step, NumPy's first.

Numba vectorizes a loop over whole rows, not one over parts of a row; hence the views. It needs
`error_model="numpy"` for divisions, and only such freedoms of floating-point arithmetic are given
to it as leave NaN and infinity alone.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numba.extending
import numpy
from llvmlite import ir

from xpcap.backend import Array, Namespace
from xpcap.kernels import blas
from xpcap.kernels.in_place import FEW
from xpcap.kernels.top import best_continuations
from xpcap.kernels.updates import adam_update
from xpcap.layers.embedding import add_rows
from xpcap.layers.gru import GRU, gru_cell, gru_cell_gradient
from xpcap.layers.loss import softmax_cross_entropy
from xpcap.layers.lstm import LSTM, lstm_cell, lstm_cell_gradient
from xpcap.layers.recurrence import Cell, Packing, Unrolled, Weights
from xpcap.layers.rnn import RNN, rnn_cell, rnn_cell_gradient
from xpcap.operations import Operation
from xpcap.subnormals import lowest
from xpcap.workspace import passing

F = numpy.float32
I = numpy.int32  # noqa: E741
_LOWEST = F(lowest(numpy.dtype(F)))
_TINY = numpy.finfo(F).tiny
_OPTIONS: dict[str, Any] = {
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
    "error_model": "numpy",
    "nogil": True,
    "forceinline": True,
}
"""A function that another one calls, if it is not inlined, has two copies that are optimized
differently; which one is called depends on whether they were compiled or loaded from numba's cache.
"""


def _kept(function: Callable[..., Any]) -> Any:
    """Compile a function once for all processes, or in each if there is nowhere to keep it."""
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:
        return numba.njit(**_OPTIONS)(function)


def _compiled(made: Operation[Any, Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a compiled function run an operation wherever all arrays are contiguous and float32."""

    def register(function: Callable[..., Any]) -> Any:
        fast, plain = _kept(function), made.versions.get("numpy", made.reference)

        @functools.wraps(made.reference)
        def run(xp: Namespace, *args: Any, **kwargs: Any) -> Any:
            arrays = (*args, *kwargs.values())
            chosen = fast if all(map(_fits, arrays)) else functools.partial(plain, xp)
            return chosen(*args, **kwargs)

        made.versions["numba"] = run
        return fast

    return register


def _fits(argument: Any) -> bool:
    if not isinstance(argument, numpy.ndarray):
        return True
    return argument.flags.c_contiguous and (argument.dtype == F or argument.dtype.kind in "bi")


def _inline(function: Callable[..., Any]) -> Callable[..., Any]:
    made: Callable[..., Any] = numba.njit(inline="always", **_OPTIONS)(function)
    return made


@_inline
def _exp_parts(x: Any) -> Any:
    """Return q and s with e^x = s (1 + q) and s a power of two.

    x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 in two parts; e^r = 1 + r + r^2 P(r), where P is of
    degree 4 and exact at the Chebyshev nodes of that interval: e^r is right to 1.1e-8. The terms
    are summed in pairs, for a processor waits for one result before it can use it in the next.
    """
    x = min(max(x, F(-87.0)), F(88.0))
    n = numpy.floor(x * F(1.44269504) + F(0.5))
    r = x - n * F(0.693359375) + n * F(2.12194440e-4)
    square = r * r
    p = F(0.5) + F(0.16666578) * r
    p += square * ((F(0.041666556) + F(0.008363173) * r) + square * F(0.0013926176))
    return square * p + r, I((I(n) + I(127)) << I(23)).view(F)


@_inline
def _normal(x: Any) -> Any:
    """Return x, and 0 if it is subnormal."""
    return F(0) if abs(x) < _TINY else x


@_inline
def _exp(x: Any) -> Any:
    q, s = _exp_parts(x)
    return s * q + s


@_inline
def _power(x: Any) -> Any:
    """Return e^x, and 0 where x is below `lowest`."""
    q, s = _exp_parts(x)
    return F(0) if x < _LOWEST else s * q + s


@_inline
def _logistic(x: Any) -> Any:
    return F(1) / (F(1) + _exp(-x))


@_inline
def _tanh(x: Any) -> Any:
    """Return x P(x^2) / Q(x^2), both of degree 4; beyond 8.2 tanh differs from 1 by rounding.

    Of all such fractions this one has the smallest largest relative error in exact arithmetic, 8e-9
    (weighted least squares, the weights raised where the error is large, as Lawson does).
    """
    x = min(max(x, F(-8.2)), F(8.2))
    s = x * x
    p = F(3.5566805e-3) + s * (F(2.1637180e-5) + s * F(1.4840427e-8))
    q = F(2.6108276e-2) + s * (F(3.3864316e-4) + s * F(8.3705503e-7))
    p = F(1) + s * (F(0.13432118) + s * p)
    q = F(1) + s * (F(0.46765444) + s * q)
    return x * p / q


@_compiled(rnn_cell)
def _rnn_cell(gates: Array, ah: Array, h: Array) -> None:
    for n in range(h.shape[0]):
        a, b, new = gates[n], ah[n], h[n]
        for j in range(new.size):
            new[j] = _tanh(a[j] + b[j])


@_compiled(rnn_cell_gradient)
def _rnn_cell_gradient(above: Array, back: Array, h: Array, da: Array) -> None:
    for n in range(above.shape[0]):
        a, b, t, d = above[n], back[n], h[n], da[n]
        for j in range(a.size):
            d[j] = _normal((a[j] + b[j]) * (F(1) - t[j] * t[j]))


@_compiled(lstm_cell)
def _lstm_cell(gates: Array, ah: Array, prev_c: Array, c: Array, tanh_c: Array, h: Array) -> None:
    """5.1 to 1.8 ms."""
    N, H = prev_c.shape
    for n in range(N):
        a, more = gates[n, : 3 * H], ah[n, : 3 * H]
        for j in range(3 * H):
            a[j] = _normal(_logistic(a[j] + more[j]))
        g, more = gates[n, 3 * H :], ah[n, 3 * H :]
        for j in range(H):
            g[j] = _tanh(g[j] + more[j])
        i, f, o = gates[n, :H], gates[n, H : 2 * H], gates[n, 2 * H : 3 * H]
        before, after, t, new = prev_c[n], c[n], tanh_c[n], h[n]
        for j in range(H):
            after[j] = _normal(f[j] * before[j] + i[j] * g[j])
            t[j] = _tanh(after[j])
            new[j] = _normal(o[j] * t[j])


@_compiled(lstm_cell_gradient)
def _lstm_cell_gradient(
    above: Array,
    back: Array,
    dc: Array,
    gates: Array,
    prev_c: Array,
    tanh_c: Array,
    da: Array,
) -> None:
    """7.6 to 1.9 ms."""
    N, H = prev_c.shape
    for n in range(N):
        i, f = gates[n, :H], gates[n, H : 2 * H]
        o, g = gates[n, 2 * H : 3 * H], gates[n, 3 * H :]
        di, df, do, dg = da[n, :H], da[n, H : 2 * H], da[n, 2 * H : 3 * H], da[n, 3 * H :]
        a, b, d, c, t = above[n], back[n], dc[n], prev_c[n], tanh_c[n]
        for j in range(H):
            dh = a[j] + b[j]
            e = d[j] + dh * o[j] * (F(1) - t[j] * t[j])
            di[j] = _normal(e * g[j] * i[j] * (F(1) - i[j]))
            df[j] = _normal(e * c[j] * f[j] * (F(1) - f[j]))
            do[j] = _normal(dh * t[j] * o[j] * (F(1) - o[j]))
            dg[j] = _normal(e * i[j] * (F(1) - g[j] * g[j]))
            d[j] = _normal(e * f[j])


@_compiled(gru_cell)
def _gru_cell(gates: Array, ah: Array, bn: Array, prev_h: Array, ah_n: Array, h: Array) -> None:
    N, H = prev_h.shape
    for n in range(N):
        a, more = gates[n, : 2 * H], ah[n, : 2 * H]
        for j in range(2 * H):
            a[j] = _normal(_logistic(a[j] + more[j]))
        r, z, new = gates[n, :H], gates[n, H : 2 * H], gates[n, 2 * H :]
        more, kept, before, after = ah[n, 2 * H :], ah_n[n], prev_h[n], h[n]
        for j in range(H):
            kept[j] = more[j] + bn[j]
            new[j] = _tanh(_normal(new[j] + r[j] * kept[j]))
            after[j] = _normal(new[j] + z[j] * (before[j] - new[j]))


@_compiled(gru_cell_gradient)
def _gru_cell_gradient(
    above: Array, back: Array, gates: Array, ah_n: Array, prev_h: Array, dax: Array, dah: Array
) -> None:
    N, H = prev_h.shape
    for n in range(N):
        r, z, new = gates[n, :H], gates[n, H : 2 * H], gates[n, 2 * H :]
        dr, dz, dn = dax[n, :H], dax[n, H : 2 * H], dax[n, 2 * H :]
        hr, hz, hn = dah[n, :H], dah[n, H : 2 * H], dah[n, 2 * H :]
        a, b, kept, before = above[n], back[n], ah_n[n], prev_h[n]
        for j in range(H):
            dh = a[j] + b[j]
            e = dh * (F(1) - z[j]) * (F(1) - new[j] * new[j])
            dn[j] = _normal(e)
            dr[j] = _normal(e * kept[j] * r[j] * (F(1) - r[j]))
            dz[j] = _normal(dh * (before[j] - new[j]) * z[j] * (F(1) - z[j]))
            b[j] = _normal(dh * z[j])
        for j in range(H):
            hr[j] = dr[j]
            hz[j] = dz[j]
            hn[j] = _normal(dn[j] * r[j])


# The recurrences: BLAS's products and the cells above, without Python between the steps, so that
# the GIL is not taken and other threads can compute. Milliseconds of both directions, on one thread
# and step by step in Python first: LSTM 68.2 to 63.1, GRU 55.2 to 51.1, vanilla 16.7 to 15.2.


def _generate_call(typing: Any, address: Any, arguments: Any) -> Any:
    """Generate the call of a C function that returns nothing, by its address.

    Integers are passed as 64 bits, of which a function that takes 32 reads the lower half.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        passed = [builder.extract_value(values[1], k) for k in range(len(arguments))]
        function = ir.FunctionType(ir.VoidType(), [value.type for value in passed])
        builder.call(builder.inttoptr(values[0], function.as_pointer()), passed)
        return context.get_dummy_value()

    return numba.void(address, arguments), generate


_call: Any = numba.extending.intrinsic(_generate_call)


@_kept
def _product(routines: tuple[int, int], a: Array, b: Array, scale: float, out: Array) -> None:
    """Write a b + scale out into `out`; of few rows each by itself, as `product` does."""
    (M, K), N = a.shape, b.shape[1]
    A, B, C = a.ctypes.data, b.ctypes.data, out.ctypes.data
    row_major, normal, transposed, alpha, beta = 101, 111, 112, F(1), F(scale)
    if M > FEW:
        _call(routines[0], (row_major, normal, normal, M, N, K, alpha, A, K, B, N, beta, C, N))
        return
    for m in range(M):
        x, y = A + 4 * K * m, C + 4 * N * m
        _call(routines[1], (row_major, transposed, K, N, alpha, B, N, x, 1, beta, y, 1))


@functools.cache
def _routines() -> tuple[int, int] | None:
    """Return the addresses of BLAS's routines, or None unless they are found and correct."""
    found = blas.addresses()
    a, b = numpy.arange(15, dtype=F).reshape(5, 3), numpy.arange(6, dtype=F).reshape(3, 2)
    for rows in (1, 5):
        out = numpy.ones((rows, 2), F)
        if found is not None:
            _product(found, a[:rows], b, 2.0, out)
        if not numpy.array_equal(out, a[:rows] @ b + 2):
            return None
    return found


def _unrolled(made: Operation[Any, None]) -> Callable[[Callable[..., Any]], None]:
    """Let a compiled function run all the steps of a recurrence, `Cell.unroll` or its gradient.

    The function takes BLAS's routines; the bounds of the steps, of which t has the rows from
    `bounds[t]` to `bounds[t + 1]`; memory for h Wh `(N, kH)` or, if it computes gradients, for
    the transpose of Wh; and arrays by their names.
    """

    def register(function: Callable[..., Any]) -> None:
        fast, names = _kept(function), list(inspect.signature(function).parameters)[3:]

        def compute(run: Unrolled, packing: Packing, shape: tuple[int, ...], more: Weights) -> bool:
            given = {**run._asdict(), **run.more, **more}
            arrays, routines = [given[name] for name in names], _routines()
            if routines is None or not all(map(_fits, arrays)):
                return False
            bounds = numpy.array([0, *(rows.stop for rows in packing.rows)])
            fast(routines, bounds, passing(numpy, F).empty("unrolled", *shape), *arrays)
            return True

        def forward(
            xp: Namespace, run: Unrolled, b: Array | None, weights: Weights, packing: Packing
        ) -> None:
            if b is not None:
                run.gates[...] += b
            if not compute(run, packing, (packing.captions, run.gates.shape[1]), weights):
                made.reference(xp, run, None, weights, packing)

        def backward(
            xp: Namespace,
            dh: Array,
            run: Unrolled,
            weights: Weights,
            dax: Array,
            dah: Array,
            back: Array,
            packing: Packing,
        ) -> None:
            gradients = {"dh": dh, "da": dah, "dax": dax, "dah": dah, "back": back}
            if not compute(run, packing, weights["Wh"].shape[::-1], {**weights, **gradients}):
                made.reference(xp, dh, run, weights, dax, dah, back, packing)

        made.version("numba")(backward if "back" in names else forward)

    return register


@_kept
def _next_product(
    routines: tuple[int, int], bounds: Array, t: int, ah: Array, Wh: Array, prev_h: Array, h: Array
) -> Any:
    """Multiply the state before step t, after copying it if need be; return the rows and h Wh."""
    rows, n = slice(bounds[t], bounds[t + 1]), bounds[t + 1] - bounds[t]
    before = prev_h[rows]
    if t > 0:
        after = h[bounds[t - 1] : bounds[t - 1] + n]
        for m in range(n if after.ctypes.data != before.ctypes.data else 0):
            new, old = before[m], after[m]
            for j in range(new.size):
                new[j] = old[j]
    _product(routines, before, Wh, 0.0, ah[:n])
    return rows, ah[:n]


@_kept
def _transpose(a: Array, out: Array) -> None:
    """Write the transpose, by 16 numbers side by side: whole cache lines."""
    for first in range(0, a.shape[0], 16):
        part = a[first : first + 16]
        for j in range(a.shape[1]):
            row, column = out[j, first : first + 16], part[:, j]
            for k in range(row.size):
                row[k] = column[k]


@_unrolled(RNN.unroll)
def _rnn_recurrence(
    routines: Any, bounds: Array, ah: Array, gates: Array, Wh: Array, prev_h: Array, h: Array
) -> None:
    for t in range(bounds.size - 1):
        rows, product = _next_product(routines, bounds, t, ah, Wh, prev_h, h)
        _rnn_cell(gates[rows], product, h[rows])


@_unrolled(RNN.unroll_backward)
def _rnn_recurrence_gradient(
    routines: Any, bounds: Array, Wh_T: Array, dh: Array, Wh: Array, h: Array, da: Array,
    back: Array,
) -> None:  # fmt: skip
    _transpose(Wh, Wh_T)
    for t in range(bounds.size - 2, -1, -1):
        rows = slice(bounds[t], bounds[t + 1])
        dstate = back[: bounds[t + 1] - bounds[t]]
        _rnn_cell_gradient(dh[rows], dstate, h[rows], da[rows])
        _product(routines, da[rows], Wh_T, 0.0, dstate)


@_unrolled(LSTM.unroll)
def _lstm_recurrence(
    routines: Any, bounds: Array, ah: Array, gates: Array, Wh: Array, prev_h: Array, h: Array,
    c0: Array, c: Array, tanh_c: Array,
) -> None:  # fmt: skip
    cell = c0
    for t in range(bounds.size - 1):
        rows, product = _next_product(routines, bounds, t, ah, Wh, prev_h, h)
        _lstm_cell(gates[rows], product, cell[: len(product)], c[rows], tanh_c[rows], h[rows])
        cell = c[rows]


@_unrolled(LSTM.unroll_backward)
def _lstm_recurrence_gradient(
    routines: Any, bounds: Array, Wh_T: Array, dh: Array, Wh: Array, gates: Array, c0: Array,
    c: Array, tanh_c: Array, da: Array, back: Array,
) -> None:  # fmt: skip
    _transpose(Wh, Wh_T)
    dc = numpy.zeros_like(back)
    for t in range(bounds.size - 2, -1, -1):
        rows, n = slice(bounds[t], bounds[t + 1]), bounds[t + 1] - bounds[t]
        cell = c[bounds[t - 1] : bounds[t]] if t > 0 else c0
        _lstm_cell_gradient(
            dh[rows], back[:n], dc[:n], gates[rows], cell[:n], tanh_c[rows], da[rows]
        )
        _product(routines, da[rows], Wh_T, 0.0, back[:n])


@_unrolled(GRU.unroll)
def _gru_recurrence(
    routines: Any, bounds: Array, ah: Array, gates: Array, Wh: Array, bn: Array, prev_h: Array,
    h: Array, ah_n: Array,
) -> None:  # fmt: skip
    for t in range(bounds.size - 1):
        rows, product = _next_product(routines, bounds, t, ah, Wh, prev_h, h)
        _gru_cell(gates[rows], product, bn, prev_h[rows], ah_n[rows], h[rows])


@_unrolled(GRU.unroll_backward)
def _gru_recurrence_gradient(
    routines: Any, bounds: Array, Wh_T: Array, dh: Array, Wh: Array, gates: Array, ah_n: Array,
    prev_h: Array, dax: Array, dah: Array, back: Array,
) -> None:  # fmt: skip
    _transpose(Wh, Wh_T)
    for t in range(bounds.size - 2, -1, -1):
        rows = slice(bounds[t], bounds[t + 1])
        dstate = back[: bounds[t + 1] - bounds[t]]
        _gru_cell_gradient(
            dh[rows], dstate, gates[rows], ah_n[rows], prev_h[rows], dax[rows], dah[rows]
        )
        _product(routines, dah[rows], Wh_T, 1.0, dstate)


@_compiled(softmax_cross_entropy)
def _softmax_cross_entropy(
    scores: Array,
    bias: Array,
    targets: Array,
    scale: Array,
    losses: Array,
    smoothing: float = 0.0,
) -> None:
    """2.7 to 1.3 ms."""
    M, V = scores.shape
    rest, share = F(1 - smoothing), F(smoothing / V)
    lanes = numpy.empty(16, F)
    for m in range(M):
        row, weight = scores[m], scale[m]
        if weight == 0:
            row[:] = F(0)
            losses[m] = F(0)
            continue
        lanes[:] = F(-numpy.inf)
        for first in range(0, V - 15, 16):
            for lane in range(16):
                x = row[first + lane] + bias[first + lane]
                row[first + lane] = x
                lanes[lane] = max(lanes[lane], x)
        top = lanes.max()
        for j in range(V // 16 * 16, V):
            row[j] += bias[j]
            top = max(top, row[j])
        expected = rest * (row[targets[m]] - top)
        if share > 0:
            sum_of_scores = F(0)
            for j in range(V):
                sum_of_scores += row[j] - top
            expected += share * sum_of_scores
        total = F(0)
        for j in range(V):
            row[j] = _power(row[j] - top)
            total += row[j]
        losses[m] = weight * (numpy.log(total) - expected)
        factor, shift = weight / total, weight * share
        for j in range(V):
            row[j] = row[j] * factor - shift
        row[targets[m]] -= weight * rest


@_compiled(best_continuations)
def _best_continuations(
    values: Array, totals: Array, places: Array, images: int, width: int
) -> tuple[Array, Array, Array]:
    """Insertion into what is sorted already, after a look whether 16 sums hold anything better."""
    R, V = values.shape
    found = numpy.full((images, width), F(-numpy.inf))
    parents, words = numpy.zeros((2, images, width), numpy.int64)
    for m in range(R):
        image, parent = divmod(places[m], width)
        best, of, tokens = found[image], parents[image], words[image]
        row, total = values[m], totals[m]
        for first in range(0, V, 16):
            part = row[first : min(first + 16, V)]
            better = False
            for j in range(part.size):
                better |= part[j] + total > best[width - 1]
            if not better:
                continue
            for j in range(part.size):
                value, k = part[j] + total, width
                while k > 0 and value > best[k - 1]:
                    k -= 1
                if k < width:
                    for other in range(width - 1, k, -1):
                        best[other], of[other] = best[other - 1], of[other - 1]
                        tokens[other] = tokens[other - 1]
                    best[k], of[k], tokens[k] = value, parent, first + j
    return found, parents, words


def _advancing(cell: Cell) -> Callable[[Callable[..., Any]], None]:
    """Let a compiled function, which takes arrays by their names, run `Cell.advance`."""

    def register(function: Callable[..., Any]) -> None:
        fast, names = _kept(function), list(inspect.signature(function).parameters)

        @cell.advance.version("numba")
        def run(
            xp: Namespace,
            ax: Array,
            ah: Array,
            state: Sequence[Array],
            weights: Weights,
            words: Array | None,
            parents: Array | None,
            next_state: Sequence[Array],
        ) -> None:
            own = numpy.arange(len(next_state[0]))
            given = {**weights, "ax": ax, "words": own if words is None else words}
            given |= {"ah": ah, "parents": own if parents is None else parents}
            for name, before, after in zip(cell.states, state, next_state, strict=True):
                given |= {f"prev_{name}": before, f"next_{name}": after}
            arrays = [given[name] for name in names]
            if all(map(_fits, arrays)):
                fast(*arrays)
            else:
                cell.advance.reference(xp, ax, ah, state, weights, words, parents, next_state)

    return register


@_advancing(RNN)
def _rnn_advance(ax: Array, ah: Array, words: Array, parents: Array, next_h: Array) -> None:
    for n in range(words.size):
        a, b, h = ax[words[n]], ah[parents[n]], next_h[n]
        for j in range(h.size):
            h[j] = _tanh(a[j] + b[j])


@_advancing(LSTM)
def _lstm_advance(
    ax: Array,
    ah: Array,
    prev_c: Array,
    words: Array,
    parents: Array,
    next_h: Array,
    next_c: Array,
) -> None:
    H = prev_c.shape[1]
    for n in range(words.size):
        a, b = ax[words[n]], ah[parents[n]]
        ai, af, ao, ag = a[:H], a[H : 2 * H], a[2 * H : 3 * H], a[3 * H :]
        bi, bf, bo, bg = b[:H], b[H : 2 * H], b[2 * H : 3 * H], b[3 * H :]
        before, c, h = prev_c[parents[n]], next_c[n], next_h[n]
        for j in range(H):
            kept = _logistic(af[j] + bf[j]) * before[j]
            c[j] = _normal(kept + _logistic(ai[j] + bi[j]) * _tanh(ag[j] + bg[j]))
        for j in range(H):
            h[j] = _normal(_logistic(ao[j] + bo[j]) * _tanh(c[j]))


@_advancing(GRU)
def _gru_advance(
    ax: Array, ah: Array, prev_h: Array, bn: Array, words: Array, parents: Array, next_h: Array
) -> None:
    H = prev_h.shape[1]
    for n in range(words.size):
        a, b = ax[words[n]], ah[parents[n]]
        ar, az, an = a[:H], a[H : 2 * H], a[2 * H :]
        br, bz, more = b[:H], b[H : 2 * H], b[2 * H :]
        before, h = prev_h[parents[n]], next_h[n]
        for j in range(H):
            h[j] = _tanh(_normal(an[j] + _logistic(ar[j] + br[j]) * (more[j] + bn[j])))
        for j in range(H):
            h[j] = _normal(h[j] + _logistic(az[j] + bz[j]) * (before[j] - h[j]))


@_compiled(add_rows)
def _add_rows(indices: Array, rows: Array, out: Array) -> None:
    """3.1 to 0.7 ms; in the order of the rows, hence the same bits every time."""
    out[:] = F(0)
    for m in range(len(indices)):
        if indices[m] < 0:
            continue
        total, row = out[indices[m]], rows[m]
        for j in range(row.size):
            total[j] += row[j]


@_compiled(adam_update)
def _adam_update(
    w: Array,
    dw: Array,
    m: Array,
    v: Array,
    settings: Array,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
) -> None:
    """11.5 to 4.1 ms."""
    scale, rate = settings[0], settings[1]
    c1, c2 = F(1) / settings[2], F(1) / settings[3]
    b1, b2, tiny, decay = F(beta1), F(beta2), F(epsilon), F(weight_decay)
    rest1, rest2 = F(1 - beta1), F(1 - beta2)
    for k in range(w.size):
        g = scale * dw[k]
        m[k] = _normal(b1 * m[k] + rest1 * g)
        v[k] = _normal(b2 * v[k] + rest2 * g * g)
        w[k] = _normal(w[k] - rate * (m[k] * c1 / (numpy.sqrt(v[k] * c2) + tiny) + decay * w[k]))
