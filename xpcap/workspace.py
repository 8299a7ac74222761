"""Workspaces: memory that is reused from step to step, without page faults or allocations."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy

from xpcap.backend import Array, Namespace, is_host


def row_multiple(xp: Namespace) -> int:
    """Return the alignment of matrix rows, in elements.

    8 on a GPU, or 16 bytes of half precision, as its fast products need; 1 elsewhere.
    """
    return 1 if is_host(xp) else 8


def round_up(number: int, multiple: int) -> int:
    """Round a number up to a multiple."""
    return -(-number // multiple) * multiple


class Workspace:
    """Arrays by name, allocated at their first use and then reused, with their old content."""

    def __init__(self, xp: Namespace, dtype: Any) -> None:
        self.xp = xp
        self.dtype = numpy.dtype(dtype)
        self._memory: dict[str, Array] = {}

    def empty(self, name: str, *shape: int, most: int | None = None, dtype: Any = None) -> Array:
        """Return the array of that name, uninitialized; `dtype` is by default the workspace's.

        If `shape` does not fit into the memory of that name, new memory is allocated; `most` is the
        largest first dimension to allocate for, if it varies from call to call.
        """
        size, dtype = math.prod(shape), self.dtype if dtype is None else numpy.dtype(dtype)
        memory = self._memory.get(name)
        if memory is None or memory.size < size or memory.dtype != dtype:
            room = size if most is None else max(most, shape[0]) * math.prod(shape[1:])
            memory = self.xp.empty(room, dtype=dtype)
            self._memory[name] = memory
        return memory[:size].reshape(shape)

    def zeros(self, name: str, *shape: int) -> Array:
        """Return the array of that name, set to zero."""
        array = self.empty(name, *shape)
        array[...] = 0
        return array


_thread_local = threading.local()


def passing(xp: Namespace, dtype: Any) -> Workspace:
    """Return a workspace for temporary arrays of a function, reused at its next call.

    On the CPU, each thread keeps one per dtype: large arrays that are freed return their pages to
    the system, and each page costs a fault when it is allocated again. On a GPU, whose memory pool
    keeps freed memory, it is a new one.
    """
    if not is_host(xp):
        return Workspace(xp, dtype)
    mine: dict[Any, Workspace] = _thread_local.__dict__
    dtype = numpy.dtype(dtype)
    if dtype not in mine:
        mine[dtype] = Workspace(numpy, dtype)
    return mine[dtype]
