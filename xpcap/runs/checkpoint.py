"""Checkpoints: the whole state of a training run in one file, which it resumes from bit for bit.

The file is in safetensors format: named arrays and a text. Reading it runs no code and allocates no
more than the file's length. The arrays are

    parameters.NAME         the model's parameters; names may contain dots
    memory.KEY.NAME         optimizer state for each parameter, such as Adam's m and v

and the text, `xpcap` in the metadata, is JSON:

    format                  2
    written_by              versions of xpcap, Python, NumPy and CuPy, and the device
    config                  the model's family and sizes, the data set, all options
    vocabulary              the words in the order of their indices; see `Vocabulary.stored`
    optimizer               settings of the update rule and its step count
    progress                see `TrainingProgress`

There is no random state: the order of captions depends only on the seed and the epoch, dropout
masks only on the seed and the step. A checkpoint can be read on any device.
"""

from __future__ import annotations

import json
import math
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy
import safetensors
import safetensors.numpy

import xpcap
from xpcap.backend import Array, to_host
from xpcap.data.vocabulary import Vocabulary
from xpcap.errors import CheckpointError, XpcapError
from xpcap.files import check_plain, explained, new_file

FORMAT = 2
_TEXT = "xpcap"
_DTYPES = ("F32", "F64")
_OF_BEST = ("best_loss", "best_value")


@dataclass(frozen=True)
class TrainingProgress:
    """How far training has come."""

    step: int = 0  # completed ones, also those of an unfinished epoch
    epoch: int = 0  # completed ones
    best_loss: float | None = None  # validation loss of the best epoch, in nats per word
    best_epoch: int = 0
    rate_scale: float = 1.0  # factor of the learning rate after recoveries from divergence
    recoveries: int = 0
    history: int = 0  # length in bytes of `history.jsonl` up to this step
    best_value: float | None = None  # of the metric by which the best epoch is selected, if any


@dataclass(frozen=True)
class TrainingState:
    """The state of training after a step; `memory` is the optimizer's, by kind and parameter."""

    parameters: Mapping[str, Array]
    memory: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    optimizer: Mapping[str, float] = field(default_factory=dict)  # settings, and `t` steps
    progress: TrainingProgress = field(default_factory=TrainingProgress)


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint file."""

    config: Mapping[str, Any]  # `model`, `data` and `training`
    vocabulary: Vocabulary
    state: TrainingState
    written_by: Mapping[str, str] = field(default_factory=dict)  # versions and device


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint from any device; an existing file is replaced atomically or unchanged."""
    state = checkpoint.state
    text = {
        "format": FORMAT,
        "written_by": checkpoint.written_by,
        "config": checkpoint.config,
        "vocabulary": checkpoint.vocabulary.stored(),
        "optimizer": state.optimizer,
        "progress": asdict(state.progress),
    }
    arrays = {
        ".".join(name): numpy.ascontiguousarray(to_host(value))
        for name, value in named_arrays(state)
    }
    described = json.dumps(text, default=lambda number: number.item())  # NumPy's
    content = safetensors.numpy.save(arrays, {_TEXT: described})
    with new_file(path) as temporary:
        temporary.write_bytes(content)


def named_arrays(state: TrainingState) -> Iterator[tuple[tuple[str, ...], Array]]:
    """Yield all arrays of a state, each with the parts of its name in the file."""
    for name, value in state.parameters.items():
        yield ("parameters", name), value
    for key, by_name in state.memory.items():
        for name, value in by_name.items():
            yield ("memory", key, name), value


def written_by(device: str) -> dict[str, str]:
    """Return the versions that write a checkpoint, and the device."""
    versions = {
        "xpcap": xpcap.__version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "device": device,
    }
    if device.startswith("gpu"):
        versions["cupy"] = sys.modules["cupy"].__version__
    return versions


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint without trusting it.

    A file that is none, damaged, or of another format raises `CheckpointError`, which names its
    writer.
    """
    text, arrays = _read(path)
    try:
        return _parse(text, arrays)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path}: {_reason(error)}") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, numpy.ndarray]]:
    check_plain(path)
    try:
        with explained(path, "read"), safetensors.safe_open(path, framework="numpy") as file:
            text = json.loads((file.metadata() or {})[_TEXT])
            if not isinstance(text, dict):
                raise CheckpointError(f"{path}: expected a text that is a JSON object")
            _check_format(path, text)
            arrays = {}
            for name in file.keys():  # noqa: SIM118 - no mapping
                if file.get_slice(name).get_dtype() not in _DTYPES:
                    raise CheckpointError(f"{path}: '{name}' is not of float32 or float64")
                arrays[name] = file.get_tensor(name)
    except XpcapError:
        raise
    except (safetensors.SafetensorError, ValueError, KeyError, RecursionError) as error:
        empty = "" if path.stat().st_size else ": it is empty"
        raise CheckpointError(f"{path} is not a whole checkpoint of xpcap{empty}") from error
    return text, arrays


def _check_format(path: Path, text: Mapping[str, Any]) -> None:
    writer = text.get("written_by")
    if not isinstance(writer, dict):
        raise CheckpointError(
            f"{path} is no checkpoint of a run; weights that were exported become one by xpcap"
            " import"
        )
    if text.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {text.get('format')!r:.40}, written by xpcap"
            f" {writer.get('xpcap')!s:.40}; expected format {FORMAT}"
        )


def _parse(text: Mapping[str, Any], arrays: Mapping[str, numpy.ndarray]) -> Checkpoint:
    vocabulary = Vocabulary.checked(text["vocabulary"], "'vocabulary'")
    for name in ("config", "optimizer", "progress"):
        if not isinstance(text.get(name), dict):
            raise CheckpointError(f"expected '{name}', an object")
    parameters: dict[str, numpy.ndarray] = {}
    memory: dict[str, dict[str, numpy.ndarray]] = {}
    for name, value in arrays.items():
        match name.split(".", 1)[0], name.split(".", 2)[1:]:
            case "parameters", [_, *_]:
                parameters[name.removeprefix("parameters.")] = value
            case "memory", [key, parameter]:
                memory.setdefault(key, {})[parameter] = value
            case _:
                raise CheckpointError(f"'{name}' is no array of a checkpoint")
        if not numpy.isfinite(value).all():
            raise CheckpointError(f"'{name}' holds NaN or infinite numbers")
    expected = {name: (value.shape, value.dtype) for name, value in parameters.items()}
    for key, by_name in memory.items():
        if {name: (value.shape, value.dtype) for name, value in by_name.items()} != expected:
            raise CheckpointError(
                f"'memory.{key}' does not have the shapes and dtypes of the parameters"
            )
    for name, number in text["optimizer"].items():
        if type(number) not in (int, float) or not math.isfinite(number):
            raise CheckpointError(f"optimizer: expected '{name}' to be a number")
    state = TrainingState(parameters, memory, text["optimizer"], _progress(text["progress"]))
    return Checkpoint(text["config"], vocabulary, state, text["written_by"])


def _progress(found: Mapping[str, Any]) -> TrainingProgress:
    known = {one.name for one in fields(TrainingProgress)}
    if not known - {"best_value"} <= found.keys() <= known:  # older runs have none
        raise CheckpointError(f"progress: expected {', '.join(sorted(known))}")
    for name, value in found.items():
        kinds = (int, float) if name in (*_OF_BEST, "rate_scale") else (int,)
        if name in _OF_BEST and value is None:
            continue
        if type(value) not in kinds or not 0 <= value < 2**53:
            raise CheckpointError(f"progress: expected '{name}' to be a number from 0 on")
    return TrainingProgress(**found)


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"expected {error}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
