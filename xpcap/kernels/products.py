"""Matrix products into memory that is already there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from xpcap.backend import Array, Namespace
from xpcap.errors import ConfigurationError
from xpcap.kernels import kernel
from xpcap.kernels.cublas import PRECISIONS, open_cublas

_precision = "float32"


@kernel
def product(xp: Namespace, a: Array, b: Array, out: Array) -> None:
    """Write `a (M, K)` times `b (K, N)` into `out (M, N)`; transposed views are not copied."""
    xp.matmul(a, b, out=out)


@product.override("cupy")
def _product_by_cublas(xp: Namespace, a: Array, b: Array, out: Array) -> None:
    """Our own call, which a graph can capture, in the precision that was asked for."""
    cublas = open_cublas(xp, xp.cuda.runtime.getDevice())
    if cublas is None:
        xp.matmul(a, b, out=out)
    else:
        cublas.product(a, b, out, _precision)


def check_precision(precision: str, on_gpu: bool) -> None:
    """Check the name of a precision.

    Raises
    ------
    ConfigurationError
        If it is unknown, or one that only a GPU has.
    """
    if precision not in PRECISIONS:
        raise ConfigurationError(
            f"precision '{precision}' is unknown; expected {', '.join(PRECISIONS)}"
        )
    if precision != "float32" and not on_gpu:
        raise ConfigurationError(f"precision '{precision}' needs a GPU; expected float32")


@contextlib.contextmanager
def multiplied_in(precision: str) -> Iterator[None]:
    """Round the factors of products inside to tf32 or bf16, on a GPU; sums stay float32.

    The choice belongs to the process, not to a thread.
    """
    global _precision
    before, _precision = _precision, precision
    try:
        yield
    finally:
        _precision = before
