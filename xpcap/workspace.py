"""Arrays that are the same memory at every step: no page faults on a CPU, no allocator on a GPU."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy

from xpcap.backend import Array, Namespace, is_host


def row_multiple(xp: Namespace) -> int:
    """Return the number of elements at whose multiples rows of matrices should begin.

    On a GPU 8, or 16 bytes of half precision: its fast products need that alignment. Elsewhere 1.
    """
    return 1 if is_host(xp) else 8


def round_up(number: int, multiple: int) -> int:
    """Return the least multiple that is not less than the number."""
    return -(-number // multiple) * multiple


class Workspace:
    """Arrays by name, allocated where they are first asked for.

    Who makes a new one for each call gets fresh memory; who keeps it gets the same memory again,
    with whatever was left in it.

    Parameters
    ----------
    xp
        The array namespace.
    dtype
        Of the arrays, where nothing else is asked for.
    """

    def __init__(self, xp: Namespace, dtype: Any) -> None:
        self.xp = xp
        self.dtype = numpy.dtype(dtype)
        self._memory: dict[str, Array] = {}

    def empty(self, name: str, *shape: int, most: int | None = None, dtype: Any = None) -> Array:
        """Return the array of that name, of undefined content.

        Parameters
        ----------
        name
            Of the array; one name, one memory.
        *shape
            Whatever fits into the memory of the first call needs no new one.
        most
            The largest first size that memory is laid out for, if it varies from call to call.
        dtype
            Another than the workspace's.
        """
        size, dtype = math.prod(shape), self.dtype if dtype is None else numpy.dtype(dtype)
        memory = self._memory.get(name)
        if memory is None or memory.size < size or memory.dtype != dtype:
            room = size if most is None else max(most, shape[0]) * math.prod(shape[1:])
            memory = self.xp.empty(room, dtype=dtype)
            self._memory[name] = memory
        return memory[:size].reshape(shape)

    def zeros(self, name: str, *shape: int) -> Array:
        """Return the array of that name, filled with zeros."""
        array = self.empty(name, *shape)
        array[...] = 0
        return array


_of_threads = threading.local()


def passing(xp: Namespace, dtype: Any) -> Workspace:
    """Return a workspace for what a function needs until it returns, the same at its next call.

    On the CPU each thread has one of each dtype and keeps it, because the pages of large arrays are
    given back to the system when they are freed and cost a fault each to get again. On a GPU, where
    freed memory stays at hand, it is a new one.
    """
    if not is_host(xp):
        return Workspace(xp, dtype)
    mine: dict[str, Workspace] = _of_threads.__dict__.setdefault("workspaces", {})
    return mine.setdefault(numpy.dtype(dtype).name, Workspace(numpy, dtype))
