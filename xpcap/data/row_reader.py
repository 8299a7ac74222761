"""Reading some rows of a large two-dimensional array in an HDF5 file, fast and in bounded memory.

Where the numbers lie in the file as NumPy has them in memory, rows are read past HDF5, which takes
several times as long. They are read, not mapped: mapped pages count as the program's memory.
Anything else (chunked, compressed) is read by blocks of rows, and the blocks used last are kept.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy

from xpcap.data.chunks import Chunks
from xpcap.data.hdf5 import find_array, open_hdf5, whole

KEPT_BYTES = 256 * 2**20
BLOCK_BYTES = 2**20  # of a block of rows where the file itself has none


class RowReader(Protocol):
    """Reads rows of an array, from any thread."""

    shape: tuple[int, int]

    def read(self, rows: numpy.ndarray) -> numpy.ndarray:
        """Return rows `(N,)`, which ascend and differ, of the dtype in the file.

        What h5py or the system raises where the file is damaged is left as it is.
        """

    def close(self) -> object:
        """Close the file."""


def open_rows(path: Path, key: str) -> RowReader:
    """Open a floating array of two axes in an HDF5 file.

    Raises
    ------
    DataError
        If the file is missing, truncated or holds something else.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_hdf5(path))
        array = find_array(file, path, key, 2, "f")
        with whole(path, key):
            if array.chunks is not None:
                chunks = Chunks(path, key, array)
                return BlockRows(chunks.read, chunks.close, array, chunks.height)
            if (start := _find_start(array)) is not None:
                return PlainRows(path, start, array.shape, array.dtype)
        stack.pop_all()
        return BlockRows(lambda first, end: array[first:end], file.close, array)


def _find_start(array: Any) -> int | None:
    """Return where in the file an array's numbers begin, if they lie there as in memory."""
    import h5py

    start: int | None = array.id.get_offset()
    if (
        start is None
        or array.id.get_storage_size() != array.nbytes  # nothing was ever written
        or array.id.get_type() != h5py.h5t.py_create(array.dtype)  # a format that NumPy lacks
        or not hasattr(os, "preadv")
    ):
        return None
    return start


class PlainRows:
    """A `RowReader` of numbers that lie in a file as in memory.

    Parameters
    ----------
    path
        The file.
    start
        Its byte where the numbers begin.
    shape, dtype
        Of the array.
    """

    def __init__(
        self, path: Path, start: int, shape: tuple[int, int], dtype: numpy.dtype[Any]
    ) -> None:
        self.shape = shape
        self._start = start
        self._dtype = dtype
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self.close = weakref.finalize(self, self._file.close)

    def read(self, rows: numpy.ndarray) -> numpy.ndarray:
        """Read each run of adjacent rows at once."""
        found = numpy.empty((len(rows), self.shape[1]), self._dtype)
        raw = found.reshape(-1).view(numpy.uint8).data
        size = self.shape[1] * self._dtype.itemsize
        for first, end in _runs(numpy.diff(rows, prepend=-2) > 1):
            self._fill(raw[first * size : end * size], self._start + int(rows[first]) * size)
        return found

    def _fill(self, buffer: memoryview, position: int) -> None:
        # read at a position of our own: a file's is shared by threads and forked processes
        while len(buffer):
            count = os.preadv(self._file.fileno(), [buffer], position)
            if count == 0:
                raise OSError("the file ends too early")
            buffer, position = buffer[count:], position + count


class BlockRows:
    """A `RowReader` of any array, by blocks of rows.

    Blocks used last are kept, 256 MiB of them, or a single one if that is larger.

    Parameters
    ----------
    read
        Returns the rows from a first one to before an end.
    close
        Called when no more are needed.
    array
        Their shape and dtype.
    height
        How many rows a block has; None is 1 MiB of them.
    """

    def __init__(
        self,
        read: Callable[[int, int], numpy.ndarray],
        close: Callable[[], object],
        array: Any,
        height: int | None = None,
    ) -> None:
        self.shape: tuple[int, int] = array.shape
        self._dtype = array.dtype
        row_bytes = max(1, self.shape[1] * self._dtype.itemsize)
        self._height = height or math.ceil(BLOCK_BYTES / row_bytes)
        kept = max(1, KEPT_BYTES // (self._height * row_bytes))
        self._block = functools.lru_cache(kept)(functools.partial(_read_block, read, self._height))
        self._close = close

    def read(self, rows: numpy.ndarray) -> numpy.ndarray:
        """Take rows out of their blocks, each of which is looked up once."""
        found = numpy.empty((len(rows), self.shape[1]), self._dtype)
        blocks = rows // self._height
        for first, end in _runs(numpy.diff(blocks, prepend=-1) > 0):
            inside = rows[first:end] % self._height
            found[first:end] = self._block(int(blocks[first]))[inside]
        return found

    def close(self) -> None:
        """Close the file and forget the blocks."""
        self._block.cache_clear()
        self._close()


def _read_block(
    read: Callable[[int, int], numpy.ndarray], height: int, number: int
) -> numpy.ndarray:
    return read(number * height, (number + 1) * height)


def _runs(begins: numpy.ndarray) -> Iterator[tuple[int, int]]:
    """Yield first and end of each run, given `(N,)` whether a run begins there."""
    return itertools.pairwise([*numpy.flatnonzero(begins).tolist(), len(begins)])
