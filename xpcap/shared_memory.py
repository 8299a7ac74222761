"""Memory that several processes of one machine have in common: what one writes, all read.

It is that of a file without a name (Linux' `memfd_create`), which every process maps: unlike
`/dev/shm`, of which containers often have 64 MB only, it is limited by nothing but the memory there
is, and nothing of it stays behind, however the processes end.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from pathlib import Path
from typing import Any

import numpy

from xpcap.parallel import Ranks

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PROCESSES = Path("/proc/self/ns/pid")


def share_memory(
    ranks: Ranks, shape: tuple[int, ...], dtype: Any
) -> list[numpy.ndarray[Any, Any]] | None:
    """Return every rank's array of zeros, in their order: the same memory in all ranks.

    Parameters
    ----------
    ranks
        Who; all of them have to ask together, and to `wait` for each other where one shall read
        what another has written.
    shape, dtype
        Of each rank's array.

    Returns
    -------
    list or None
        None, in all ranks, where they run on several machines or the system does not allow it.
    """
    size = math.prod(shape) * numpy.dtype(dtype).itemsize
    here, own = _where(), _memory_file(size)
    found = ranks.gather((here, os.getpid(), own))
    mapped = [_map(process, file, size) for where, process, file in found if where == here]
    seen = [memory for memory in mapped if memory is not None]
    missed = ranks.any(here is None or len(seen) < ranks.size)
    if own is not None:
        os.close(own)
    if missed:
        return None
    return [numpy.frombuffer(memory, dtype).reshape(shape) for memory in seen]


def _memory_file(size: int) -> int | None:
    """Return the descriptor of a file without a name in memory, or None."""
    try:
        descriptor = os.memfd_create("xpcap")
    except (AttributeError, OSError):
        return None
    with contextlib.suppress(OSError):  # files may be limited; then it cannot be mapped
        os.truncate(descriptor, size)
    return descriptor


def _where() -> tuple[str, str] | None:
    """Return what only processes have in common that see each other in `/proc`."""
    try:
        return _BOOT.read_text(), os.readlink(_PROCESSES)
    except OSError:
        return None


def _map(process: int, file: int | None, size: int) -> mmap.mmap | None:
    """Map another process' file, or None."""
    try:
        with open(f"/proc/{process}/fd/{file}", "r+b", buffering=0) as opened:
            return mmap.mmap(opened.fileno(), size)
    except (OSError, ValueError):
        return None
