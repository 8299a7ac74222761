"""What happens when numbers go wrong: a loss that is not finite, or that explodes.

Losses stay on the device until a number of steps are written down together; then they are looked
at. Training, a function of its state, is taken back to the last state that was well, and the steps
up to the one that failed are taken again.
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
from xpcap.errors import ConfigurationError, DataError, DivergedError
from xpcap.files import explained, new_file
from xpcap.kernels.products import multiplied_in
from xpcap.models.diagnosis import first_nonfinite
from xpcap.parallel import Ranks
from xpcap.runs import REPORT
from xpcap.runs.checkpoint import TrainingState
from xpcap.train.trainer import StepFigures, Trainer, WentWrong, fetch, wrong_with

POLICIES = ("stop", "skip", "rollback")
_NAMED = 5  # captions in a message


@dataclass(frozen=True)
class OnNaN:
    """What to do.

    Parameters
    ----------
    policy
        `"stop"`; `"skip"` the minibatch; or `"rollback"` to the last state that was well, at most
        50 steps ago, and go on at half the learning rate.
    limit
        How often the last two, before it stops all the same.

    Raises
    ------
    ConfigurationError
        If the policy is unknown, or the limit negative.
    """

    policy: str = "stop"
    limit: int = 3

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigurationError(
                f"'{self.policy}' is unknown; expected {', '.join(POLICIES)} when numbers go wrong"
            )
        if self.limit < 0:
            raise ConfigurationError(f"{self.limit} recoveries cannot be; expected 0 or more")


class Recovery:
    """Watches a trainer's numbers, and mends what went wrong.

    Parameters
    ----------
    on_nan
        What to do.
    folder
        Where `diverged.json` is written when training stops: the step, its learning rate, its
        captions' places in the training split, and what was the first to be not finite.
    warn
        Told what was done.
    ranks
        The processes that train together: the first of them writes the file.
    """

    def __init__(
        self, on_nan: OnNaN, folder: Path, warn: Callable[[str], None], ranks: Ranks
    ) -> None:
        self.on_nan = on_nan
        self.folder = folder
        self._warn = warn
        self._ranks = ranks
        self._unseen: list[tuple[int, float, StepFigures]] = []
        self._well: TrainingState | None = None

    def follow(self, trainer: Trainer) -> None:
        """Watch all that a trainer does from now on, until `check` is called."""
        self._well = _copied(trainer)
        trainer.on("step", self._note)
        trainer.on("measured", self._look)
        trainer.on("epoch", self._remember)

    def _note(self, trainer: Trainer) -> None:
        batch, figures = trainer.batch, trainer.step_figures
        assert batch is not None
        assert figures is not None
        self._unseen.append((trainer.step, batch.total / batch.words, figures))

    def check(self, trainer: Trainer) -> None:
        """Look at the steps since the last look, and remember the state if they are well.

        Raises
        ------
        WentWrong
            It names the first that went wrong.
        """
        if self._unseen:
            self._look(trainer)
            self._remember(trainer)

    def _look(self, trainer: Trainer) -> None:
        """Look at the steps since the last look, and at what they leave."""
        unseen, self._unseen = self._unseen, []
        fetch(figures for _, _, figures in unseen)
        for step, share, figures in unseen:
            loss, norm = map(float, figures.values)
            wrong = wrong_with(loss * share, len(trainer.model.word_to_idx))
            if wrong is not None:
                raise WentWrong(step, f"the loss {wrong}")
            if not math.isfinite(norm):
                raise WentWrong(step, f"the gradients' norm is {norm}")
        if unseen and not _is_finite(trainer.state()):
            raise WentWrong(trainer.step, "it leaves parameters or moments that are not finite")

    def _remember(self, trainer: Trainer) -> None:
        self._well = _copied(trainer)

    def recover(self, trainer: Trainer, wrong: WentWrong) -> int:
        """Take training back to where it was well, so that it can go on, or end it.

        Returns
        -------
        int
            Up to which step what was done still counts.

        Raises
        ------
        DivergedError
            If it is to stop; `diverged.json` is written then.
        """
        assert self._well is not None
        self._unseen.clear()
        trainer.restore(self._well)
        if trainer.step >= wrong.step:  # a validation goes wrong, and no step can be taken again
            raise DivergedError(f"{wrong}; try a lower --lr")
        policy, left = self.on_nan.policy, trainer.recoveries < self.on_nan.limit
        if left and policy == "rollback":
            trainer.rate_scale /= 2
            what = f"back to step {trainer.step}, at {trainer.rate_scale:g} of the learning rate"
        else:
            trainer.replay(wrong.step - 1)
            if not (left and policy == "skip" and _is_finite(trainer.state())):
                raise DivergedError(self._report(trainer, wrong))
            trainer.step = wrong.step
            what = "skipped"
        trainer.recoveries += 1
        self._warn(f"warning: {wrong}; {what} ({trainer.recoveries} of {self.on_nan.limit} times)")
        self._remember(trainer)
        return trainer.step

    def _report(self, trainer: Trainer, wrong: WentWrong) -> str:
        """Write down what is known of a step that is about to go wrong; return it in a line."""
        batch, factor = trainer.next_batch()
        batch = _whole(batch, self._ranks)
        rate = trainer.optimizer.learning_rate * factor
        with multiplied_in(trainer.training_step.precision):
            first = first_nonfinite(trainer.model, *_arrays(trainer, batch), trainer.step)
        rows = [] if batch.rows is None else to_host(batch.rows).tolist()
        report = {
            "step": wrong.step,
            "reason": wrong.reason,
            "learning_rate": rate,
            "first": first,
            "captions": rows,
        }
        path = self.folder / REPORT
        try:
            if not self._ranks.rank:
                with new_file(path) as temporary, explained(path, "write"):
                    temporary.write_text(json.dumps(report, indent=2))
        except DataError as error:
            self._warn(f"warning: {error}")
        named = ", ".join(map(str, rows[:_NAMED])) + (", ..." if len(rows) > _NAMED else "")
        what = f"first not finite: {first}" if first else "taken again, its numbers are finite"
        return (
            f"{wrong}; learning rate {rate:.3g}, captions {named} of the training split;"
            f" {what} ({path}); try a lower --lr, or --on-nan skip or rollback"
        )


def _copied(trainer: Trainer) -> TrainingState:
    """Return a trainer's state, which changes no more."""
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
    """Put a minibatch together from all ranks' shares of it, on the host."""
    if batch.share is None:
        return batch
    share = (batch.share.places, *map(to_host, (batch.captions, batch.features, batch.rows)))
    places, *arrays = map(numpy.concatenate, zip(*ranks.gather(share), strict=True))
    captions, features, rows = (array[numpy.argsort(places)] for array in arrays)
    return Batch(captions, features, rows)


def _is_finite(state: TrainingState) -> bool:
    """Whether all numbers of a state are finite; it waits for the device once."""
    arrays = [*state.parameters.values()]
    for by_name in state.memory.values():
        arrays += by_name.values()
    xp = namespace(*arrays)
    return bool(xp.stack([xp.isfinite(array).all() for array in arrays]).all())


def _arrays(trainer: Trainer, batch: Batch) -> tuple[Any, Any]:
    """Return a minibatch's features and captions where the model is."""
    if batch.features is None:  # they stay on the device, all of them
        batch = gather(trainer.batches.split, to_host(batch.rows))  # type: ignore[attr-defined]
    to_device = trainer.model.backend.to_device
    return to_device(batch.features), to_device(batch.captions)
