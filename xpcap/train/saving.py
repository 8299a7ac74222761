"""When a run writes checkpoints, and that it stops where it can be resumed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from xpcap.checkpoint import Checkpoint, State, write_checkpoint
from xpcap.errors import ConfigurationError, DataError, Stopped
from xpcap.parallel import Ranks
from xpcap.run_folder import BEST, LAST
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
    training goes on, and the next one is tried.

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
        self._saved = time.monotonic()

    def follow(self, trainer: Trainer) -> None:
        """Save whatever a trainer does from now on."""
        trainer.on("step", self._step)
        trainer.on("measured", self._stop_if_asked)
        trainer.on("epoch", self._epoch)

    def _step(self, trainer: Trainer) -> None:
        steps, minutes = self.saving.steps, self.saving.minutes
        due = steps is not None and trainer.step % steps == 0
        late = minutes is not None and time.monotonic() - self._saved >= 60 * minutes
        if due or (minutes is not None and self._ranks.any(late)):
            self.save(trainer)
        self._stop_if_asked(trainer)

    def _epoch(self, trainer: Trainer) -> None:
        self.save(trainer)
        if trainer.best_epoch == trainer.epoch:
            self._write(BEST, replace(trainer.state(), memory={}))
        self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if not self._ranks.any(self._heard.signal is not None):
            return
        saved = self.save(trainer)
        how = f"xpcap train --resume {self.folder} goes on" if saved else "which could not be saved"
        message = f"stopped after step {trainer.step}; {how}"
        signals = self._ranks.gather(self._heard.signal)
        raise Stopped(message, next(number for number in signals if number is not None))

    def save(self, trainer: Trainer) -> bool:
        """Write the last checkpoint; return whether that was possible."""
        self._saved = time.monotonic()
        self._history.flush(trainer)
        if not self._write(LAST, trainer.state()):
            return False
        if self.saving.keep and not self._ranks.rank:
            self._keep(trainer.step)
        return True

    def _write(self, name: str, state: State) -> bool:
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
        path = self.folder / f"step-{step:08d}.safetensors"
        try:
            path.unlink(missing_ok=True)
            os.link(self.folder / LAST, path)
            for old in sorted(self.folder.glob("step-*.safetensors"))[: -self.saving.keep]:
                old.unlink()
        except OSError as error:
            self._warn(f"warning: cannot keep {path}: {error.strerror}; training goes on")
