"""`xpcap curves`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xpcap.cli._options import AnyPath, json_option, show_json, talk

if TYPE_CHECKING:
    import numpy

    from xpcap.cli._chart import Series
    from xpcap.train.history import Curves

POINTS = 60  # of the training loss


@click.command()
@click.argument("runs", metavar="RUN...", type=AnyPath, nargs=-1, required=True)
@json_option
def curves(runs: tuple[Path, ...], as_json: bool) -> None:
    """Draw the losses of a RUN over its steps, or the validation losses of several.

    The training loss is smoothed: each point is the mean of as many steps as leave 60 points or
    fewer. A run may still be training; its last steps, up to 50, are not written yet.
    """
    histories = [_read(run) for run in runs]
    if as_json:
        show_json([_columns(run, found) for run, found in zip(runs, histories, strict=True)])
        return
    from xpcap.cli._chart import Screen, draw

    series = _losses(runs[0], histories[0]) if len(runs) == 1 else _compared(runs, histories)
    click.echo(draw(series, "nats a word", Screen.of_standard_output()))


def _read(run: Path) -> Curves:
    from xpcap.errors import CheckpointError
    from xpcap.runs import HISTORY, is_run
    from xpcap.train.history import FLUSH_EVERY, read_history

    path = run / HISTORY
    if path.exists():
        return read_history(path)
    if is_run(run):
        raise CheckpointError(
            f"{run} has no {HISTORY} yet; it is written every {FLUSH_EVERY} steps of training"
        )
    raise CheckpointError(f"{run} is not a run; expected a folder made by xpcap train")


def _columns(run: Path, found: Curves) -> dict[str, Any]:
    """Return a history as a program wants it: null where there is no figure."""

    def plain(values: numpy.ndarray) -> list[float | None]:
        return [value if math.isfinite(value) else None for value in values.tolist()]

    return {
        "run": str(run),
        "steps": {
            "step": found.step.tolist(),
            "epoch": found.epoch.tolist(),
            "loss": plain(found.loss),
            "lr": plain(found.lr),
            "grad_norm": plain(found.grad_norm),
        },
        "epochs": {
            "step": found.epoch_step.tolist(),
            "epoch": found.epoch_number.tolist(),
            **{f"{split}_loss": plain(values) for split, values in found.losses.items()},
            **{f"{split}_perplexity": plain(v) for split, v in found.perplexities.items()},
        },
        "best_epoch": None if found.best is None else int(found.epoch_number[found.best]),
    }


def _losses(run: Path, found: Curves) -> list[Series]:
    """Return the curves of one run: training, validation and the best epoch."""
    from xpcap.cli._chart import BEST, COLOURS, GREY, MARKS, RED, Series
    from xpcap.errors import DataError

    series = []
    size, step, loss = smoothed(found, POINTS)
    if len(step):
        means = f", means of {size} steps" if size > 1 else ""
        label = f"training loss{means}: {loss[0]:.4g} to {loss[-1]:.4g}"
        series.append(Series(label, step, loss, GREY))
    step, loss = _validation(found)
    if len(step):
        series.append(Series("validation loss", step, loss, COLOURS[0], MARKS[0]))
        best = slice(k := int(loss.argmin()), k + 1)
        series.append(Series(_best(found), step[best], loss[best], RED, BEST))
    if not series:
        raise DataError(f"{run} has no finite loss yet")
    return series


def _compared(runs: Sequence[Path], histories: Sequence[Curves]) -> list[Series]:
    """Return the validation curves of several runs."""
    from xpcap.cli._chart import COLOURS, MARKS, Series
    from xpcap.errors import DataError

    looks = zip(itertools.cycle(COLOURS), itertools.cycle(MARKS), strict=False)
    series = []
    for run, found, (colour, mark) in zip(runs, histories, looks, strict=False):
        step, loss = _validation(found)
        if len(step):
            series.append(Series(f"{run}: {_best(found)}", step, loss, colour, mark))
        else:
            talk(f"{run} has no epoch yet")
    if not series:
        raise DataError("none of the runs has an epoch yet")
    return series


def smoothed(found: Curves, points: int) -> tuple[int, numpy.ndarray, numpy.ndarray]:
    """Take means of the training loss over groups of steps.

    Parameters
    ----------
    found
        The history; steps without a finite loss do not count.
    points
        How many groups there may be.

    Returns
    -------
    size, step, loss
        How many steps are a group, the last perhaps excepted; each group's mean step and mean loss.
    """
    import numpy

    known = numpy.isfinite(found.loss)
    size = max(1, math.ceil(known.sum() / points))
    starts = numpy.arange(0, known.sum(), size)
    counts = numpy.diff(starts, append=known.sum())
    step, loss = (
        numpy.add.reduceat(values[known], starts) / counts if len(starts) else values[known]
        for values in (found.step, found.loss)
    )
    return size, step, loss


def _validation(found: Curves) -> tuple[numpy.ndarray, numpy.ndarray]:
    import numpy

    known = numpy.isfinite(found.val_loss)
    return found.epoch_step[known], found.val_loss[known]


def _best(found: Curves) -> str:
    from xpcap.train.trainer import perplexity_of

    assert found.best is not None
    loss = float(found.val_loss[found.best])
    return (
        f"best epoch {found.epoch_number[found.best]} of {len(found.epoch_number)}:"
        f" loss {loss:.4f}, perplexity {perplexity_of(loss):.2f}"
    )
