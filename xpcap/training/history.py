"""The history of training as JSON lines: one object per step, and one per epoch."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy

from xpcap.errors import DataError
from xpcap.files import append, explained, read_bytes
from xpcap.metrics import QUALITY
from xpcap.training.samples import FIGURES
from xpcap.training.trainer import Priority, StepResult, Trainer, perplexity_of

FLUSH_EVERY = 50
_LARGEST = 2**53  # integers up to here are floats too
_COLUMNS = 32  # largest number of names; each costs memory for every line

Line: TypeAlias = dict[str, Any]


class History:
    """Writes a run's `history.jsonl`.

    A step is `{"step", "epoch", "lr", "loss", "grad_norm"}`: loss in nats per word and norm of the
    gradient before clipping, null if not finite; of self-critical training also the `FIGURES` of
    the captions drawn, whose entropy is the loss. An epoch is `{"step", "epoch"}` and
    `{split}_loss`, `{split}_perplexity` for each split measured; of a model with attention also
    those of `AttentionEntropy`, and `val_{metric}` if a `CaptionMetric` selects the best epoch.
    Losses and norms stay on the device until lines are written, and are read together.

    Parameters
    ----------
    path
        Lines are appended to this file. None writes nothing: another process does.
    length
        Bytes of the file to keep when a run is resumed; of a shorter file, its whole lines.
    also
        Called with the lines written, and the time of each in seconds since 1970.
    warn
        Write-error callback; lines are tried again with the next ones. If None, errors propagate.
    check
        Called with the trainer before anything is written; may raise.
    """

    def __init__(
        self,
        path: Path | None,
        length: int = 0,
        also: Callable[[Sequence[tuple[float, Line]]], None] | None = None,
        warn: Callable[[str], None] | None = None,
        check: Callable[[Trainer], None] | None = None,
    ) -> None:
        self.path = path
        self.length = _whole_lines(path, length)
        if path is not None and self.length < length and warn is not None:
            warn(f"warning: {path} lacks some steps; it is continued as it is")
        self._also = also
        self._warn = warn
        self._check = check
        self._pending: list[tuple[float, Line, StepResult | None]] = []
        self._steps = 0  # since the last attempt to write; ranks flush together also after an error

    def follow(self, trainer: Trainer) -> None:
        """Record all steps and epochs of a trainer from now on."""
        trainer.on("step", self._step, Priority.RECORD)
        trainer.on("epoch", self._epoch, Priority.RECORD)

    def _step(self, trainer: Trainer) -> None:
        line = {"step": trainer.step, "epoch": trainer.epoch + 1, "lr": trainer.learning_rate}
        line |= trainer.training_step.measured
        self._pending.append((time.time(), line, trainer.result))
        self._steps += 1
        if self._steps >= FLUSH_EVERY:
            self.flush(trainer)

    def _epoch(self, trainer: Trainer) -> None:
        line: Line = {"step": trainer.step, "epoch": trainer.epoch}
        for name, loss in trainer.losses.items():
            line[f"{name}_loss"] = loss
            line[f"{name}_perplexity"] = perplexity_of(loss)
        line |= trainer.figures
        self._pending.append((time.time(), line, None))
        self.flush(trainer)

    def flush(self, trainer: Trainer) -> None:
        """Write pending lines to the disk; if that fails, they stay pending."""
        self._steps = 0
        if self._check is not None:
            self._check(trainer)
        StepResult.fetch(result for _, _, result in self._pending if result is not None)
        lines = [(when, _complete(line, result)) for when, line, result in self._pending]
        text = "".join(f"{json.dumps(line)}\n" for _, line in lines).encode()
        try:
            if self.path is not None:
                append(self.path, text, self.length)
            self.length += len(text)
            self._pending.clear()
            if self._also is not None:
                self._also(lines)
        except DataError as error:
            if self._warn is None:
                raise
            self._warn(f"warning: {error}; training continues")

    def drop(self, step: int) -> None:
        """Remove pending lines of steps after `step`, which are undone."""
        self._pending = [entry for entry in self._pending if entry[1]["step"] <= step]


def _complete(line: Line, result: StepResult | None) -> Line:
    if result is None:
        return line
    whole = {**line, "loss": result.loss, "grad_norm": result.gradient_norm}
    return {name: _finite(value) for name, value in whole.items()}


def _whole_lines(path: Path | None, length: int) -> int:
    """Return the length of the whole lines in the first `length` bytes of a file."""
    if path is None:
        return 0
    with explained(path, "read"):
        if not length or not path.exists():
            return 0
    return read_bytes(path)[:length].rfind(b"\n") + 1


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


@dataclass(frozen=True)
class Curves:
    """A run's history of S steps and E epochs as columns, NaN where there is no value."""

    step: numpy.ndarray  # (S,) integers from 1
    epoch: numpy.ndarray  # (S,) integers from 1
    loss: numpy.ndarray  # (S,), nats per word
    lr: numpy.ndarray  # (S,)
    grad_norm: numpy.ndarray  # (S,), before clipping
    samples: Mapping[str, numpy.ndarray]  # by name, (S,): `FIGURES` of self-critical training
    epoch_step: numpy.ndarray  # (E,) integers: the last step of each epoch
    epoch_number: numpy.ndarray  # (E,) integers
    losses: Mapping[str, numpy.ndarray]  # by split, (E,), nats per word
    perplexities: Mapping[str, numpy.ndarray]  # by split, (E,): e to that power
    metrics: Mapping[str, numpy.ndarray]  # by name, (E,): one, if it selects the best epoch
    attention_entropy: numpy.ndarray  # (E,), nats per word
    attention_entropy_share: numpy.ndarray  # (E,), of the largest entropy possible

    @property
    def val_loss(self) -> numpy.ndarray:
        """The validation loss after each epoch, `(E,)`."""
        return self.losses.get("val", numpy.full(len(self.epoch_step), numpy.nan))

    @property
    def best(self) -> int | None:
        """The index of the epoch with the highest metric, then the lowest loss; or None."""
        score = next(iter(self.metrics.values()), -self.val_loss)
        known = numpy.flatnonzero(numpy.isfinite(score)).tolist()
        return max(known, key=lambda k: (score[k], -self.val_loss[k]), default=None)

    def smoothed(self, name: str, points: int) -> tuple[int, numpy.ndarray, numpy.ndarray]:
        """Average the finite values of a column over groups of steps.

        Returns the group size (the last group may be smaller), and the mean step and value of each
        of at most `points` groups.
        """
        values = self.samples[name] if name in self.samples else getattr(self, name)
        known = numpy.isfinite(values)
        size = max(1, math.ceil(known.sum() / points))
        starts = numpy.arange(0, known.sum(), size)
        counts = numpy.diff(starts, append=known.sum())
        step, value = (
            numpy.add.reduceat(column[known], starts) / counts if len(starts) else column[known]
            for column in (self.step, values)
        )
        return size, step, value


