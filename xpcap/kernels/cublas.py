"""Matrix products by cuBLAS, called without CuPy, which refuses them while a graph is captured.

cuBLAS knows columns first; a row-first matrix is the transpose of a column-first one, so that
C = A B is asked for as C^T = B^T A^T, with nothing copied.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy

from xpcap.backend import Array, Namespace
from xpcap.errors import BackendError

_NORMAL, _TRANSPOSED = 0, 1  # cublasOperation_t
_DEFAULT_ALGORITHM = -1
_LAYOUTS = 4096  # kept at most: of a step's products, where N and the number of words vary
WORKSPACE_BYTES = 32 * 2**20
PRECISIONS = ("float32", "tf32", "bf16")


class _Numbers(NamedTuple):
    """A dtype as cuBLAS takes it, and references to alpha = 1 and beta = 0."""

    data_type: int  # cudaDataType_t
    compute: Mapping[str, int]  # cublasComputeType_t, by precision
    one: Any
    zero: Any


_NUMBERS = {
    numpy.dtype(dtype): _Numbers(data_type, compute, ctypes.byref(c(1)), ctypes.byref(c(0)))
    for dtype, c, data_type, compute in (
        (numpy.float32, ctypes.c_float, 0, {"float32": 68, "tf32": 77, "bf16": 75}),
        (numpy.float64, ctypes.c_double, 1, dict.fromkeys(PRECISIONS, 70)),
    )
}


@functools.lru_cache(_LAYOUTS)
def _gemm_layout(
    itemsize: int,
    a_shape: tuple[int, int],
    a_strides: tuple[int, int],
    b_shape: tuple[int, int],
    b_strides: tuple[int, int],
    out_shape: tuple[int, int],
    out_strides: tuple[int, int],
) -> tuple[int, ...] | None:
    """Lay out `out (M, N) = a (M, K) b (K, N)` for cuBLAS, once for arrays of the same layout.

    Returns both transpositions, m, n, k and the leading dimensions of C (m, n) = op(A) op(B),
    columns first: A is `b` and B is `a`. None for arrays of which neither the rows nor the columns
    are contiguous, as those of matrices, their transposes and slices of both are.
    """
    (M, K), N = a_shape, b_shape[1]
    left, right = _layout(itemsize, b_shape, b_strides), _layout(itemsize, a_shape, a_strides)
    result = _layout(itemsize, out_shape, out_strides)
    if left is None or right is None or result is None or result[0] == _TRANSPOSED:
        return None
    return left[0], right[0], N, M, K, left[1], right[1], result[1]


def _layout(
    itemsize: int, shape: tuple[int, int], strides: tuple[int, int]
) -> tuple[int, int] | None:
    """Return how a column-first reader sees a row-first matrix, and its leading dimension.

    `_NORMAL` stands for contiguous rows: what cuBLAS then reads is the transpose, as intended.
    """
    rows, columns = shape
    across, along = (stride // itemsize for stride in strides)
    if columns == 1 or along == 1:
        lead = across if rows > 1 else columns
        if lead >= columns and (columns > 1 or along >= 1):
            return _NORMAL, max(lead, 1)
    if rows == 1 or across == 1:
        lead = along if columns > 1 else rows
        if lead >= rows:
            return _TRANSPOSED, max(lead, 1)
    return None


class CuBLAS:
    """A handle of cuBLAS, a shared library, on one device, with the workspace of its products.

    It is for one thread and one stream at a time: products that ran on two streams together would
    share the workspace, and two threads could change the handle's stream under each other.
    """

    def __init__(self, library: Any, xp: Namespace) -> None:
        self._library = library
        self._xp = xp
        self._handle = ctypes.c_void_p()
        self._check(library.cublasCreate_v2(ctypes.byref(self._handle)), "cublasCreate")
        self._workspace = xp.empty(WORKSPACE_BYTES, dtype=numpy.uint8)
        self._stream: int | None = None  # a pointer

    def product(self, a: Array, b: Array, out: Array, precision: str) -> None:
        """Write `a b` into `out` on the current stream; CuPy multiplies what cuBLAS does not take.

        `precision` says how float32 factors are rounded before they are multiplied; sums are
        float32. Raises `BackendError` if cuBLAS reports an error.
        """
        numbers = _NUMBERS.get(a.dtype) if a.dtype == b.dtype == out.dtype else None
        gemm = _gemm_layout(
            a.itemsize, a.shape, a.strides, b.shape, b.strides, out.shape, out.strides
        )
        if numbers is None or gemm is None:
            self._xp.matmul(a, b, out=out)
            return
        transpose_a, transpose_b, m, n, k, lda, ldb, ldc = gemm
        if 0 in (m, n, k):
            out[...] = 0
            return
        self._use_current_stream()
        status = self._library.cublasGemmEx(
            self._handle, transpose_a, transpose_b, m, n, k,
            numbers.one, _pointer(b), numbers.data_type, lda,
            _pointer(a), numbers.data_type, ldb,
            numbers.zero, _pointer(out), numbers.data_type, ldc,
            numbers.compute[precision], _DEFAULT_ALGORITHM,
        )  # fmt: skip
        if status:
            raise BackendError(
                f"cublasGemmEx of {a.shape} and {b.shape} failed with status {status}"
            )

    def stacked(self, a: Array, b: Array, out: Array, precision: str) -> None:
        """Do the same for stacks of matrices, `(G, A, M, K)` and `(G, A, K, N)`, G at a time."""
        numbers = _NUMBERS.get(a.dtype) if a.dtype == b.dtype == out.dtype else None
        gemm = _gemm_layout(
            a.itemsize, a.shape[2:], a.strides[2:], b.shape[2:], b.strides[2:],
            out.shape[2:], out.strides[2:],
        )  # fmt: skip
        if numbers is None or gemm is None:
            out[...] = self._xp.matmul(a, b)
            return
        transpose_a, transpose_b, m, n, k, lda, ldb, ldc = gemm
        G, A = out.shape[:2]
        if 0 in (m, n, k, G):
            out[...] = 0
            return
        self._use_current_stream()
        of_a, of_b, of_out = (
            ctypes.c_longlong(array.strides[0] // array.itemsize) for array in (a, b, out)
        )
        for number in range(A):
            status = self._library.cublasGemmStridedBatchedEx(
                self._handle, transpose_a, transpose_b, m, n, k,
                numbers.one, _pointer(b, number), numbers.data_type, lda, of_b,
                _pointer(a, number), numbers.data_type, ldb, of_a,
                numbers.zero, _pointer(out, number), numbers.data_type, ldc, of_out,
                G, numbers.compute[precision], _DEFAULT_ALGORITHM,
            )  # fmt: skip
            if status:
                raise BackendError(
                    f"cublasGemmStridedBatchedEx of {a.shape} and {b.shape} failed with status"
                    f" {status}"
                )

    def _use_current_stream(self) -> None:
        """Set the handle's stream if it changed, and the workspace, which that resets."""
        stream = self._xp.cuda.get_current_stream().ptr
        if stream == self._stream:
            return
        self._stream = None  # unknown, if one of the calls fails
        self._check(
            self._library.cublasSetStream_v2(self._handle, ctypes.c_void_p(stream)),
            "cublasSetStream",
        )
        self._check(
            self._library.cublasSetWorkspace_v2(
                self._handle, _pointer(self._workspace), ctypes.c_size_t(WORKSPACE_BYTES)
            ),
            "cublasSetWorkspace",
        )
        self._stream = stream

    def _check(self, status: int, call: str) -> None:
        if status:
            raise BackendError(f"{call} failed with status {status}")


def _pointer(array: Array, second: int = 0) -> ctypes.c_void_p:
    """Return where an array begins, or the part of it with this index of its second axis."""
    return ctypes.c_void_p(array.data.ptr + (second and second * array.strides[1]))


@functools.cache
def open_cublas(xp: Namespace, device: int) -> CuBLAS | None:
    """Return the handle of a device, or None where the library cannot be found by itself.

    CuPy 14 brings `cuda.pathfinder`, which finds NVIDIA's libraries wherever they are installed.
    """
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        library = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    except (ImportError, OSError, RuntimeError):
        return None
    return CuBLAS(library, xp)
