"""Matrix products into memory that is already there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy

from xpcap.backend import Array, Namespace
from xpcap.errors import BackendError, ConfigurationError
from xpcap.kernels.cublas import PRECISIONS, open_cublas
from xpcap.layers.affine import product
from xpcap.layers.multi_head import stacked_product

_precision = "float32"


@product.version("cupy")
def _product_by_cublas(xp: Namespace, a: Array, b: Array, out: Array) -> None:
    """Our own call, which a graph can capture, in the precision that was asked for."""
    cublas = open_cublas(xp, xp.cuda.runtime.getDevice())
    if cublas is None and _precision != "float32":
        raise BackendError(f"precision '{_precision}' needs cuBLAS, which cannot be found")
    if cublas is None:
        xp.matmul(a, b, out=out)
    else:
        cublas.product(a, b, out, _precision)


@stacked_product.version("cupy")
def _stacked_product_by_cublas(xp: Namespace, a: Array, b: Array, out: Array) -> None:
    """The same for stacks of matrices."""
    cublas = open_cublas(xp, xp.cuda.runtime.getDevice())
    if cublas is None:
        out[...] = xp.matmul(a, b)
    else:
        cublas.stacked(a, b, out, _precision)


def can_be_captured(xp: Namespace, dtype: Any) -> bool:
    """Whether products of a dtype can be recorded in a CUDA graph: by our own calls alone."""
    if xp.__name__ != "cupy" or numpy.dtype(dtype).name not in ("float32", "float64"):
        return False
    return open_cublas(xp, xp.cuda.runtime.getDevice()) is not None


def check_precision(precision: str, on_gpu: bool, dtype: Any = numpy.float32) -> None:
    """Raise `ConfigurationError` if a precision is unknown or impossible.

    Only float32 is possible on a CPU, and for arrays of another `dtype`.
    """
    if precision not in PRECISIONS:
        raise ConfigurationError(
            f"precision '{precision}' is unknown; expected {', '.join(PRECISIONS)}"
        )
    if precision != "float32" and not on_gpu:
        raise ConfigurationError(f"precision '{precision}' needs a GPU; expected float32")
    if precision != "float32" and numpy.dtype(dtype) != numpy.float32:
        raise ConfigurationError(f"precision '{precision}' needs parameters of float32")


def current_precision() -> str:
    """Return how the factors of products are rounded now."""
    return _precision


@contextlib.contextmanager
def multiplied_in(precision: str) -> Iterator[None]:
    """Round the factors of products inside to tf32 or bf16, on a GPU; sums stay float32.

    The choice belongs to the process, not to a thread; on a GPU, train in one thread at a time.
    """
    global _precision
    before, _precision = _precision, precision
    try:
        yield
    finally:
        _precision = before
