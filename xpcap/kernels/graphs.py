"""A sequence of launches, recorded once as a CUDA graph and repeated without Python."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from xpcap.backend import Namespace
from xpcap.kernels.products import can_be_captured


class Repeated:
    """A function that only launches kernels, in memory that stays where it is.

    On a GPU its first call runs it, so that all is compiled and allocated; the second records it;
    from then on the record is launched, on the current stream. Elsewhere, and where its products
    cannot be recorded, every call runs it. What it allocates while it is recorded comes from a pool
    of its own, which nothing else uses.

    Parameters
    ----------
    xp
        The array namespace.
    function
        Without arguments or results: whatever changes from call to call lies in device memory.
    dtype
        Of its matrix products.
    """

    def __init__(self, xp: Namespace, function: Callable[[], None], dtype: Any) -> None:
        self._xp = xp
        self._function = function
        self._record = can_be_captured(xp, dtype)
        self._called = False
        self._graph: Any = None
        self._pool: Any = None

    def __call__(self) -> None:
        """Run the function, or launch its record."""
        if self._graph is not None:
            self._graph.launch()
        elif self._record and self._called:
            self._graph = self._captured()
            self._graph.launch()
        else:
            self._function()
            self._called = True

    def _captured(self) -> Any:
        cuda = self._xp.cuda
        stream, self._pool = cuda.Stream(non_blocking=True), cuda.MemoryPool()
        with stream, cuda.using_allocator(self._pool.malloc):
            stream.begin_capture()
            try:
                self._function()
            except BaseException:
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    stream.end_capture()
                raise
            return stream.end_capture()
