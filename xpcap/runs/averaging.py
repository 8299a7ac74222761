"""Averaging the parameters of a run's last checkpoints.

Steps leave parameters scattered around a minimum, and their mean is nearer to it than most of them
(Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992). Vaswani et
al., "Attention is all you need", 2017, average the last 5 to 20 checkpoints of a Transformer.
"""

from __future__ import annotations

from pathlib import Path

import numpy

from xpcap.errors import CheckpointError, DataError
from xpcap.files import explained
from xpcap.options import check_counts, given
from xpcap.runs.checkpoint import (
    Checkpoint,
    TrainingState,
    read_checkpoint,
    write_checkpoint,
    written_by,
)
from xpcap.runs.folder import AVERAGE, EARLIER, is_run, not_a_run


def average_checkpoints(
    folder: str | Path, out: str | Path | None = None, *, last: int | None = None
) -> Path:
    """Write the mean parameters of a run's kept checkpoints as a new checkpoint; return its path.

    It can be opened like any other, but not resumed from. Means are computed in float64 and stored
    in the run's dtype.

    Parameters
    ----------
    folder
        The run folder; training with `keep=N` keeps checkpoints.
    out
        The file to write, a new name; by default `average.safetensors` in the folder.
    last
        The number of checkpoints, at least 2; by default all that are kept.

    Raises
    ------
    CheckpointError
        If too few checkpoints are kept, or one is damaged or that of another model.
    DataError
        If the file exists, cannot be written, or has a name that training gives.
    """
    folder = Path(folder)
    path = folder / AVERAGE if out is None else Path(out)
    check_counts(2, **given(last=last))
    if not is_run(folder):
        raise not_a_run(folder)
    with explained(path, "write"):
        if path.exists():
            raise DataError(f"{path} exists; expected a new name (out=FILE)")
    if path.match(EARLIER):
        raise DataError(f"{path} has a name of training's checkpoints; expected another (out=FILE)")
    kept, least = sorted(folder.glob(EARLIER)), last or 2
    if len(kept) < least:
        raise CheckpointError(
            f"{folder} has {len(kept)} of the checkpoints that training keeps; expected {least} or"
            " more: keep=N keeps those of the last N epochs, and with save_every=N ones in between"
        )
    write_checkpoint(path, _mean(kept if last is None else kept[-last:]))
    return path


def _mean(paths: list[Path]) -> Checkpoint:
    """Average checkpoints, the newest of which is the last."""
    newest = read_checkpoint(paths[-1])
    totals = {name: value.astype(numpy.float64) for name, value in newest.state.parameters.items()}
    steps = [newest.state.progress.step]
    for path in paths[:-1]:
        one = read_checkpoint(path)
        _check_alike(path, one, paths[-1], newest)
        steps.append(one.state.progress.step)
        for name, value in one.state.parameters.items():
            totals[name] += value
    parameters = {
        name: (totals[name] / len(paths)).astype(value.dtype)
        for name, value in newest.state.parameters.items()
    }
    config = {**newest.config, "averaged": {"steps": sorted(steps)}}
    state = TrainingState(parameters, progress=newest.state.progress)
    return Checkpoint(config, newest.vocabulary, state, written_by("cpu"))


def _check_alike(path: Path, one: Checkpoint, other_path: Path, other: Checkpoint) -> None:
    """Raise `CheckpointError` unless two checkpoints have the same model and vocabulary."""
    for what, found, expected in (
        ("model", one.config.get("model"), other.config.get("model")),
        ("vocabulary", one.vocabulary.stored(), other.vocabulary.stored()),
        ("parameters", _shapes(one), _shapes(other)),
    ):
        if found != expected:
            raise CheckpointError(f"{path} has another {what} than {other_path}; expected the same")


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[tuple[int, ...], str]]:
    parameters = checkpoint.state.parameters
    return {name: (value.shape, value.dtype.name) for name, value in parameters.items()}