def read_history(path: Path) -> Curves:
    """Read a `history.jsonl`, also while it is being written: an incomplete last line is left out.

    A line that is not one of `History` is named in a `DataError`.
    """
    lines = read_bytes(path).split(b"\n")
    steps, epochs, names = list[Line](), list[Line](), set[str]()
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise DataError(f"{path}, line {number} is not JSON: {error}") from error
        try:
            _check(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        (steps if "loss" in line else epochs).append(line)
        names.update(line)
        if len(names) > _COLUMNS:
            raise DataError(f"{path}, line {number}: expected at most {_COLUMNS} names in all")
    return Curves(
        step=_integers(steps, "step"),
        epoch=_integers(steps, "epoch"),
        loss=_floats(steps, "loss"),
        lr=_floats(steps, "lr"),
        grad_norm=_floats(steps, "grad_norm"),
        samples=_known(steps, {name: name for name in FIGURES}),
        epoch_step=_integers(epochs, "step"),
        epoch_number=_integers(epochs, "epoch"),
        losses=_by_split(epochs, "_loss"),
        perplexities=_by_split(epochs, "_perplexity"),
        metrics=_known(epochs, {name: f"val_{name}" for name in QUALITY}),
        attention_entropy=_floats(epochs, "attention_entropy"),
        attention_entropy_share=_floats(epochs, "attention_entropy_share"),
    )


def _check(line: Any) -> None:
    if not isinstance(line, dict):
        raise ValueError("expected an object")
    for name in ("step", "epoch"):
        if type(line.get(name)) is not int or not 0 < line[name] <= _LARGEST:
            raise ValueError(f"expected '{name}' to be from 1 on, got {line.get(name)!r:.40}")
    for name, value in line.items():
        number = type(value) is float or (type(value) is int and abs(value) <= _LARGEST)
        if not number and value is not None:
            raise ValueError(f"expected '{name}' to be a number or null, got {value!r:.40}")


def _integers(lines: Sequence[Line], name: str) -> numpy.ndarray:
    return numpy.array([line[name] for line in lines], numpy.int64)


def _floats(lines: Sequence[Line], name: str) -> numpy.ndarray:
    return numpy.array([line.get(name) for line in lines], numpy.float64)  # None becomes NaN


def _known(lines: Sequence[Line], names: Mapping[str, str]) -> dict[str, numpy.ndarray]:
    """Return the columns that have a finite value, by other names than in the file."""
    columns = {name: _floats(lines, in_file) for name, in_file in names.items()}
    return {name: values for name, values in columns.items() if numpy.isfinite(values).any()}


def _by_split(lines: Sequence[Line], ending: str) -> dict[str, numpy.ndarray]:
    names = dict.fromkeys(name for line in lines for name in line if name.endswith(ending))
    return {name.removesuffix(ending): _floats(lines, name) for name in names}
