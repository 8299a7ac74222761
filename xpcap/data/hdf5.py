"""Reading untrusted HDF5 files, and writing small ones.

An array must be stored in its own file: links, virtual and external data sets are refused. It takes
at most as much memory as `check_swelling` allows, and its chunks are decompressed by `Chunks`.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import weakref
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy

from xpcap.errors import DataError, first_line
from xpcap.files import check_plain, check_swelling

DAMAGED = (
    OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError, zlib.error
)  # fmt: skip
"""Exceptions of h5py and of `Chunks` for damaged files."""

KINDS = {"f": "floating", "iu": "integer"}


def open_hdf5(path: Path) -> Any:
    """Open an HDF5 file for reading, as an `h5py.File` that the caller closes.

    A `DataError` is raised if it is missing, locked, not an HDF5 file, or shorter than its header
    says.
    """
    import h5py

    check_plain(path)
    try:
        return h5py.File(path, "r")
    except DAMAGED as error:
        raise DataError(f"{path} {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    """Return why HDF5 cannot open a file."""
    said, expected = first_line(error), "expected a whole HDF5 file"
    if not path.stat().st_size:
        return f"is empty; {expected}"
    if "truncated" in said:
        return f"is truncated; {expected}"
    if "signature not found" in said:
        return f"is not an HDF5 file; {expected}"
    if "lock file" in said:
        return "is locked by another program, which may be writing it; expected it to be closed"
    if "version" in said:
        return f"is damaged, or of a newer HDF5 format than h5py reads here: {said}"
    return f"cannot be opened as HDF5: {said}"


def find_array(
    file: Any, path: Path, key: str, ndim: int | Sequence[int], kinds: str, hint: str = ""
) -> Any:
    """Find the `h5py.Dataset` `key` in an open file and check it, without reading its values.

    It has `ndim` axes, or as many as one of them. `kinds` are NumPy's of its dtype: `"f"`
    floating, `"iu"` integer. A `DataError` is raised if there is no such array, with a `hint`, or
    its size is implausible.
    """
    import h5py

    ranks = [ndim] if isinstance(ndim, int) else ndim
    expected = f"expected a {' or '.join(f'{n}-dimensional' for n in ranks)} {KINDS[kinds]} array"
    with whole(path, key, "found in it"):
        keys = sorted(map(str, file))
        if key not in keys:
            raise DataError(
                f"{path}: no '{key}' in it, only {', '.join(keys) or 'nothing'}; {expected}{hint}"
            )
        if not isinstance(file.get(key, getlink=True), h5py.HardLink):
            raise DataError(f"{path}: '{key}' is a link; {expected}")
        found = file[key]
        if not isinstance(found, h5py.Dataset):
            raise DataError(f"{path}: '{key}' is a group; {expected}")
        if found.ndim not in ranks or found.dtype.kind not in kinds:
            raise DataError(f"{path}: '{key}' is {found.dtype} of shape {found.shape}; {expected}")
        if found.is_virtual or found.external:
            raise DataError(f"{path}: '{key}' is stored in another file; {expected}")
        stored = min(found.id.get_storage_size(), path.stat().st_size)
        for shape in (found.shape, found.chunks or ()):
            size = prod(shape) * found.dtype.itemsize
            check_swelling(f"{path}: '{key}' of shape {found.shape}", size, stored)
    return found


@contextlib.contextmanager
def whole(path: Path, key: str, doing: str = "read") -> Iterator[None]:
    """Turn exceptions of h5py inside the block into a `DataError`: an array is damaged.

    Errors of the operating system are reported in its own words.
    """
    try:
        yield
    except DataError:
        raise
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno:
            raise DataError(f"cannot read {path}: {os.strerror(error.errno)}") from error
        raise DataError(f"{path} is damaged: '{key}' cannot be {doing}") from error


def read_array(file: Any, path: Path, key: str, ndim: int, kinds: str, hint: str = "") -> Any:
    """Read a whole array, checked as by `find_array`."""
    found = find_array(file, path, key, ndim, kinds, hint)
    with whole(path, key):
        if found.chunks is None:
            return found[...]
        with contextlib.closing(Chunks(path, key, found)) as chunks:
            return chunks.read(0, len(found))


class Chunks:
    """The chunks of an array in a file, which may be closed; may be read from any thread.

    HDF5 only tells where each chunk is stored. It would decompress them to any size, and crash or
    read other memory where their sizes are wrong.
    """

    def __init__(self, path: Path, key: str, array: Any) -> None:
        import h5py

        plan = array.id.get_create_plist()
        filters = [plan.get_filter(k) for k in range(plan.get_nfilters())]
        known = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE)
        unknown = [
            name.decode(errors="replace") or f"filter {code}"
            for code, *_, name in filters
            if code not in known
        ]
        if unknown or array.id.get_type() != h5py.h5t.py_create(array.dtype):
            raise DataError(
                f"{path}: '{key}' is stored with {', '.join(unknown) or 'an unknown dtype'};"
                " expected gzip, shuffle, or nothing"
            )
        self._shape, self._sides = array.shape, array.chunks
        self._dtype, self._fill = array.dtype, array.fillvalue
        self.height: int = self._sides[0]
        self._bytes = prod(self._sides) * self._dtype.itemsize
        self._deflated = [code == h5py.h5z.FILTER_DEFLATE for code, *_ in filters]
        found = self._located(array)
        if not self._fit(found, path.stat().st_size):
            raise DataError(f"{path}: '{key}' is damaged: a chunk is in an impossible place")
        self._blocks: dict[int, list[Any]] = defaultdict(list)
        for chunk in found:
            self._blocks[chunk.chunk_offset[0] // self.height].append(chunk)
        self._file = open(path, "rb")  # noqa: SIM115
        self._reading = threading.Lock()
        self.close = weakref.finalize(self, self._file.close)

    def _located(self, array: Any) -> list[Any]:
        """Return where the chunks are, up to one more than there can be."""
        most = prod(-(-size // side) for size, side in zip(self._shape, self._sides, strict=True))
        found: list[Any] = []

        def note(chunk: Any) -> bool | None:
            found.append(chunk)
            return len(found) > most or None  # anything but None stops the iteration

        array.id.chunk_iter(note)
        return found

    def _fit(self, found: list[Any], end: int) -> bool:
        """Return whether chunks are distinct, and in the array and the file of `end` bytes."""
        return len({chunk.chunk_offset for chunk in found}) == len(found) and all(
            0 < chunk.size <= end - chunk.byte_offset
            and all(
                start % side == 0 and start < size
                for start, side, size in zip(
                    chunk.chunk_offset, self._sides, self._shape, strict=True
                )
            )
            for chunk in found
        )

    def read(self, first: int, end: int) -> numpy.ndarray:
        """Read rows from `first`, a multiple of `height`; raises one of `DAMAGED`."""
        count = max(0, min(end, self._shape[0]) - first)
        rows = numpy.full((count, *self._shape[1:]), self._fill, self._dtype)
        for block in range(first // self.height, -(-(first + count) // self.height)):
            for chunk in self._blocks.get(block, ()):
                above, *others = chunk.chunk_offset
                target = rows[tuple(slice(begin, None) for begin in (above - first, *others))]
                values = self._unpacked(chunk)
                inside = tuple(map(slice, map(min, values.shape, target.shape)))
                target[inside] = values[inside]
        return rows

    def _unpacked(self, chunk: Any) -> numpy.ndarray:
        with self._reading:
            self._file.seek(chunk.byte_offset)
            content = self._file.read(chunk.size)
        for k, deflated in reversed(list(enumerate(self._deflated))):
            if chunk.filter_mask >> k & 1:  # the chunk skips this filter
                continue
            if deflated:
                inflater = zlib.decompressobj()
                content = inflater.decompress(content, self._bytes + 1)
                if not inflater.eof:
                    raise ValueError("it is larger than a chunk, or ends early")
            else:  # shuffle stores the first bytes of all items before the second ones
                planes = numpy.frombuffer(content, numpy.uint8).reshape(self._dtype.itemsize, -1)
                content = planes.T.tobytes()
        return numpy.frombuffer(content, self._dtype).reshape(self._sides)


def write_arrays(path: Path, arrays: Mapping[str, numpy.ndarray]) -> None:
    """Write arrays by name into a new HDF5 file, or raise an `OSError`.

    The file is built in memory first, which takes their size a second time: HDF5 crashes, at the
    latest at the end of the process, if the disk turns out to be full when it closes a file.
    """
    import h5py

    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    # bytes, which getvalue shares with `image`: an exported buffer that the traceback of a failed
    # write keeps alive can crash Python 3.12.1 when it is garbage collected
    path.write_bytes(image.getvalue())


def write_rows(
    path: Path,
    key: str,
    shape: tuple[int, ...],
    blocks: Iterable[numpy.ndarray],
    dtype: numpy.dtype[Any],
) -> None:
    """Write an array of `shape` and `dtype` from blocks of its rows, or raise an `OSError`.

    In memory, HDF5 makes only the file's metadata, see `write_arrays`, and reserves the place of
    the values, which are written past it.
    """
    import h5py

    image, dtype = io.BytesIO(), dtype.newbyteorder("<")
    with h5py.File(image, "w") as file:
        array = file.create_dataset(key, shape, dtype, fill_time="never")
        array[(0,) * len(shape)] = 0  # only now it has a place, behind the metadata
        start = array.id.get_offset()
    with open(path, "wb") as written:
        written.write(image.getvalue())
        written.seek(start)
        for block in blocks:
            written.write(numpy.ascontiguousarray(block, dtype).data)
