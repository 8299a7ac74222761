"""Image features in an HDF5 file: read whole, or row by row as they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy

from xpcap.data.hdf5 import DAMAGED
from xpcap.data.row_reader import open_rows
from xpcap.errors import DataError

BLOCK_BYTES = 64 * 2**20
FEATURE_DTYPES = ("float32", "float16")


class Features(Protocol):
    """What a data set needs of its features; a NumPy array has it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Images, D."""

    @property
    def dtype(self) -> numpy.dtype[Any]:
        """Floating."""

    def __getitem__(self, rows: Any, /) -> Any:
        """Return the features of the images `rows`."""


def read_features(path: Path, dtype: str = "float32") -> numpy.ndarray:
    """Read a whole feature file.

    Parameters
    ----------
    path
        An HDF5 file with the floating array `features (images, D)`.
    dtype
        `"float32"`, or `"float16"` for half the memory and about three digits.

    Returns
    -------
    array
        `(images, D)` of that dtype.

    Raises
    ------
    DataError
        If the file is missing, truncated, holds something else, or a number in it is not finite
        (or too large for `dtype`).
    """
    lazy = LazyFeatures(path, dtype)
    try:
        out = numpy.empty(lazy.shape, dtype)
    except (MemoryError, ValueError) as error:
        raise DataError(
            f"{path}: 'features' of shape {lazy.shape} do not fit in memory; leave them in their"
            " file (--lazy)"
        ) from error
    block = max(1, BLOCK_BYTES // (4 * max(1, lazy.shape[1])))
    for first in range(0, len(out), block):
        out[first : first + block] = lazy[slice(first, first + block)]
    lazy.close()
    return out


class LazyFeatures:
    """Features that stay in their file; indexing reads the rows asked for, from any thread.

    Parameters
    ----------
    path
        An HDF5 file with the floating array `features (images, D)`. Uncompressed and in one piece,
        as h5py writes it unless told otherwise, it is read at a fraction of memory's speed.
    dtype
        Of what is returned: `"float32"` or `"float16"`.

    Raises
    ------
    DataError
        If the file is missing, truncated or holds something else.
    """

    def __init__(self, path: Path, dtype: str = "float32") -> None:
        if dtype not in FEATURE_DTYPES:
            raise DataError(f"feature dtype '{dtype}' is unknown; expected {FEATURE_DTYPES}")
        self.path = path
        self.dtype: numpy.dtype[Any] = numpy.dtype(dtype)
        self._reader = open_rows(path, "features")
        self.shape = self._reader.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> numpy.ndarray:
        """Read rows, named in any way in which NumPy names them: a slice, or integers `(N,)`.

        Raises
        ------
        DataError
            If the file cannot be read there, or a number is not finite.
        """
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
                f"{self.path}: 'features' holds NaN or infinite numbers (as {self.dtype});"
                " expected finite ones"
            )
        return found

    def close(self) -> None:
        """Close the file."""
        self._reader.close()
