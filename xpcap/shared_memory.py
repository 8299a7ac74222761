"""Memory that several processes of one machine have in common: what one writes, all read.

It is that of files without a place (Linux' `memfd_create`), which every process maps. Unlike
`/dev/shm`, of which containers often have 64 MB only, it is limited by nothing but the memory there
is, and nothing of it stays behind, however the processes end.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import uuid
from typing import Any

import numpy

from xpcap.parallel import Ranks


def share_memory(ranks: Ranks, size: int, dtype: Any) -> list[numpy.ndarray[Any, Any]] | None:
    """Return every rank's array of zeros, in their order: the same memory in all ranks.

    Parameters
    ----------
    ranks
        Who; all of them have to ask together, and to `wait` for each other where one shall read
        what another has written.
    size, dtype
        Of this rank's array `(size,)`, which keeps a file descriptor of each process busy.

    Returns
    -------
    list or None
        None, in all ranks, where one of them cannot see what another has: they run on several
        machines or in several containers, or the system does not allow it.
    """
    name, length = f"xpcap-{uuid.uuid4()}", size * numpy.dtype(dtype).itemsize
    own = _memory_file(name, length)
    found = ranks.gather((f"/proc/{os.getpid()}/fd/{own}", name, length))
    mapped = [_map(*file) for file in found]
    seen = [memory for memory in mapped if memory is not None]
    missed = ranks.any(len(seen) < ranks.size)
    if own is not None:
        os.close(own)
    return None if missed else [numpy.frombuffer(memory, dtype) for memory in seen]


def _memory_file(name: str, length: int) -> int | None:
    """Return the descriptor of a file in memory, which is reserved for it, or None."""
    try:
        descriptor = os.memfd_create(name)
    except (AttributeError, OSError):
        return None
    with contextlib.suppress(OSError):  # no memory, or none for files: it cannot be mapped
        os.posix_fallocate(descriptor, 0, length)
    return descriptor


def _map(path: str, name: str, length: int) -> mmap.mmap | None:
    """Map a process' file, or return None; what is there may be another process' of that number."""
    try:
        if os.readlink(path) != f"/memfd:{name} (deleted)":
            return None
        with open(path, "r+b", buffering=0) as file:
            return mmap.mmap(file.fileno(), length)
    except (OSError, ValueError):
        return None
