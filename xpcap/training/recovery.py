"""Recovery from divergence: a loss that is not finite, or explodes.

Losses stay on the device and are checked when several steps are written together. Training depends
only on its state, so it is restored to the last finite state, and the steps before the one that
diverged are taken again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy

from xpcap.backend import namespace, to_host
from xpcap.data.minibatch import Batch, gather
from xpcap.distributed import Ranks
from xpcap.errors import ConfigurationError, DataError, DivergedError
from xpcap.files import new_file
from xpcap.kernels.products import multiplied_in
from xpcap.models.diagnosis import first_nonfinite
from xpcap.options import check_counts
from xpcap.runs.checkpoint import TrainingState, named_arrays
from xpcap.runs.folder import REPORT
from xpcap.training.trainer import Priority, StepDiverged, StepResult, Trainer, divergence

POLICIES = ("stop", "skip", "rollback")
_NAMED = 5  # captions in a message


@dataclass(frozen=True)
class OnNaN:
    """What to do when training diverges, at most `limit` times.

    The policy is `"stop"`; `"skip"` the minibatch; or `"rollback"` to the last finite state, at
    most 50 steps ago, and continue at half the learning rate.
    """

    policy: str = "stop"
    limit: int = 3

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigurationError(
                f"on_nan '{self.policy}' is unknown; expected {', '.join(POLICIES)}"
            )
        check_counts(0, on_nan_limit=self.limit)


class Recovery:
    """Checks a trainer's numbers, and recovers from divergence, with a warning.

    When training stops, the first rank writes `diverged.json` to the folder: the step, its learning
    rate, the rows of its captions in the training split, and the first non-finite value.
    """

    def __init__(
        self, on_nan: OnNaN, folder: Path, warn: Callable[[str], None], ranks: Ranks
    ) -> None:
        self.on_nan = on_nan
        self.folder = folder
        self._warn = warn
        self._ranks = ranks
        self._unchecked: list[StepResult] = []
        self._finite: TrainingState | None = None

    def follow(self, trainer: Trainer) -> None:
        """Check all steps of a trainer from now on, when `check` is called."""
        self._remember(trainer)
        trainer.on("step", self._note, Priority.CHECK)
        trainer.on("measured", self._check_results, Priority.CHECK)
        trainer.on("epoch", self._remember, Priority.CHECK)

    def _note(self, trainer: Trainer) -> None:
        assert trainer.result is not None
        self._unchecked.append(trainer.result)

    def check(self, trainer: Trainer) -> None:
        """Check the steps since the last check, and remember the state if they are finite.

        The first step that diverged raises `StepDiverged`.
        """
        if self._unchecked:
            self._check_results(trainer)
            self._remember(trainer)

    def _check_results(self, trainer: Trainer) -> None:
        results, self._unchecked = self._unchecked, []
        StepResult.fetch(results)
        for result in results:
            reason = divergence(result.loss, len(trainer.model.word_to_idx))
            if reason is not None:
                raise StepDiverged(result.step, f"the loss {reason}")
            norm = result.gradient_norm
            if not math.isfinite(norm):
                raise StepDiverged(result.step, f"the gradient norm is {norm}")
        if results and not _is_finite(trainer.state()):
            raise StepDiverged(trainer.step, "its update leaves parameters or moments not finite")

    def _remember(self, trainer: Trainer) -> None:
        self._finite = _copied(trainer)

    def recover(self, trainer: Trainer, error: StepDiverged) -> int:
        """Restore training to a finite state from which it can continue, or end it.

        Returns the step up to which what was done still counts. A `DivergedError` ends training,
        after `diverged.json` is written.
        """
        assert self._finite is not None
        self._unchecked.clear()
        trainer.restore(self._finite)
        if trainer.step >= error.step:  # validation diverges, and no step can be taken again
            raise DivergedError(f"{error}; try a lower learning rate")
        policy, left = self.on_nan.policy, trainer.recoveries < self.on_nan.limit
        if left and policy == "rollback":
            trainer.rate_scale /= 2
            what = f"back to step {trainer.step}, at {trainer.rate_scale:g} of the learning rate"
        else:
            trainer.replay(error.step - 1)
            if not (left and policy == "skip" and _is_finite(trainer.state())):
                raise DivergedError(self._report(trainer, error))
            trainer.step = error.step
            what = "skipped"
        trainer.recoveries += 1
        self._warn(f"warning: {error}; {what} ({trainer.recoveries} of {self.on_nan.limit} times)")
        self._remember(trainer)
        return trainer.step

    def _report(self, trainer: Trainer, error: StepDiverged) -> str:
        """Write a diagnosis of the step that is about to diverge; return it in a line."""
        batch, rate = trainer.next_batch()
        batch = _whole(batch, self._ranks)
        with multiplied_in(trainer.training_step.precision):
            first = first_nonfinite(trainer.model, *_arrays(trainer, batch), trainer.step)
        rows = [] if batch.rows is None else to_host(batch.rows).tolist()
        report = {
            "step": error.step,
            "reason": error.reason,
            "learning_rate": rate,
            "first": first,
            "captions": rows,
        }
        path = self.folder / REPORT
        try:
            if not self._ranks.rank:
                with new_file(path) as temporary:
                    temporary.write_text(json.dumps(report, indent=2))
        except DataError as problem:
            self._warn(f"warning: {problem}")
        named = ", ".join(map(str, rows[:_NAMED])) + (", ..." if len(rows) > _NAMED else "")
        what = f"first not finite: {first}" if first else "taken again, all its numbers are finite"
        return (
            f"{error}; learning rate {rate:.3g}, captions {named} of the training split;"
            f" {what} ({path}); try a lower learning rate, or skip such steps or roll them back"
        )


def _copied(trainer: Trainer) -> TrainingState:
    state = trainer.state()
    return replace(
        state,
        parameters={name: value.copy() for name, value in state.parameters.items()},
        memory={
            key: {name: value.copy() for name, value in by_name.items()}
            for key, by_name in state.memory.items()
        },
    )


def _whole(batch: Batch, ranks: Ranks) -> Batch:
    """Return a whole minibatch from the shares of all ranks, on the host."""
    if batch.share is None:
        return batch
    share = (batch.share.places, *map(to_host, (batch.captions, batch.features, batch.rows)))
    places, *arrays = map(numpy.concatenate, zip(*ranks.gather(share), strict=True))
    captions, features, rows = (array[numpy.argsort(places)] for array in arrays)
    return Batch(captions, features, rows)


def _is_finite(state: TrainingState) -> bool:
    """Whether all numbers of a state are finite; waits for the device once."""
    arrays = [array for _, array in named_arrays(state)]
    xp = namespace(*arrays)
    return bool(xp.stack([xp.isfinite(array).all() for array in arrays]).all())


def _arrays(trainer: Trainer, batch: Batch) -> tuple[Any, Any]:
    """Return a minibatch's features and captions on the model's device."""
    if batch.features is None:  # the step is resident
        batch = gather(trainer.batches.split, to_host(batch.rows))  # type: ignore[attr-defined]
    to_device = trainer.model.backend.to_device
    return to_device(batch.features), to_device(batch.captions)
