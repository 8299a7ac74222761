"""When a run writes checkpoints, and stopping it where it can be resumed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xpcap.distributed import Ranks
from xpcap.errors import DataError, Stopped
from xpcap.files import explained, new_file
from xpcap.options import check_counts, check_number, given
from xpcap.runs.checkpoint import Checkpoint, TrainingState, write_checkpoint
from xpcap.runs.folder import BEST, EARLIER, LAST
from xpcap.training.history import History
from xpcap.training.trainer import Priority, Trainer


@dataclass(frozen=True)
class Saving:
    """How often a run is saved, in addition to each epoch.

    Every `steps` steps and every `minutes` minutes, if they are given; `keep` earlier checkpoints
    stay, as `step-NUMBER.safetensors`. Numbers out of range raise `ConfigurationError`.
    """

    steps: int | None = None
    minutes: float | None = None
    keep: int = 0

    def __post_init__(self) -> None:
        check_counts(**given(save_every=self.steps))
        if self.minutes is not None:
            check_number("save_every", self.minutes, "(0, inf)")
        check_counts(0, keep=self.keep)


class Saver:
    """Writes a trainer's checkpoints, and stops it when a signal was received.

    If a checkpoint cannot be written, as on a full disk, the one before stays, and training
    continues. The best epoch's checkpoint is written before the last one, so that at any moment a
    process may be killed, the last checkpoint refers to a best epoch that is there. Of several
    ranks the first one writes, and all stop at the same step.

    `checkpoint` has the configuration and vocabulary of all checkpoints; `history` is flushed
    before each; `received` are the signals that have come.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: Checkpoint,
        history: History,
        saving: Saving,
        received: Sequence[int],
        warn: Callable[[str], None],
        ranks: Ranks,
    ) -> None:
        self._folder = folder
        self._saving = saving
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
        steps, minutes = self._saving.steps, self._saving.minutes
        due = steps is not None and trainer.step % steps == 0
        if minutes is not None:
            due |= self._ranks.any(time.monotonic() - self._time >= 60 * minutes)
        self._stop_if_asked(trainer, due and self.save(trainer))

    def _epoch(self, trainer: Trainer) -> None:
        if trainer.best_epoch == trainer.epoch:
            self._best = replace(trainer.state(), parameters=trainer.best_params, memory={})
        self._stop_if_asked(trainer, self.save(trainer))

    def _stop_if_asked(self, trainer: Trainer, saved: bool = False) -> None:
        if not self._ranks.any(bool(self._received)):
            return
        if saved or self.save(trainer):
            what = "the run can be resumed"
        else:
            what = "it could not be saved; the run can be resumed from the checkpoint before"
        first, *_ = (one for one in self._ranks.gather(list(self._received)) if one)
        raise Stopped(f"stopped after step {trainer.step}; {what}", first[-1])

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
        if not self._failed:
            self._keep(trainer.step)
        return not self._failed

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
            write_checkpoint(self._folder / name, replace(self._checkpoint, state=state))
        except DataError as error:
            self._warn(f"warning: {error}; training continues")
            return False
        return True

    def _keep(self, step: int) -> None:
        """Keep the last checkpoint under a second name, and remove the oldest kept one."""
        if self._ranks.rank or not self._saving.keep:
            return
        path = self._folder / EARLIER.replace("*", f"{step:08d}")
        try:
            with new_file(path) as temporary:
                os.link(self._folder / LAST, temporary)
            with explained(self._folder, "write"):
                for old in sorted(self._folder.glob(EARLIER))[: -self._saving.keep]:
                    old.unlink()
        except DataError as error:
            self._warn(f"warning: {error}; training continues")
