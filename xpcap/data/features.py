"""Image features in an HDF5 file: read as a whole, or row by row when indexed, in bounded memory.

A row is an image: its D features, or those of L regions, `(L, D)`; see `xpcap.data.folder`.

Contiguous arrays in a dtype of NumPy's are read past HDF5, which takes several times as long. They
are not mapped, as mapped pages count as the process's memory. All others (chunked, compressed) are
read in blocks of rows, and the most recently used blocks are kept.
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

from xpcap.data.hdf5 import DAMAGED, Chunks, find_array, open_hdf5, whole
from xpcap.errors import DataError

BLOCK_BYTES = 128 * 2**20
KEPT_BYTES = 256 * 2**20  # of blocks of an array that is not contiguous
_READ_BYTES = 2**20  # per block of an array that has no chunks
FEATURE_DTYPES = ("float32", "float16")
RANKS = (2, 3)


class Features(Protocol):
    """Features `(images, D)` or `(images, L, D)`: a NumPy array or `LazyFeatures`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Images, D; or images, L, D."""

    @property
    def dtype(self) -> numpy.dtype[Any]:
        """Floating."""

    def __getitem__(self, rows: Any, /) -> Any:
        """Return the features of the images `rows`."""


def row_blocks(features: Features) -> Iterator[slice]:
    """Yield consecutive slices of all rows, each of at most 128 MiB in float32."""
    count, *of_image = features.shape
    height = max(1, BLOCK_BYTES // (4 * max(1, math.prod(of_image))))
    for first in range(0, count, height):
        yield slice(first, min(first + height, count))


def read_features(path: Path, dtype: str = "float32") -> numpy.ndarray:
    """Read a whole feature file, as `LazyFeatures` does."""
    lazy = LazyFeatures(path, dtype)
    try:
        out = numpy.empty(lazy.shape, dtype)
    except (MemoryError, ValueError) as error:
        raise DataError(
            f"{path}: 'features' of shape {lazy.shape} do not fit in memory; leave them in their"
            " file (--lazy)"
        ) from error
    for block in row_blocks(lazy):
        out[block] = lazy[block]
    lazy.close()
    return out


class LazyFeatures:
    """Features that stay in their file; indexing reads the requested rows, from any thread.

    The HDF5 file holds a floating array `features`, `(images, D)` or `(images, L, D)`: fastest if
    uncompressed and contiguous, h5py's default; gzip and shuffle are read too. Rows are returned as
    `"float32"`, or `"float16"` for half the memory and about three digits. A `DataError` is raised
    if the file is missing, truncated or has other contents; when indexed, if it cannot be read
    there, or a value is not finite in `dtype`.
    """

    def __init__(self, path: Path, dtype: str = "float32") -> None:
        if dtype not in FEATURE_DTYPES:
            raise DataError(f"feature dtype '{dtype}' is unknown; expected {FEATURE_DTYPES}")
        self.path = path
        self.dtype: numpy.dtype[Any] = numpy.dtype(dtype)
        self._reader = _open_rows(path, "features")
        self.shape = self._reader.shape
        self.close = self._reader.close

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> numpy.ndarray:
        wanted = numpy.arange(len(self))[rows]
        distinct, places = numpy.unique(wanted, return_inverse=True)
        found = self._read(distinct)
        return found if numpy.array_equal(distinct, wanted) else found[places]

    def _read(self, rows: numpy.ndarray) -> numpy.ndarray:
        try:
            found = self._reader.read(rows)
        except DAMAGED as error:
            raise DataError(f"{self.path} is damaged: 'features' cannot be read") from error
        with numpy.errstate(over="ignore"):
            found = found.astype(self.dtype, copy=False)
        if not numpy.isfinite(found).all():
            raise DataError(
                f"{self.path}: 'features' holds NaN or infinite values (as {self.dtype});"
                " expected finite ones"
            )
        return found


def _open_rows(path: Path, key: str) -> PlainRows | BlockRows:
    """Open a floating array of `RANKS`; `read` may be called from any thread."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_hdf5(path))
        array = find_array(file, path, key, RANKS, "f")
        with whole(path, key):
            start = _find_start(array)
            if start is not None:
                return PlainRows(path, start, array.shape, array.dtype)
            if array.chunks is not None:
                chunks = Chunks(path, key, array)
                return BlockRows(chunks.read, chunks.close, array, chunks.height)
        stack.pop_all()
        return BlockRows(lambda first, end: array[first:end], file.close, array)


def _find_start(array: Any) -> int | None:
    """Return the file offset of an array's values, or None if they are not stored as in memory."""
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
    """Rows of an array of `shape` and `dtype` that is stored contiguously from byte `start`."""

    def __init__(
        self, path: Path, start: int, shape: tuple[int, ...], dtype: numpy.dtype[Any]
    ) -> None:
        self.shape = shape
        self._start = start
        self._dtype = dtype
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self.close = weakref.finalize(self, self._file.close)

    def read(self, rows: numpy.ndarray) -> numpy.ndarray:
        """Return the rows of strictly ascending indices `(N,)`; adjacent ones are read at once."""
        found = numpy.empty((len(rows), *self.shape[1:]), self._dtype)
        raw = found.reshape(-1).view(numpy.uint8).data
        size = math.prod(self.shape[1:]) * self._dtype.itemsize
        for first, end in _spans(numpy.diff(rows, prepend=-2) > 1):
            self._fill(raw[first * size : end * size], self._start + int(rows[first]) * size)
        return found

    def _fill(self, buffer: memoryview, position: int) -> None:
        # preadv, as the position of a file is shared by threads and forked processes
        while len(buffer):
            count = os.preadv(self._file.fileno(), [buffer], position)
            if count == 0:
                raise OSError("the file ends too early")
            buffer, position = buffer[count:], position + count


class BlockRows:
    """Rows of an array, read in blocks, of which the last 256 MiB (at least one) are cached.

    `read` returns the rows from a first one to before an end, and `close` closes the file; a block
    has `height` rows, or else 1 MiB of them.
    """

    def __init__(
        self,
        read: Callable[[int, int], numpy.ndarray],
        close: Callable[[], object],
        array: Any,
        height: int | None = None,
    ) -> None:
        self.shape: tuple[int, ...] = array.shape
        self._dtype = array.dtype
        row_bytes = max(1, math.prod(self.shape[1:]) * self._dtype.itemsize)
        size = height or math.ceil(_READ_BYTES / row_bytes)
        kept = max(1, KEPT_BYTES // (size * row_bytes))
        self._height = size
        self._block = functools.lru_cache(kept)(lambda k: read(k * size, (k + 1) * size))
        self._close = close

    def read(self, rows: numpy.ndarray) -> numpy.ndarray:
        """Return the rows of strictly ascending indices `(N,)`; each block is looked up once."""
        found = numpy.empty((len(rows), *self.shape[1:]), self._dtype)
        blocks = rows // self._height
        for first, end in _spans(numpy.diff(blocks, prepend=-1) > 0):
            inside = rows[first:end] % self._height
            found[first:end] = self._block(int(blocks[first]))[inside]
        return found

    def close(self) -> None:
        """Close the file and drop the cached blocks."""
        self._block.cache_clear()
        self._close()


def _spans(begins: numpy.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the first and end index of each span, given `(N,)` whether a span begins there."""
    return itertools.pairwise([*numpy.flatnonzero(begins).tolist(), len(begins)])
