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
    """A dtype as cuBLAS takes it.

    A cudaDataType_t; by precision, a cublasComputeType_t; and references to alpha = 1, beta = 0.
    """

    data_type: int
    compute: Mapping[str, int]
    one: Any
    zero: Any


_NUMBERS = {
    numpy.dtype(numpy.float32): _Numbers(
        0,
        {"float32": 68, "tf32": 77, "bf16": 75},
        ctypes.byref(ctypes.c_float(1)),
        ctypes.byref(ctypes.c_float(0)),
    ),
    numpy.dtype(numpy.float64): _Numbers(
        1,
        dict.fromkeys(PRECISIONS, 70),
        ctypes.byref(ctypes.c_double(1)),
        ctypes.byref(ctypes.c_double(0)),
    ),
}


class Gemm(NamedTuple):
    """One product as cuBLAS takes it: C (m, n) = op(A) op(B), columns first.

    A is the right factor of the row-first product, and B the left one.
    """

    transpose_a: int
    transpose_b: int
    m: int
    n: int
    k: int
    lda: int
    ldb: int
    ldc: int


def gemm_layout(a: Array, b: Array, out: Array) -> Gemm | None:
    """Lay out `out (M, N) = a (M, K) b (K, N)` for cuBLAS, once for arrays of the same layout.

    Parameters
    ----------
    a, b
        Arrays of one dtype whose rows or whose columns are contiguous, as those of matrices, their
        transposes and slices of both are.
    out
        Rows contiguous.

    Returns
    -------
    Gemm or None
        None where an array has another layout.
    """
    return _gemm_layout(a.itemsize, a.shape, a.strides, b.shape, b.strides, out.shape, out.strides)


@functools.lru_cache(_LAYOUTS)
def _gemm_layout(
    itemsize: int,
    a_shape: tuple[int, int],
    a_strides: tuple[int, int],
    b_shape: tuple[int, int],
    b_strides: tuple[int, int],
    out_shape: tuple[int, int],
    out_strides: tuple[int, int],
) -> Gemm | None:
    (M, K), N = a_shape, b_shape[1]
    left, right = _layout(itemsize, b_shape, b_strides), _layout(itemsize, a_shape, a_strides)
    result = _layout(itemsize, out_shape, out_strides)
    if left is None or right is None or result is None or result[0] == _TRANSPOSED:
        return None
    return Gemm(left[0], right[0], N, M, K, left[1], right[1], result[1])


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
    """A handle of cuBLAS on one device, with the workspace of its products.

    It is for one thread and one stream at a time: products that ran on two streams together would
    share the workspace, and two threads could change the handle's stream under each other.

    Parameters
    ----------
    library
        The shared library.
    xp
        The namespace of the arrays.
    """

    def __init__(self, library: Any, xp: Namespace) -> None:
        self._library = library
        self._xp = xp
        self._handle = ctypes.c_void_p()
        self._check(library.cublasCreate_v2(ctypes.byref(self._handle)), "cublasCreate")
        self._workspace = xp.empty(WORKSPACE_BYTES, dtype=numpy.uint8)
        self._stream: int | None = None  # a pointer

    def product(self, a: Array, b: Array, out: Array, precision: str) -> None:
        """Write `a b` into `out` on the current stream.

        Parameters
        ----------
        a, b, out
            Of one dtype, float32 or float64, in layouts that `gemm_layout` takes; CuPy multiplies
            others.
        precision
            `"float32"`, `"tf32"` or `"bf16"`: how float32 factors are rounded before they are
            multiplied; sums are float32.

        Raises
        ------
        BackendError
            If cuBLAS reports an error.
        """
        numbers = _NUMBERS.get(a.dtype) if a.dtype == b.dtype == out.dtype else None
        gemm = None if numbers is None else gemm_layout(a, b, out)
        if numbers is None or gemm is None:
            self._xp.matmul(a, b, out=out)
            return
        if 0 in (gemm.m, gemm.n, gemm.k):
            out[...] = 0
            return
        self._use_current_stream()
        status = self._library.cublasGemmEx(
            self._handle, gemm.transpose_a, gemm.transpose_b, gemm.m, gemm.n, gemm.k,
            numbers.one, _pointer(b), numbers.data_type, gemm.lda,
            _pointer(a), numbers.data_type, gemm.ldb,
            numbers.zero, _pointer(out), numbers.data_type, gemm.ldc,
            numbers.compute[precision], _DEFAULT_ALGORITHM,
        )  # fmt: skip
        if status:
            raise BackendError(
                f"cublasGemmEx of {a.shape} and {b.shape} failed with status {status}"
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


def _pointer(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.data.ptr)


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
