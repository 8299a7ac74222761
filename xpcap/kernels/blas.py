"""Where BLAS's routines lie in memory, for compiled code that calls them without Python."""

from __future__ import annotations

import contextlib
import ctypes
import importlib

_NAMES = ("scipy_cblas_{}64_", "cblas_{}64_", "cblas_{}")  # in NumPy's wheels, and in other builds


def addresses() -> tuple[int, int] | None:
    """Return the addresses of `cblas_sgemm` and `cblas_sgemv`, or None if they are not found.

    Symbols are looked up in NumPy's own module and in all that it is linked with, so they belong
    to the library that `numpy.matmul` calls.
    """
    library = ctypes.CDLL(importlib.import_module("numpy._core._multiarray_umath").__file__)
    for name in _NAMES:
        with contextlib.suppress(ValueError):
            gemm, gemv = (ctypes.c_char.in_dll(library, name.format(f)) for f in ("sgemm", "sgemv"))
            return ctypes.addressof(gemm), ctypes.addressof(gemv)
    return None
