"""Reading untrusted HDF5 files, and writing small ones.

An array must be stored in its own file: links, virtual and external data sets are refused. It takes
at most as much memory as `check_swelling` allows, and its chunks are decompressed by `Chunks`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.chunks import Chunks
from xpcap.errors import DataError
from xpcap.files import check_plain, check_swelling, explained

DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)
"""Exceptions of h5py for damaged files."""

KINDS = {"f": "floating", "iu": "integer"}


def open_hdf5(path: Path) -> Any:
    """Open an HDF5 file for reading, as an `h5py.File` that the caller closes.

    Raises
    ------
    DataError
        If it is missing, not an HDF5 file, or shorter than its header says.
    """
    import h5py

    check_plain(path)
    with explained(path, "read"), open(path, "rb"):
        pass  # a missing permission is reported in the system's own words
    try:
        return h5py.File(path, "r")
    except DAMAGED as error:
        reason = "is truncated" if "truncated" in str(error) else "is not an HDF5 file"
        raise DataError(f"{path} {reason}; expected a whole HDF5 file") from error


def find_array(file: Any, path: Path, key: str, ndim: int, kinds: str) -> Any:
    """Find the array `key` in an open file and check it, without reading its values.

    Parameters
    ----------
    file, path
        Open file and its path.
    key, ndim, kinds
        Name, number of axes, and NumPy kinds of dtype: `"f"` floating, `"iu"` integer.

    Returns
    -------
    h5py.Dataset

    Raises
    ------
    DataError
        If there is no such array, or its size is implausible.
    """
    import h5py

    expected = f"expected an {ndim}-dimensional {KINDS[kinds]} array"
    with whole(path, key, "found in it"):
        keys = sorted(map(str, file))
        if key not in keys:
            raise DataError(
                f"{path}: no '{key}' in it, only {', '.join(keys) or 'nothing'}; {expected}"
            )
        if not isinstance(file.get(key, getlink=True), h5py.HardLink):
            raise DataError(f"{path}: '{key}' is a link; {expected}")
        found = file[key]
        if not isinstance(found, h5py.Dataset):
            raise DataError(f"{path}: '{key}' is a group; {expected}")
        if found.ndim != ndim or found.dtype.kind not in kinds:
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
    """Turn exceptions of h5py inside the block into a `DataError`: an array is damaged."""
    try:
        yield
    except DataError:
        raise
    except DAMAGED as error:
        raise DataError(f"{path} is damaged: '{key}' cannot be {doing}") from error


def read_array(file: Any, path: Path, key: str, ndim: int, kinds: str) -> Any:
    """Read a whole array, checked as by `find_array`."""
    found = find_array(file, path, key, ndim, kinds)
    with whole(path, key):
        if found.chunks is None:
            return found[...]
        with contextlib.closing(Chunks(path, key, found)) as chunks:
            return chunks.read(0, len(found))


def write_arrays(path: Path, arrays: Mapping[str, numpy.ndarray]) -> None:
    """Write arrays by name into a new HDF5 file, or raise an `OSError`.

    The file is built in memory first, which takes their size a second time: HDF5 can crash if the
    disk turns out to be full when it closes a file.
    """
    import h5py

    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    # bytes, which getvalue shares with `image`: an exported buffer that the traceback of a failed
    # write keeps alive can crash Python 3.12.1 when it is garbage collected
    path.write_bytes(image.getvalue())
