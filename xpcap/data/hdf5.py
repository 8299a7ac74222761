"""Opening HDF5 files that may be missing, truncated or something else, and writing small ones."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from xpcap.errors import DataError
from xpcap.files import explained

DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError)
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

    with explained(path, "read"), open(path, "rb"):
        pass  # missing, a folder, not ours to read: said in the system's own words
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
    try:
        keys = sorted(map(str, file))
        found = file[key] if key in keys else None
        kind = found.dtype.kind if isinstance(found, h5py.Dataset) else ""
    except DAMAGED as error:
        raise DataError(f"{path} is damaged: '{key}' cannot be found in it") from error
    if found is None:
        raise DataError(
            f"{path}: no '{key}' in it, only {', '.join(keys) or 'nothing'}; {expected}"
        )
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"{path}: '{key}' is a group; {expected}")
    if found.ndim != ndim or kind not in kinds:
        raise DataError(f"{path}: '{key}' is {found.dtype} of shape {found.shape}; {expected}")
    return found


def read_array(file: Any, path: Path, key: str, ndim: int, kinds: str) -> Any:
    """Read an array of an open file whole, with the checks of `find_array`.

    Raises
    ------
    DataError
        As `find_array`, and if its bytes cannot be read.
    """
    found = find_array(file, path, key, ndim, kinds)
    try:
        return found[...]
    except DAMAGED as error:
        raise DataError(f"{path} is damaged: '{key}' cannot be read") from error


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
    path.write_bytes(image.getbuffer())
