"""Reading the chunks of an HDF5 array past HDF5, which can crash on damaged bytes.

HDF5 only tells where each chunk is stored. Its bytes are decompressed here, to at most the size of
a chunk, whereas HDF5 decompresses them to any size.
"""

from __future__ import annotations

import threading
import weakref
import zlib
from collections import defaultdict
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy

from xpcap.errors import DataError

_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000  # as HDF5 numbers them
_CHECKSUM = 4  # bytes
_WORDS = 2**16  # 16-bit words that are summed at a time


class Chunks:
    """The chunks of an array of `height` rows each; may be read from any thread.

    Parameters
    ----------
    path, key, array
        HDF5 file, which may be closed afterwards, and the array `key` in it, sizes checked.

    Raises
    ------
    DataError
        If the array has an unknown filter or dtype, or a chunk in an impossible place.
    """

    def __init__(self, path: Path, key: str, array: Any) -> None:
        import h5py

        self.shape: tuple[int, ...] = array.shape
        self.dtype: numpy.dtype[Any] = array.dtype
        self.height: int = array.chunks[0]
        self._where = f"{path}: '{key}'"
        self._chunk: tuple[int, ...] = array.chunks
        self._bytes = prod(self._chunk) * self.dtype.itemsize
        self._fill = array.fillvalue
        plan = array.id.get_create_plist()
        self._filters = [plan.get_filter(k)[0] for k in range(plan.get_nfilters())]
        unknown = [str(number) for number in self._filters if number not in _UNPACK]
        if unknown or array.id.get_type() != h5py.h5t.py_create(self.dtype):
            raise DataError(
                f"{self._where} is stored with {', '.join(unknown) or 'an unknown dtype'}; expected"
                " gzip or lzf, shuffle, fletcher32, or nothing"
            )
        self._blocks = self._found(array, path.stat().st_size)
        self._file = open(path, "rb")  # noqa: SIM115
        self._reading = threading.Lock()
        self.close = weakref.finalize(self, self._file.close)

    def _found(self, array: Any, end: int) -> dict[int, list[Any]]:
        """Return the chunks' locations by block of rows."""
        most = prod(-(-size // side) for size, side in zip(self.shape, self._chunk, strict=True))
        found: list[Any] = []

        def note(chunk: Any) -> bool | None:
            found.append(chunk)
            return len(found) > most or None  # anything but None stops the iteration

        array.id.chunk_iter(note)
        fits = len({chunk.chunk_offset for chunk in found}) == len(found)
        blocks: dict[int, list[Any]] = defaultdict(list)
        for chunk in found:
            fits &= 0 < chunk.size <= end - chunk.byte_offset and all(
                start % side == 0 and start < size
                for start, side, size in zip(
                    chunk.chunk_offset, self._chunk, self.shape, strict=True
                )
            )
            blocks[chunk.chunk_offset[0] // self.height].append(chunk)
        if not fits:
            raise DataError(f"{self._where} is damaged: a chunk is in an impossible place")
        return blocks

    def read(self, first: int, end: int) -> numpy.ndarray:
        """Read rows; raises an `OSError` or `ValueError` if a chunk is damaged."""
        end = min(end, self.shape[0])
        rows = numpy.full((max(0, end - first), *self.shape[1:]), self._fill, self.dtype)
        for block in range(first // self.height, -(-end // self.height)):
            for chunk in self._blocks.get(block, ()):
                start, *others = chunk.chunk_offset
                above = max(first - start, 0)
                part = self._unpacked(chunk)[above : end - start]
                place = tuple(
                    slice(begin, begin + side)
                    for begin, side in zip(others, self._chunk[1:], strict=True)
                )
                target = rows[(slice(start + above - first, None), *place)][: len(part)]
                target[...] = part[tuple(map(slice, target.shape))]
        return rows

    def _unpacked(self, chunk: Any) -> numpy.ndarray:
        with self._reading:
            self._file.seek(chunk.byte_offset)
            content = self._file.read(chunk.size)
        try:
            for k in reversed(range(len(self._filters))):
                if not chunk.filter_mask >> k & 1:
                    content = _UNPACK[self._filters[k]](content, self._bytes, self.dtype.itemsize)
        except (IndexError, zlib.error) as error:
            raise ValueError(f"a chunk cannot be decompressed: {error}") from error
        if len(content) != self._bytes:
            raise ValueError(f"a chunk has {len(content)} bytes; expected {self._bytes}")
        return numpy.frombuffer(content, self.dtype).reshape(self._chunk)


def _inflated(content: bytes, size: int, itemsize: int) -> bytes:
    """Undo deflate, up to the size of a chunk and its checksum."""
    inflater = zlib.decompressobj()
    found = inflater.decompress(content, size + _CHECKSUM + 1)
    if not inflater.eof:
        raise ValueError("it is larger than a chunk, or ends early")
    return found


def _unshuffled(content: bytes, size: int, itemsize: int) -> bytes:
    """Undo shuffle, which stores the first bytes of all items before the second ones."""
    return numpy.frombuffer(content, numpy.uint8).reshape(itemsize, -1).T.tobytes()


def _verified(content: bytes, size: int, itemsize: int) -> bytes:
    """Check and remove a fletcher32 checksum (J. Fletcher, IEEE Trans. Communications, 1982)."""
    content, stored = content[:-_CHECKSUM], content[-_CHECKSUM:]
    words = numpy.frombuffer(content + bytes(len(content) % 2), ">u2")
    first = second = 0
    for begin in range(0, len(words), _WORDS):
        some = words[begin : begin + _WORDS].astype(numpy.int64)
        second += first * len(some) + int((some * numpy.arange(len(some), 0, -1)).sum())
        first += int(some.sum())
    low, high = (total and (total - 1) % 0xFFFF + 1 for total in (first, second))
    if (high << 16 | low).to_bytes(_CHECKSUM, "little") != stored:
        raise ValueError("its checksum is wrong")
    return content


def _unlzf(content: bytes, size: int, itemsize: int) -> bytes:
    """Undo LZF: literal bytes, and copies of earlier output (M. Lehmann's LibLZF)."""
    found, k = bytearray(), 0
    while k < len(content) and len(found) <= size:
        control = content[k]
        if control < 32:  # control + 1 literal bytes
            found += content[k + 1 : k + control + 2]
            k += control + 2
            continue
        length, k = control >> 5, k + 1
        if length == 7:
            length, k = length + content[k], k + 1
        begin = len(found) - ((control & 31) << 8) - content[k] - 1
        if begin < 0:
            raise ValueError("it copies from before its start")
        k, length = k + 1, length + 2
        piece = found[begin : begin + length]
        found += (piece * -(-length // len(piece)))[:length]  # source and target may overlap
    return bytes(found)


_UNPACK: dict[int, Callable[[bytes, int, int], bytes]] = {
    _DEFLATE: _inflated,
    _SHUFFLE: _unshuffled,
    _FLETCHER32: _verified,
    _LZF: _unlzf,
}
