"""The few hot operations: each a reference in array mathematics, and faster versions beneath it.

A kernel is called as `name(xp, ...)`. NumPy, CuPy and anything like them can run the reference.
A faster version for one library registers itself with `@name.override("numpy")`; it must agree
with the reference, and one test holds every override of `KERNELS` to that.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from xpcap.backend import Namespace, is_host

P = ParamSpec("P")
R = TypeVar("R")


class Kernel(Generic[P, R]):
    """One operation `f(xp, ...)`: its reference, and its overrides by the namespace's name."""

    def __init__(self, reference: Callable[Concatenate[Namespace, P], R]) -> None:
        self.reference = reference
        self.overrides: dict[str, Callable[Concatenate[Namespace, P], R]] = {}
        functools.update_wrapper(self, reference)

    def __call__(self, xp: Namespace, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the version for `xp`; what is not compiled for the CPU is NumPy's."""
        chosen = self.overrides.get(xp.__name__)
        if chosen is None and xp.__name__ == "numba":
            chosen = self.overrides.get("numpy")
        return (chosen or self.reference)(xp, *args, **kwargs)

    def override(
        self, library: str
    ) -> Callable[[Callable[Concatenate[Namespace, P], R]], Callable[Concatenate[Namespace, P], R]]:
        """Register the decorated function as the version that runs on `library`."""

        def register(
            function: Callable[Concatenate[Namespace, P], R],
        ) -> Callable[Concatenate[Namespace, P], R]:
            self.overrides[library] = function
            return function

        return register


KERNELS: dict[str, Kernel[Any, Any]] = {}


def kernel(reference: Callable[Concatenate[Namespace, P], R]) -> Kernel[P, R]:
    """Make a kernel of its reference."""
    made = Kernel(reference)
    KERNELS[reference.__name__] = made
    return made


def fastest(xp: Namespace) -> Namespace:
    """Return the namespace under which the fastest kernels for arrays of `xp` run.

    NumPy's are compiled where numba is installed (the extra `fast`) and `XPCAP_COMPILED` is not 0.
    CuPy's are registered, and compiled at their first use.
    """
    if xp.__name__ == "cupy":
        importlib.import_module("xpcap.kernels.cuda")
    if is_host(xp) and os.environ.get("XPCAP_COMPILED") != "0":
        return _compiled_numpy() or xp
    return xp


@functools.cache
def _compiled_numpy() -> Namespace | None:
    """Return the namespace of compiled kernels; a missing numba is looked for once only."""
    try:
        from xpcap.kernels.compiled import compiled_numpy
    except ImportError:
        return None
    return compiled_numpy
