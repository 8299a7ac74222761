"""Faster versions of operations, by library; nothing here is needed to understand a gradient.

A version has the name, the signature and the results of its operation, and one test holds all of
them to it. What it gained when it was measured stands beside it.
"""

from __future__ import annotations

import functools
import importlib
import os

from xpcap.backend import Namespace, is_host
from xpcap.operations import Accelerated


def fastest(xp: Namespace) -> Namespace:
    """Return the namespace under which the fastest versions for arrays of `xp` run.

    NumPy's are compiled where numba is installed (the extra `fast`) and `XPCAP_COMPILED` is not 0.
    CuPy's are compiled at their first use.
    """
    if isinstance(xp, Accelerated):
        return xp
    if is_host(xp):
        return _accelerated(xp, os.environ.get("XPCAP_COMPILED") != "0")
    return _accelerated(xp, False) if xp.__name__ == "cupy" else xp


@functools.cache
def _accelerated(xp: Namespace, compiled: bool) -> Accelerated:
    if not is_host(xp):
        importlib.import_module("xpcap.kernels.cuda")
        return Accelerated(xp, ("cupy",))
    importlib.import_module("xpcap.kernels.in_place")
    if compiled:
        try:
            for part in ("", "_attention", "_sampling", "_transformer"):
                importlib.import_module(f"xpcap.kernels.compiled{part}")
        except ImportError:
            compiled = False
    return Accelerated(xp, ("numba", "numpy") if compiled else ("numpy",))
