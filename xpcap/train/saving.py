"""When a run writes checkpoints, and stopping it where it can be resumed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from xpcap.distributed import Ranks
from xpcap.errors import ConfigurationError, DataError, Stopped
from xpcap.files import explained, new_file
from xpcap.runs import BEST, EARLIER, LAST
from xpcap.runs.checkpoint import Checkpoint, TrainingState, write_checkpoint
from xpcap.train.history import History
from xpcap.train.signals import Received
from xpcap.train.trainer import Priority, Trainer


@dataclass(frozen=True)
class Saving:
    """How often a run is saved, in addition to each epoch.

    Parameters
    ----------
    steps, minutes
        Save every N steps or minutes; None is never.
    keep
        Number of earlier checkpoints to keep, as `step-NUMBER.safetensors`.

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
    """Writes a trainer's checkpoints, and stops it when a signal was received.

    If a checkpoint cannot be written, as on a full disk, the one before stays, and training
    continues. The best epoch's checkpoint is written before the last one, so that at any moment a
    process may be killed, the last checkpoint refers to a best epoch that is there.

    Parameters
    ----------
    folder
        The run folder.
    checkpoint
        Configuration and vocabulary for all checkpoints.
    history
        Flushed before each checkpoint.
    saving
        How often.
    received
        The signal, if one came.
    warn
        Write-error callback.
    ranks
        The processes that train together: the first one writes, all stop at the same step.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: Checkpoint,
        history: History,
        saving: Saving,
        received: Received,
        warn: Callable[[str], None],
        ranks: Ranks,
    ) -> None:
        self.folder = folder
        self.saving = saving
        self._checkpoint = checkpoint
        self._history = history
        self._received = received
        self._warn = warn
        self._ranks = ranks
        self._time = time.monotonic()
        self._failed = False
        self._best: TrainingState | None = None  # of the best epoch, until it is written

    def follow(self, trainer: Trainer) -> None:
        """Save a trainer's state from now on."""
        trainer.on("step", self._step, Priority.SAVE)
        trainer.on("measured", self._stop_if_asked, Priority.SAVE)
        trainer.on("epoch", self._epoch, Priority.SAVE)
        trainer.on("end", self._end, Priority.SAVE)
        if trainer.step:  # a process that was killed may not have come to this
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
        if not self._ranks.any(self._received.signal is not None):
            return
        if saved or self.save(trainer):
            what = "the run can be resumed"
        else:
            what = "it could not be saved; the run can be resumed from the checkpoint before"
        signals = self._ranks.gather(self._received.signal)
        number = next(number for number in signals if number is not None)
        raise Stopped(f"stopped after step {trainer.step}; {what}", number)

    def _end(self, trainer: Trainer) -> None:
        if self._failed and not self.save(trainer):
            raise DataError(
                "the end of training could not be saved; the run can be resumed from the"
                " checkpoint before"
            )
        self._stop_if_asked(trainer, saved=True)

    def save(self, trainer: Trainer) -> bool:
        """Write the last checkpoint; return whether that succeeded."""
        self._time = time.monotonic()
        self._history.flush(trainer)
        written = self._write_best() and self._write(LAST, trainer.state())
        self._failed = self._ranks.any(not written)
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
            self._warn(f"warning: {error}; training continues")
            return False
        return True

    def _keep(self, step: int) -> None:
        """Keep the last checkpoint under a second name, and remove the oldest kept one."""
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
            self._warn(f"warning: {error}; training continues")
