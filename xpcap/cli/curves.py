"""`xpcap curves`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xpcap.cli._options import echo, json_option, print_json, print_message, runs_argument

if TYPE_CHECKING:
    import numpy

    from xpcap.cli._chart import Series
    from xpcap.training.history import Curves

POINTS = 60  # of the training curve, at most
_CHARTS = {
    "advantage": ("advantage, its absolute value", "reward"),
    "baseline": ("baseline", "reward"),
    "reward": ("reward of captions drawn", "reward"),
    "words": ("words per caption", "words"),
    "repeats": ("captions that repeat a phrase", "share of captions"),
    "bad_endings": ("captions with bad endings", "share of captions"),
    "distinct": ("different captions of those drawn of an image", "captions"),
}
"""What is plotted of self-critical training, and in which chart; the entropy is the loss."""


@click.command()
@runs_argument
@json_option
def curves(runs: tuple[Path, ...], as_json: bool) -> None:
    """Plot the losses of a RUN over its steps, or the validation losses of several.

    The training loss is averaged over groups of steps, to at most 60 points. A metric that selects
    the best epoch, see xpcap train --select, has a chart of its own below. Self-critical training
    has charts of the captions that it draws, the reward first; its training loss is their entropy.
    A run may still be training; its last steps, up to 50, are not written yet.
    """
    histories = [_read(run) for run in runs]
    if as_json:
        print_json([_columns(run, found) for run, found in zip(runs, histories, strict=True)])
        return
    from xpcap.cli._chart import Screen, draw

    screen = Screen.of_standard_output()
    drawn = _of_samples(runs, histories)
    if "reward" in drawn:
        echo(draw(drawn.pop("reward"), "reward", screen) + "\n")
    series = _losses(runs[0], histories[0]) if len(runs) == 1 else _compared(runs, histories)
    echo(draw(series, "nats per word", screen))
    for metric in dict.fromkeys(name for found in histories for name in found.metrics):
        echo("\n" + draw(_of_metric(metric, runs, histories), metric, screen))
    for what, shown in drawn.items():
        echo("\n" + draw(shown, what, replace(screen, rows=0)))  # the lowest chart


def _read(run: Path) -> Curves:
    from xpcap.errors import CheckpointError
    from xpcap.runs import HISTORY, is_run
    from xpcap.runs.folder import not_a_run
    from xpcap.training.history import FLUSH_EVERY, read_history

    path = run / HISTORY
    if path.exists():
        return read_history(path)
    if is_run(run):
        raise CheckpointError(
            f"{run} has no {HISTORY} yet; it is written every {FLUSH_EVERY} steps of training"
        )
    raise not_a_run(run)


def _columns(run: Path, found: Curves) -> dict[str, Any]:
    """Return a history for JSON, with null for missing and non-finite values."""
    import numpy

    def plain(columns: dict[str, numpy.ndarray]) -> dict[str, list[float | None]]:
        return {
            name: [value if math.isfinite(value) else None for value in column.tolist()]
            for name, column in columns.items()
        }

    steps = ("step", "epoch", "loss", "lr", "grad_norm")
    epochs = {"step": found.epoch_step, "epoch": found.epoch_number}
    epochs |= {f"{split}_loss": values for split, values in found.losses.items()}
    epochs |= {f"{split}_perplexity": values for split, values in found.perplexities.items()}
    epochs |= {f"val_{name}": values for name, values in found.metrics.items()}
    for name in ("attention_entropy", "attention_entropy_share"):
        if numpy.isfinite(values := getattr(found, name)).any():
            epochs[name] = values
    return {
        "run": str(run),
        "steps": plain({name: getattr(found, name) for name in steps} | dict(found.samples)),
        "epochs": plain(epochs),
        "best_epoch": None if found.best is None else int(found.epoch_number[found.best]),
    }


def _losses(run: Path, found: Curves) -> list[Series]:
    """Return the training and validation curves of one run, and its best epoch."""
    from xpcap.cli._chart import BEST, COLOURS, GREY, MARKS, RED, Series
    from xpcap.errors import DataError

    series = []
    size, step, loss = found.smoothed("loss", POINTS)
    if len(step):
        what = "entropy of captions drawn, the training loss" if found.samples else "training loss"
        series.append(Series(_ends(what, size, loss), step, loss, GREY))
    step, loss = _finite(found, found.val_loss)
    if len(step):
        what = "validation loss, of references" if found.samples else "validation loss"
        series.append(Series(what, step, loss, COLOURS[0], MARKS[0]))
        best = step == found.epoch_step[found.best]
        if best.any():
            series.append(Series(_best(found), step[best], loss[best], RED, BEST))
    if not series:
        raise DataError(f"{run} has no finite loss yet")
    return series


def _ends(what: str, size: int, values: numpy.ndarray) -> str:
    means = f", means of {size} steps" if size > 1 else ""
    return f"{what}{means}: {values[0]:.4g} to {values[-1]:.4g}"


def _of_samples(runs: Sequence[Path], histories: Sequence[Curves]) -> dict[str, list[Series]]:
    """Return the charts of self-critical training: of several runs, their rewards alone."""
    from xpcap.cli._chart import COLOURS, MARKS, Series

    charts: dict[str, list[Series]] = {}
    for run, found, look in zip(runs, histories, _looks(), strict=False):
        for name, (what, unit) in _CHARTS.items():
            if name in found.samples and (len(runs) == 1 or name == "reward"):
                size, step, values = found.smoothed(name, POINTS // 3)
                chart = charts.setdefault(unit, [])
                looks = look if len(runs) > 1 else (COLOURS[len(chart)], MARKS[len(chart)])
                label = _ends(what if len(runs) == 1 else f"{run}: {what}", size, values)
                chart.append(Series(label, step, values, *looks))
    return charts


def _compared(runs: Sequence[Path], histories: Sequence[Curves]) -> list[Series]:
    """Return the validation curves of several runs."""
    from xpcap.cli._chart import Series
    from xpcap.errors import DataError

    series = []
    for run, found, look in zip(runs, histories, _looks(), strict=False):
        step, loss = _finite(found, found.val_loss)
        if len(step):
            series.append(Series(f"{run}: {_best(found)}", step, loss, *look))
        else:
            print_message(f"{run} has no epoch yet")
    if not series:
        raise DataError("none of the runs has an epoch yet")
    return series


def _of_metric(metric: str, runs: Sequence[Path], histories: Sequence[Curves]) -> list[Series]:
    """Return the curves of the runs whose best epochs a metric selects."""
    from xpcap.cli._chart import Series

    series = []
    for run, found, look in zip(runs, histories, _looks(), strict=False):
        if metric in found.metrics:
            step, value = _finite(found, found.metrics[metric])
            label = (
                f"{run}: best epoch {found.epoch_number[found.best]}, {metric} {value.max():.4f}"
            )
            series.append(Series(label, step, value, *look))
    return series


def _looks() -> Iterator[tuple[int, str]]:
    """Yield a colour and a mark for each run."""
    from xpcap.cli._chart import COLOURS, MARKS

    return zip(itertools.cycle(COLOURS), itertools.cycle(MARKS), strict=False)


def _finite(found: Curves, values: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return the steps and values of the epochs of which the value is finite."""
    import numpy

    known = numpy.isfinite(values)
    return found.epoch_step[known], values[known]


def _best(found: Curves) -> str:
    from xpcap.training.trainer import perplexity_of

    assert found.best is not None
    loss = float(found.val_loss[found.best])
    return (
        f"best epoch {found.epoch_number[found.best]} of {len(found.epoch_number)}:"
        f" loss {loss:.4f}, perplexity {perplexity_of(loss):.2f}"
    )
