"""A sequence of launches, recorded once as a CUDA graph and repeated without Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpcap.backend import Namespace


class Repeated:
    """A function that only launches kernels, in memory that stays where it is.

    On a GPU its first call runs it, so that all is compiled and allocated; the second records it;
    from then on the record is launched. Elsewhere every call runs it. What it allocates while it
    is recorded comes from a pool of its own, which nothing else uses.

    Parameters
    ----------
    xp
        The array namespace.
    function
        Without arguments or results: whatever changes from call to call lies in device memory.
    """

    def __init__(self, xp: Namespace, function: Callable[[], None]) -> None:
        self._xp = xp
        self._function = function
        self._called = False
        self._graph: Any = None
        self._stream: Any = None
        self._pool: Any = None

    def __call__(self) -> None:
        """Run the function, or launch its record."""
        if self._xp.__name__ != "cupy":
            self._function()
            return
        cuda = self._xp.cuda
        if self._graph is None and self._called:
            self._stream, self._pool = cuda.Stream(), cuda.MemoryPool()
            with self._stream, cuda.using_allocator(self._pool.malloc):
                self._stream.begin_capture()
                try:
                    self._function()
                finally:
                    self._graph = self._stream.end_capture()
        if self._graph is None:
            self._function()
            self._called = True
        else:
            self._graph.launch(self._stream)
