"""Matrix products by cuBLAS, called without CuPy, which refuses them while a graph is captured.

cuBLAS knows columns first; a row-first matrix is the transpose of a column-first one, so that
C = A B is asked for as C^T = B^T A^T, with nothing copied.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import numpy

from xpcap.backend import Array, Namespace
from xpcap.errors import BackendError

_NORMAL, _TRANSPOSED = 0, 1  # cublasOperation_t
_TYPES = {"float32": 0, "float64": 1}  # cudaDataType_t: CUDA_R_32F, CUDA_R_64F
_COMPUTE = {"float32": 68, "tf32": 77, "bf16": 75, "float64": 70}  # cublasComputeType_t
_DEFAULT_ALGORITHM = -1
WORKSPACE_BYTES = 32 * 2**20
PRECISIONS = ("float32", "tf32", "bf16")


class Gemm(NamedTuple):
    """One product as cuBLAS takes it: C (m, n) = op(A) op(B), columns first; pointers apart."""

    transpose_a: int
    transpose_b: int
    m: int
    n: int
    k: int
    a: Array
    lda: int
    b: Array
    ldb: int
    c: Array
    ldc: int


def gemm_arguments(a: Array, b: Array, out: Array) -> Gemm | None:
    """Lay out `out (M, N) = a (M, K) b (K, N)` for cuBLAS.

    Parameters
    ----------
    a, b
        Arrays whose rows or whose columns are contiguous, as those of matrices, their transposes
        and slices of both are.
    out
        Rows contiguous.

    Returns
    -------
    Gemm or None
        None where an array has another layout.
    """
    (M, K), N = a.shape, b.shape[1]
    left, right, result = _layout(b), _layout(a), _layout(out)
    if left is None or right is None or result is None or result[0] == _TRANSPOSED:
        return None
    return Gemm(left[0], right[0], N, M, K, b, left[1], a, right[1], out, result[1])


def _layout(matrix: Array) -> tuple[int, int] | None:
    """Return how a row-first matrix is seen by who reads columns first, and its leading dimension.

    `_NORMAL` stands for contiguous rows: what cuBLAS then reads is the transpose, as it shall.
    """
    rows, columns = matrix.shape
    across, along = (stride // matrix.itemsize for stride in matrix.strides)
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
    """A handle of cuBLAS on one device.

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

    def product(self, a: Array, b: Array, out: Array, precision: str) -> None:
        """Write `a b` into `out` on the current stream.

        Parameters
        ----------
        a, b, out
            Of one dtype, float32 or float64; layouts as `gemm_arguments` takes them.
        precision
            `"float32"`, `"tf32"` or `"bf16"`: how float32 factors are rounded before they are
            multiplied; sums are float32.

        Raises
        ------
        BackendError
            If cuBLAS reports an error.
        """
        gemm = gemm_arguments(a, b, out)
        if gemm is None or not a.dtype == b.dtype == out.dtype or a.dtype.name not in _TYPES:
            self._xp.matmul(a, b, out=out)
            return
        if 0 in (gemm.m, gemm.n, gemm.k):
            out[...] = 0
            return
        double = a.dtype.name == "float64"
        kind = _TYPES[a.dtype.name]
        number = ctypes.c_double if double else ctypes.c_float
        stream = ctypes.c_void_p(self._xp.cuda.get_current_stream().ptr)
        self._check(self._library.cublasSetStream_v2(self._handle, stream), "cublasSetStream")
        self._check(
            self._library.cublasSetWorkspace_v2(
                self._handle, _pointer(self._workspace), ctypes.c_size_t(WORKSPACE_BYTES)
            ),
            "cublasSetWorkspace",
        )
        self._check(
            self._library.cublasGemmEx(
                self._handle, gemm.transpose_a, gemm.transpose_b, gemm.m, gemm.n, gemm.k,
                ctypes.byref(number(1)), _pointer(gemm.a), kind, gemm.lda,
                _pointer(gemm.b), kind, gemm.ldb,
                ctypes.byref(number(0)), _pointer(gemm.c), kind, gemm.ldc,
                _COMPUTE["float64" if double else precision], _DEFAULT_ALGORITHM,
            ),
            f"cublasGemmEx of {a.shape} and {b.shape}",
        )  # fmt: skip

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
