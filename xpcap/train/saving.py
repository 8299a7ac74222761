"""When a run writes checkpoints, and that it stops where it can be resumed."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from xpcap.errors import ConfigurationError, DataError, Stopped
from xpcap.files import explained, new_file
from xpcap.parallel import Ranks
from xpcap.runs import BEST, EARLIER, LAST
from xpcap.runs.checkpoint import Checkpoint, TrainingState, write_checkpoint
from xpcap.train.history import History
from xpcap.train.signals import Heard
from xpcap.train.trainer import Trainer


@dataclass(frozen=True)
class Saving:
    """How often a run is saved, besides after each epoch.

    Parameters
    ----------
    steps, minutes
        After so many; None is never.
    keep
        How many checkpoints are kept beside the last and the best, as `step-NUMBER.safetensors`.

    Raises
    ------
    ConfigurationError
        If a number is not positive.
    """

    steps: int | None = None
    minutes: float | None = None
    keep: int = 0

    def __post_init__(self) -> None:
        for value in (self.steps, self.minutes):
            if value is not None and not 0 < value < float("inf"):
                raise ConfigurationError(
                    f"a run cannot be saved every {value}; expected more than 0"
                )
        if self.keep < 0:
            raise ConfigurationError(f"{self.keep} checkpoints cannot be kept; expected 0 or more")


class Saver:
    """Writes a trainer's checkpoints, and stops it when a signal was heard.

    A checkpoint that cannot be written, as where the disk is full, leaves the one before whole;
    training goes on, and the next one is tried. The best epoch's is written before the last one: so
    whatever moment a process is killed at, the last one never knows of a better epoch than is
    there.

    Parameters
    ----------
    folder
        The run.
    checkpoint
        With the run's configuration and vocabulary; each one has them.
    history
        Written to the end before each checkpoint.
    saving
        How often.
    heard
        The signal, if one came.
    warn
        Told what could not be written.
    ranks
        The processes that train together: the first of them writes, all stop at the same step.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: Checkpoint,
        history: History,
        saving: Saving,
        heard: Heard,
        warn: Callable[[str], None],
        ranks: Ranks,
    ) -> None:
        self.folder = folder
        self.saving = saving
        self._checkpoint = checkpoint
        self._history = history
        self._heard = heard
        self._warn = warn
        self._ranks = ranks
        self._time = time.monotonic()
        self._failed = False
        self._best: TrainingState | None = None  # of the best epoch, until it is written

    def follow(self, trainer: Trainer) -> None:
        """Save whatever a trainer does from now on."""
        trainer.on("step", self._step)
        trainer.on("measured", self._stop_if_asked)
        trainer.on("epoch", self._epoch)
        trainer.on("end", self._end)
        if trainer.step:  # the process before may have been killed before it did this
            self._keep(trainer.step)

    def _step(self, trainer: Trainer) -> None:
        steps, minutes = self.saving.steps, self.saving.minutes
        due = steps is not None and trainer.step % steps == 0
        late = minutes is not None and time.monotonic() - self._time >= 60 * minutes
        if minutes is not None:
            late = self._ranks.any(late)
        saved = (due or late) and self.save(trainer)
        self._stop_if_asked(trainer, saved)

    def _epoch(self, trainer: Trainer) -> None:
        if trainer.best_epoch == trainer.epoch:
            self._best = replace(trainer.state(), parameters=trainer.best_params, memory={})
        saved = self.save(trainer)
        self._stop_if_asked(trainer, saved)

    def _stop_if_asked(self, trainer: Trainer, saved: bool = False) -> None:
        if not self._ranks.any(self._heard.signal is not None):
            return
        if saved or self.save(trainer):
            what, where = "", f"step {trainer.step}"
        else:
            what, where = ", which could not be saved", "the checkpoint before"
        signals = self._ranks.gather(self._heard.signal)
        raise Stopped(
            f"stopped after step {trainer.step}{what}; {self._resuming} goes on from {where}",
            next(number for number in signals if number is not None),
        )

    def _end(self, trainer: Trainer) -> None:
        if self._failed and not self.save(trainer):
            raise DataError(
                f"the end of training could not be saved; {self._resuming} goes on from the"
                " checkpoint before"
            )
        self._stop_if_asked(trainer, saved=True)

    @property
    def _resuming(self) -> str:
        return shlex.join(["xpcap", "train", "--resume", str(self.folder)])

    def save(self, trainer: Trainer) -> bool:
        """Write the last checkpoint; return whether that was possible."""
        self._time = time.monotonic()
        self._history.flush(trainer)
        state = trainer.state()  # all ranks have to ask for it, though only one writes
        self._failed = self._ranks.any(not (self._write_best() and self._write(LAST, state)))
        if self._failed:
            return False
        self._keep(trainer.step)
        return True

    def _write_best(self) -> bool:
        if self._best is not None and self._write(BEST, self._best):
            self._best = None
        return self._best is None

    def _write(self, name: str, state: TrainingState) -> bool:
        if self._ranks.rank:
            return True
        progress = replace(state.progress, history=self._history.length)
        state = replace(state, progress=progress)
        try:
            write_checkpoint(self.folder / name, replace(self._checkpoint, state=state))
        except DataError as error:
            self._warn(f"warning: {error}; training goes on")
            return False
        return True

    def _keep(self, step: int) -> None:
        """Give the last checkpoint a second name that stays, and take it from the oldest."""
        if self._ranks.rank or not self.saving.keep:
            return
        path = self.folder / EARLIER.replace("*", f"{step:08d}")
        try:
            with new_file(path) as temporary:
                os.link(self.folder / LAST, temporary)
            with explained(self.folder, "write"):
                for old in sorted(self.folder.glob(EARLIER))[: -self.saving.keep]:
                    old.unlink()
        except DataError as error:
            self._warn(f"warning: {error}; training goes on")
