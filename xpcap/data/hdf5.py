"""Opening HDF5 files that nobody vouches for, and writing small ones.

An array is part of its file: it is no link, and none of its numbers are in other files. It takes at
most as much memory as `check_swelling` allows, and its chunks are unpacked by `Chunks`.
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
"""What h5py raises where the bytes of a file make no sense."""

KINDS = {"f": "floating", "iu": "integer"}


def open_hdf5(path: Path) -> Any:
    """Open an HDF5 file for reading.

    Returns
    -------
    h5py.File
        Close it when done.

    Raises
    ------
    DataError
        If it is missing, no HDF5 file, or shorter than its header says.
    """
    import h5py

    check_plain(path)
    with explained(path, "read"), open(path, "rb"):
        pass  # not ours to read: said in the system's own words
    try:
        return h5py.File(path, "r")
    except DAMAGED as error:
        reason = "is truncated" if "truncated" in str(error) else "is not an HDF5 file"
        raise DataError(f"{path} {reason}; expected a whole HDF5 file") from error


def find_array(file: Any, path: Path, key: str, ndim: int, kinds: str) -> Any:
    """Find an array in an open file and check what it is.

    Parameters
    ----------
    file, path
        The open file and its path.
    key
        The array's name.
    ndim
        How many axes it must have.
    kinds
        Which NumPy kinds of dtype it may have: `"f"` floating, `"iu"` integer.

    Returns
    -------
    h5py.Dataset
        Not read yet.

    Raises
    ------
    DataError
        It names the file, the key, what was found and what was expected.
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
            raise DataError(f"{path}: '{key}' has its numbers in other places; {expected}")
        _check_size(path, key, found)
    return found


def _check_size(path: Path, key: str, array: Any) -> None:
    """Check that an array, or a chunk of it, takes about as much memory as room in the file."""
    stored = min(array.id.get_storage_size(), path.stat().st_size)
    for shape in (array.shape, array.chunks or ()):
        size = prod(shape) * array.dtype.itemsize
        check_swelling(f"{path}: '{key}' of shape {array.shape}", size, stored)


@contextlib.contextmanager
def whole(path: Path, key: str, doing: str = "read") -> Iterator[None]:
    """Turn what h5py raises inside the block into a `DataError`: that an array is damaged."""
    try:
        yield
    except DataError:
        raise
    except DAMAGED as error:
        raise DataError(f"{path} is damaged: '{key}' cannot be {doing}") from error


def read_array(file: Any, path: Path, key: str, ndim: int, kinds: str) -> Any:
    """Read an array of an open file whole, with the checks of `find_array`.

    Raises
    ------
    DataError
        As `find_array`, and if its bytes cannot be read.
    """
    found = find_array(file, path, key, ndim, kinds)
    with whole(path, key):
        if found.chunks is None:
            return found[...]
        with contextlib.closing(Chunks(path, key, found)) as chunks:
            return chunks.read(0, len(found))


def write_arrays(path: Path, arrays: Mapping[str, numpy.ndarray]) -> None:
    """Write arrays that fit in memory twice under their names into a new HDF5 file.

    The file is made in memory first: HDF5 itself can crash where a disk turns out to be full only
    when it closes the file.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    import h5py

    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    # bytes, which getvalue shares with `image`: an exported buffer that the traceback of a failed
    # write keeps alive can crash Python 3.12.1 when it is garbage collected
    path.write_bytes(image.getvalue())
