"""What happened in training, as JSON lines: an object a step, and one an epoch."""

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
from xpcap.train.trainer import StepFigures, Trainer, fetch

FLUSH_EVERY = 50
_LARGEST = 2**53  # integers up to here are floats too
_COLUMNS = 32  # names in lines, at most; each has a number for every line

Line: TypeAlias = dict[str, Any]


@dataclass
class _Entry:
    """A line to be written: of an epoch, or of a step whose figures may not have been read yet.

    `when`: seconds since 1970; `share`: captions per word of the step's minibatch.
    """

    when: float
    line: Line
    figures: StepFigures | None = None
    share: float = 1.0

    def complete(self) -> Line:
        """Return the line with its loss, in nats per word, and gradient norm, where it has any."""
        if self.figures is None:
            return self.line
        loss, norm = self.figures.values
        return {
            **self.line,
            "loss": _finite(float(loss * self.share)),
            "grad_norm": _finite(float(norm)),
        }


class History:
    """Writes a run's `history.jsonl`.

    A step is `{"step", "epoch", "lr", "loss", "grad_norm"}`: loss in nats a word and the norm of
    all gradients before clipping, either null if it is not finite.
    An epoch is `{"step", "epoch"}` and `{split}_loss`, `{split}_perplexity` for each split
    measured. Losses and norms stay on the device until lines are written, and are read together.

    Parameters
    ----------
    path
        The file; lines are added to it. None writes nothing: another process does.
    length
        How many of its bytes are to be kept, as where a run is resumed; of a file that is shorter,
        whole lines.
    also
        Called with the lines that were written, and when each happened, in seconds since 1970.
    warn
        Told why lines could not be written; they are tried again with the next ones. None raises.
    check
        Called with the trainer before anything is written, so that it may raise.

    Attributes
    ----------
    length
        How many bytes are written.
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
            warn(f"warning: {path} does not tell of all steps; it goes on as it is")
        self._also = also
        self._warn = warn
        self._check = check
        self._pending: list[_Entry] = []
        self._steps = 0  # since the last attempt to write: where one fails, ranks stay together

    def follow(self, trainer: Trainer) -> None:
        """Write down all that a trainer does from now on."""
        trainer.on("step", self._step)
        trainer.on("epoch", self._epoch)

    def _step(self, trainer: Trainer) -> None:
        batch = trainer.batch
        assert batch is not None
        line = {"step": trainer.step, "epoch": trainer.epoch + 1, "lr": trainer.learning_rate}
        share = batch.total / batch.words
        self._pending.append(_Entry(time.time(), line, trainer.step_figures, share))
        self._steps += 1
        if self._steps >= FLUSH_EVERY:
            self.flush(trainer)

    def _epoch(self, trainer: Trainer) -> None:
        line: Line = {"step": trainer.step, "epoch": trainer.epoch}
        for name, figures in trainer.figures.items():
            line[f"{name}_loss"] = figures.loss
            line[f"{name}_perplexity"] = figures.perplexity
        self._pending.append(_Entry(time.time(), line))
        self.flush(trainer)

    def flush(self, trainer: Trainer) -> None:
        """Write what is pending, to the disk; where that fails, it stays pending."""
        self._steps = 0
        if self._check is not None:
            self._check(trainer)
        fetch(entry.figures for entry in self._pending if entry.figures is not None)
        lines = [(entry.when, entry.complete()) for entry in self._pending]
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
            self._warn(f"warning: {error}; training goes on")

    def drop(self, step: int) -> None:
        """Forget what is pending of later steps than `step`: they are taken back."""
        self._pending = [entry for entry in self._pending if entry.line["step"] <= step]


def _whole_lines(path: Path | None, length: int) -> int:
    """Return how long the whole lines are that lie in the first `length` bytes of a file."""
    if path is None:
        return 0
    with explained(path, "read"):
        if not length or not path.exists():
            return 0
    return read_bytes(path)[:length].rfind(b"\n") + 1


def _finite(number: float) -> float | None:
    """Return a number, or None for what JSON does not have."""
    return number if math.isfinite(number) else None


@dataclass(frozen=True)
class Curves:
    """A run's history as columns; NaN is where there is no figure.

    Parameters
    ----------
    step, epoch
        `(S,)` integers, from 1: of each step, its number and epoch.
    loss, lr, grad_norm
        `(S,)`: nats a word, the learning rate, and the norm of all gradients before clipping.
    epoch_step, epoch_number
        `(E,)` integers: the last step of each epoch, and its number.
    losses, perplexities
        By split, `(E,)`: nats a word, and e to that power.
    """

    step: numpy.ndarray
    epoch: numpy.ndarray
    loss: numpy.ndarray
    lr: numpy.ndarray
    grad_norm: numpy.ndarray
    epoch_step: numpy.ndarray
    epoch_number: numpy.ndarray
    losses: Mapping[str, numpy.ndarray]
    perplexities: Mapping[str, numpy.ndarray]

    @property
    def val_loss(self) -> numpy.ndarray:
        """The validation loss after each epoch, `(E,)`."""
        return self.losses.get("val", numpy.full(len(self.epoch_step), numpy.nan))

    @property
    def best(self) -> int | None:
        """Which of the E epochs has the lowest validation loss, or None if none has one."""
        known = numpy.isfinite(self.val_loss)
        return int(numpy.nanargmin(self.val_loss)) if known.any() else None


def read_history(path: Path) -> Curves:
    """Read a `history.jsonl`, also while it is being written: a half-written last line is left out.

    Raises
    ------
    DataError
        If the file cannot be read, or a line, which is named, is not what `History` writes.
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
        epoch_step=_integers(epochs, "step"),
        epoch_number=_integers(epochs, "epoch"),
        losses=_by_split(epochs, "_loss"),
        perplexities=_by_split(epochs, "_perplexity"),
    )


def _check(line: Any) -> None:
    """Check that a line has a step and an epoch, and otherwise numbers or null."""
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


def _by_split(lines: Sequence[Line], ending: str) -> dict[str, numpy.ndarray]:
    names = dict.fromkeys(name for line in lines for name in line if name.endswith(ending))
    return {name.removesuffix(ending): _floats(lines, name) for name in names}
