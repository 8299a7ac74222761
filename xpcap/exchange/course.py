"""The course's dict of parameters as an `.npz` file; its LSTM has our order of gates, i, f, o, g.

    model.params = dict(numpy.load("captioner.npz"))

A GRU, which the course does not have, adds `bn`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy
from numpy.lib import format as npy

from xpcap.errors import DataError
from xpcap.exchange.parameters import shown, sizes_of
from xpcap.files import explained, new_file

_ENDING = ".npy"
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_SWELLING = 20  # weights can hardly be compressed; zeros are, by a factor of a thousand


class _Header(NamedTuple):
    """What is known of an array that is not read yet."""

    shape: tuple[int, ...]
    dtype: numpy.dtype[Any]


def write_npz(path: Path, params: Mapping[str, numpy.ndarray]) -> None:
    """Write parameters under their names.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    with new_file(path) as temporary, open(temporary, "wb") as file:
        numpy.savez(file, allow_pickle=False, **params)


def read_npz(path: Path) -> dict[str, numpy.ndarray]:
    """Read parameters from a file that nobody vouches for.

    Names and shapes are checked before any number is read, so that a small file cannot fill the
    memory.

    Raises
    ------
    DataError
        If the file is damaged, or its arrays are not the parameters of a captioner.
    ShapeError
        If their shapes do not fit together.
    """
    with explained(path, "read"):
        file = open(path, "rb")  # noqa: SIM115 - closed below
    with file:
        headers = _headers(path, file)
        sizes_of(str(path), headers)
        claimed = sum(prod(shape) * dtype.itemsize for shape, dtype in headers.values())
        if claimed > _SWELLING * path.stat().st_size:
            raise DataError(
                f"{path} would swell to {claimed} bytes, over {_SWELLING} times its size; expected"
                f" weights: {shown(headers)}"
            )
        file.seek(0)
        try:
            with numpy.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in headers}
        except Exception as error:  # zip files fail in many ways where bytes make no sense
            raise DataError(f"{path} is damaged: its arrays cannot be read") from error


def _headers(path: Path, file: IO[bytes]) -> dict[str, _Header]:
    """Read the names, shapes and dtypes of all arrays."""
    headers = {}
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if len(set(names)) == len(names) and all(name.endswith(_ENDING) for name in names):
                for name in names:
                    with archive.open(name) as member:
                        shape, _, dtype = _HEADERS[npy.read_magic(member)](member)
                    headers[name.removesuffix(_ENDING)] = _Header(shape, dtype)
                return headers
    except Exception as error:  # zip and array headers fail in many ways
        raise DataError(f"{path} is damaged: it is no whole .npz file") from error
    raise DataError(
        f"{path} is a zip file, but not one of NumPy's arrays; expected one of"
        " safetensors.torch.save_file (not of torch.save), or of numpy.savez"
    )
