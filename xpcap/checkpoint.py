"""Parameters in a file: written whole or not at all, read without trusting them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy

from xpcap.backend import Array, to_host
from xpcap.errors import CheckpointError
from xpcap.files import explained, new_file


def save_parameters(path: Path, params: Mapping[str, Array]) -> None:
    """Write parameters, from any device, as a NumPy `.npz` file.

    Raises
    ------
    DataError
        If the file cannot be written; one that was there before is then still whole.
    """
    host = {name: to_host(value) for name, value in params.items()}
    with new_file(path) as temporary, open(temporary, "wb") as file:
        numpy.savez(file, **host)


def load_parameters(path: Path, expected: Mapping[str, Array]) -> dict[str, numpy.ndarray]:
    """Read parameters and check them against those of a model.

    Parameters
    ----------
    path
        From `save_parameters`.
    expected
        Arrays with the names and shapes that must be there, such as a new model's `params`.

    Returns
    -------
    dict
        NumPy arrays by name.

    Raises
    ------
    CheckpointError
        It names the file, the parameter, what was found and what was expected.
    """
    with explained(path, "read"):
        file = open(path, "rb")  # noqa: SIM115 - closed below
    try:
        with file, numpy.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zip and array headers fail in many ways where bytes make no sense
        raise CheckpointError(f"{path} is not a whole parameter file (.npz)") from error
    if set(found) != set(expected):
        raise CheckpointError(
            f"{path} holds {', '.join(sorted(found)) or 'nothing'};"
            f" expected {', '.join(sorted(expected))}"
        )
    for name, value in found.items():
        if not isinstance(value, numpy.ndarray):
            raise CheckpointError(f"{path}: '{name}' is no array")
        if value.shape != expected[name].shape or value.dtype.kind != "f":
            raise CheckpointError(
                f"{path}: '{name}' is {value.dtype} of shape {value.shape};"
                f" expected floating of shape {tuple(expected[name].shape)}"
            )
        if not numpy.isfinite(value).all():
            raise CheckpointError(f"{path}: '{name}' holds NaN or infinite numbers")
    return found
