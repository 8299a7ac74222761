"""The course's dict of parameters as an `.npz` file, with our order of an LSTM's gates.

    model.params = dict(numpy.load("captioner.npz"))

A GRU, which the course does not have, adds `bn`.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy
from numpy.lib import format as npy

from xpcap.errors import DataError
from xpcap.exchange.parameters import shown, sizes_of
from xpcap.files import explained, new_file

_ENDING = ".npy"
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_LARGEST_RATIO = 20  # weights hardly compress; zeros do, a thousandfold


def write_npz(path: Path, params: Mapping[str, numpy.ndarray]) -> None:
    """Write parameters under their names."""
    with new_file(path) as temporary, open(temporary, "wb") as file:
        numpy.savez(file, allow_pickle=False, **params)


def read_npz(path: Path) -> dict[str, numpy.ndarray]:
    """Read parameters from an untrusted file; `DataError` or `ShapeError` if they are no captioner.

    Names and shapes are checked before any array is read, so that a small file cannot exhaust
    memory.
    """
    with explained(path, "read"):
        file = open(path, "rb")  # noqa: SIM115 - closed below
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headers of Python 2 are read, but NumPy remarks them
        headers = _headers(path, file)
        sizes_of(str(path), headers)
        claimed = sum(prod(h.shape) * h.dtype.itemsize for h in headers.values())
        if claimed > _LARGEST_RATIO * path.stat().st_size:
            raise DataError(
                f"{path} would expand to {claimed} bytes, over {_LARGEST_RATIO} times its size;"
                f" expected weights: {shown(headers)}"
            )
        file.seek(0)
        try:
            with numpy.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in headers}
        except Exception as error:  # zip readers raise many kinds of errors
            raise DataError(f"{path} is damaged: its arrays cannot be read") from error


def _headers(path: Path, file: IO[bytes]) -> dict[str, Any]:
    """Read the names of all arrays, with their `shape` and `dtype`."""
    headers = {}
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if len(set(names)) == len(names) and all(name.endswith(_ENDING) for name in names):
                for name in names:
                    with archive.open(name) as member:
                        shape, _, dtype = _HEADERS[npy.read_magic(member)](member)
                    header = SimpleNamespace(shape=shape, dtype=dtype)
                    headers[name.removesuffix(_ENDING)] = header
                return headers
    except Exception as error:  # and so do readers of headers
        raise DataError(f"{path} is damaged: it is not a whole .npz file") from error
    raise DataError(
        f"{path} is a zip file, but not one of NumPy's arrays; expected one of"
        " safetensors.torch.save_file (not of torch.save), or of numpy.savez"
    )
