"""A sequence of launches, captured once as a CUDA graph and replayed without Python.

The environment variable `XPCAP_GRAPHS=0` turns capture off; launches then go one by one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

from xpcap.backend import Namespace
from xpcap.errors import BackendError
from xpcap.kernels.products import can_be_captured


class Repeated:
    """Runs one function again and again; on a GPU as a CUDA graph.

    The first call runs the function, so that everything is compiled and allocated; the second
    captures it; from then on the graph is launched, on the current stream. Where graphs are turned
    off, the products of `dtype` cannot be captured, or a capture fails, every call runs the
    function. Arrays that the function allocates while it is captured stay allocated as long as this
    object.
    """

    def __init__(self, xp: Namespace, dtype: Any) -> None:
        self._xp = xp
        self._capture = os.environ.get("XPCAP_GRAPHS") != "0" and can_be_captured(xp, dtype)
        self._called = False
        self._graph: Any = None
        self._memory: list[Any] = []

    def __call__(self, function: Callable[[], None]) -> None:
        """Run the function, the same one at each call, or replay its launches.

        It only launches kernels, in memory that does not move; what changes from call to call is in
        device memory. It is not kept: an object may own a `Repeated` of its own method without a
        reference cycle.
        """
        if self._graph is None and self._called and self._capture:
            self._graph = self._captured(function)
        if self._graph is None:
            function()
            self._called = True
        else:
            self._graph.launch()

    def _captured(self, function: Callable[[], None]) -> Any:
        """Return the function's launches as a graph, or None, with a warning, if that fails.

        Memory comes from CuPy's default pool, not from a pool of the graph: CuPy 14 never frees the
        blocks of a pool that is dropped. No block is reused as long as this object holds it.
        """
        cuda, pool = self._xp.cuda, self._xp.get_default_memory_pool()
        stream, memory = _capture_stream(self._xp, cuda.runtime.getDevice()), []

        def allocate(size: int) -> Any:
            memory.append(pool.malloc(size))
            return memory[-1]

        try:
            with stream, cuda.using_allocator(allocate):
                stream.begin_capture()
                try:
                    function()
                except BaseException:
                    with contextlib.suppress(Exception):  # the first error is the one to report
                        stream.end_capture()
                    raise
                graph = stream.end_capture()
        except (RuntimeError, BackendError) as error:  # CUDA's errors are RuntimeErrors in CuPy
            self._capture = False
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            warnings.warn(
                f"a CUDA graph cannot be captured ({reason}); kernels are launched one by one",
                RuntimeWarning,
                stacklevel=3,
            )
            return None
        self._memory = memory
        return graph


@functools.cache
def _capture_stream(xp: Namespace, device: int) -> Any:
    """Return the stream of all captures on a device; CuPy's pool reuses memory within a stream."""
    return xp.cuda.Stream(non_blocking=True)
