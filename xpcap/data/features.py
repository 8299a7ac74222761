"""Image features in an HDF5 file: read as a whole, or row by row when indexed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy

from xpcap.data.hdf5 import DAMAGED
from xpcap.data.row_reader import open_rows
from xpcap.errors import DataError

BLOCK_BYTES = 128 * 2**20
FEATURE_DTYPES = ("float32", "float16")


class Features(Protocol):
    """Features `(images, D)`: a NumPy array or `LazyFeatures`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Images, D."""

    @property
    def dtype(self) -> numpy.dtype[Any]:
        """Floating."""

    def __getitem__(self, rows: Any, /) -> Any:
        """Return the features of the images `rows`."""


def row_blocks(features: Features) -> Iterator[slice]:
    """Yield consecutive slices of all rows, each of at most 128 MiB in float32."""
    count, width = features.shape
    height = max(1, BLOCK_BYTES // (4 * max(1, width)))
    for first in range(0, count, height):
        yield slice(first, min(first + height, count))


def read_features(path: Path, dtype: str = "float32") -> numpy.ndarray:
    """Read a whole feature file, as `LazyFeatures` does.

    Raises
    ------
    DataError
        Also if the features do not fit in memory.
    """
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

    The HDF5 file holds a floating array `features (images, D)`: fastest if uncompressed and
    contiguous, h5py's default; gzip and shuffle are read too. Rows are returned as `"float32"`, or
    `"float16"` for half the memory and about three digits.

    Raises
    ------
    DataError
        If the file is missing, truncated or has other contents; when indexed, if it cannot be read
        there, or a value is not finite in `dtype`.
    """

    def __init__(self, path: Path, dtype: str = "float32") -> None:
        if dtype not in FEATURE_DTYPES:
            raise DataError(f"feature dtype '{dtype}' is unknown; expected {FEATURE_DTYPES}")
        self.path = path
        self.dtype: numpy.dtype[Any] = numpy.dtype(dtype)
        self._reader = open_rows(path, "features")
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
