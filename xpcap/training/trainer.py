"""The training loop: an epoch of steps, then the loss on held-out captions, then the next epoch.

`Trainer.run` is the whole loop. Everything else (history, checkpoints, progress) is a callback of
an event: `"step"` after each update, `"measured"` after each validation batch, `"epoch"` after
validation, `"end"`. Callbacks of an event are called in order of priority. At the first three a
callback may raise: `state` is then that of the last step, and training can continue from any state
given to `restore`.
"""

from __future__ import annotations

import collections
import enum
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy

from xpcap.backend import Array, namespace, to_host
from xpcap.data.minibatch import Batch, count_words
from xpcap.distributed import Alone, Ranks
from xpcap.errors import ConfigurationError, DivergedError
from xpcap.models import CaptionModel
from xpcap.models.objective import Objective
from xpcap.optim import Optimizer, cosine
from xpcap.options import check_counts, check_number, given
from xpcap.runs.checkpoint import TrainingProgress, TrainingState
from xpcap.training.selection import CaptionMetric
from xpcap.training.shared import SharedLoss
from xpcap.training.step import Batches, TrainingStep

EVENTS = ("step", "measured", "epoch", "end")
_LARGEST_LOG = 80.0  # of a factor of the learning rate: e^88 overflows float32
EXPLODED = 3.0  # multiple of the uniform loss, log V


class Priority(enum.IntEnum):
    """Callbacks with a higher priority are called first; equal ones in the order of `on`."""

    CHECK = 400
    RECORD = 300
    SAVE = 200
    WATCH = 100


class StepDiverged(DivergedError):
    """A step with a non-finite or exploding loss."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step}: {reason}")
        self.step = step
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.reason)


def divergence(loss: float, words: int) -> str | None:
    """Say how a loss in nats per word diverges, for a vocabulary of `words`; None if not."""
    if not math.isfinite(loss):
        return f"is {loss}"
    if loss > EXPLODED * math.log(words):
        return f"explodes: {loss:.3g} nats per word, {math.log(words):.3g} by guessing"
    return None


def perplexity_of(loss: float) -> float:
    """Return e^loss, the perplexity at a loss in nats per word; finite."""
    return math.exp(min(loss, 700.0))


def epoch_line(trainer: Trainer) -> str:
    """Return the losses after an epoch, the metric that selects, and any reward, as a text line."""
    losses = "  ".join(f"{name} {loss:.4f}" for name, loss in trainer.losses.items())
    metric, reward = trainer.metric, trainer.measured.get("reward")
    drawn = "" if reward is None else f"reward {reward:.4f}; "
    whose = "" if reward is None else " of references"
    selected = "" if metric is None else f", {metric.name} {trainer.figures[metric.figure]:.4f}"
    return (
        f"epoch {trainer.epoch}/{trainer.schedule.epochs}: {drawn}nats per word{whose}: {losses};"
        f" val perplexity {perplexity_of(trainer.losses['val']):.2f}{selected}"
    )


def ended_line(trainer: Trainer) -> str:
    """Say that training has ended, and which option would continue it."""
    more = "patience" if trainer.epoch < trainer.schedule.epochs else "epochs"
    return (
        f"training has ended, after epoch {trainer.epoch} of {trainer.schedule.epochs}; more"
        f" {more} would continue it ({more}=N)"
    )


class StepResult:
    """Loss and gradient norm of one step, counted from 1, on the device until they are read.

    `values (2,)` are the loss in nats per caption, and the gradient norm before clipping.
    """

    def __init__(self, step: int, values: Array, batch: Batch) -> None:
        self.step = step
        self._values = values
        self._batch = batch._replace(features=None)

    @property
    def loss(self) -> float:
        """The loss in nats per word."""
        self.fetch([self])
        return float(self._values[0] * (self._batch.total / self._batch.words))

    @property
    def gradient_norm(self) -> float:
        """The norm of the gradient before clipping."""
        self.fetch([self])
        return float(self._values[1])

    @staticmethod
    def fetch(results: Iterable[StepResult]) -> None:
        """Read several results from the device in one copy; they stay on the host."""
        waiting = [one for one in results if not isinstance(one._values, numpy.ndarray)]
        if waiting:
            xp = namespace(waiting[0]._values)
            rows = to_host(xp.stack([one._values for one in waiting]))
            for one, row in zip(waiting, rows, strict=True):
                one._values = row


@dataclass(frozen=True)
class Schedule:
    """How long to train, and the learning rate of each step; numbers must be positive."""

    epochs: int = 10
    lr_decay: float = 1.0  # factor of the learning rate per epoch
    cosine: bool = False  # also anneal it to zero, on half a cosine over all steps
    clip_norm: float | None = None  # the largest global norm of the gradient
    patience: int | None = None  # stop after so many epochs without a better one
    start: int = 0  # the step from which decay and cosine are counted, if warm-up is over
    warmup: int = 0  # steps in which the learning rate rises linearly, at the beginning of training

    def __post_init__(self) -> None:
        check_counts(epochs=self.epochs, **given(patience=self.patience))
        check_number("lr_decay", self.lr_decay, "(0, inf)")
        if self.epochs * math.log(self.lr_decay) > _LARGEST_LOG:
            raise ConfigurationError(
                f"lr_decay {self.lr_decay}, once per epoch, overflows; expected at most 1, or a"
                " little more"
            )
        if self.clip_norm is not None:
            check_number("clip", self.clip_norm, "(0, 1e30]")
        check_counts(0, start=self.start, warmup=self.warmup)

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """Return the factor of the learning rate in a step, counted from 0.

        The last step of warm-up has the factor 1, as the first after it.
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        start = max(self.start, self.warmup)
        taken, total = step - start, self.epochs * steps_per_epoch - start
        factor = self.lr_decay ** (taken // steps_per_epoch)
        return factor * cosine(taken / total) if self.cosine else factor


def evaluate(model: CaptionModel, batches: Batches) -> float:
    """Return a model's loss in nats per word on one epoch of batches, without dropout."""
    return _measure(SharedLoss(model), batches, Alone(), lambda: None)


def _measure(
    objective: Objective, batches: Batches, ranks: Ranks, after_batch: Callable[[], None]
) -> float:
    total: Any = 0.0
    words = 0
    backend = objective.model.backend
    with backend.activate():
        for batch in batches.epoch(0):
            if len(batch.captions):  # a small batch may leave nothing to this rank
                features = backend.to_device(batch.features)
                total = total + objective.evaluate(features, batch.captions) * len(batch.captions)
                words += count_words(to_host(batch.captions))
            after_batch()
        parts = ranks.gather((float(total), words))
        return sum(part for part, _ in parts) / sum(count for _, count in parts)


def _rank(value: float | None, loss: float) -> tuple[float, float]:
    """Return what is larger for a better epoch; NaN is worse than any value."""
    return -math.inf if value is None or math.isnan(value) else value, -loss


class Trainer:
    """Trains a captioner.

    Parameters
    ----------
    model
        Its `params` are changed in place, see `TrainingStep`.
    batches
        The source of minibatches.
    optimizer, schedule
        The update rule and its state; epochs and learning rates.
    validation
        By name (`"train"`, `"val"`), batches to measure after each epoch.
    training_step
        Takes the steps; None is a `TrainingStep` of model, optimizer and schedule.
    metric
        The best epoch is that with its highest value, and of equal ones, or if it is None, that
        with the lowest loss of `"val"`.

    Attributes
    ----------
    step, epoch
        The number of completed ones.
    batch, learning_rate, result
        Of the last step; its `StepResult` can be read later, together with others.
    measured
        Means of what the steps of this epoch `measured`, by name; since it was resumed, if it was.
    losses, figures
        Of the last epoch, by name: losses in nats per word; the metric, and what callbacks of
        `"epoch"` measure.
    best_epoch, best_params, best_loss, best_value
        The best epoch so far, its parameters, validation loss, and value of the metric.
    rate_scale, recoveries
        Factor of all learning rates after recoveries from divergence, and their number.
    """

    def __init__(
        self,
        model: CaptionModel,
        batches: Batches,
        optimizer: Optimizer,
        schedule: Schedule,
        validation: Mapping[str, Batches] | None = None,
        training_step: TrainingStep | None = None,
        metric: CaptionMetric | None = None,
    ) -> None:
        steps = schedule.epochs * len(batches)
        if 0 < steps <= schedule.warmup:
            raise ConfigurationError(
                f"a warm-up of {schedule.warmup} steps is not shorter than the run, {steps} steps;"
                " expected more epochs, epochs=N, or in a new run a shorter one, warmup=STEPS"
            )
        self.model = model
        self.batches = batches
        self.optimizer = optimizer
        self.schedule = schedule
        self.validation = validation or {}
        self.metric = metric
        self.step = self.epoch = 0
        self.result: StepResult | None = None
        self.batch: Batch | None = None
        self.measured: dict[str, float] = {}
        self.losses: dict[str, float] = {}
        self.figures: dict[str, float] = {}
        self.best_loss = math.inf
        self.best_value: float | None = None
        self.best_epoch = 0
        self.best_params = self._copies()
        self.rate_scale = 1.0
        self.recoveries = 0
        self.training_step = training_step or TrainingStep(model, optimizer, schedule.clip_norm)
        self._callbacks: dict[str, list[tuple[int, Callable[[Trainer], None]]]]
        self._callbacks = collections.defaultdict(list)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.config["learning_rate"])

    def on(
        self, event: str, callback: Callable[[Trainer], None], priority: int = Priority.WATCH
    ) -> None:
        """Call `callback(trainer)` at each `event`, one of `EVENTS`; higher priorities first."""
        if event not in EVENTS:
            raise ConfigurationError(f"event '{event}' is unknown; expected {', '.join(EVENTS)}")
        callbacks = self._callbacks[event]
        callbacks.append((priority, callback))
        callbacks.sort(key=lambda entry: -entry[0])

    def run(self) -> None:
        """Train to the last epoch, or until `patience` epochs have brought no better one.

        A loss measured after an epoch that is not finite, or explodes, raises `StepDiverged`.
        """
        while not self.ended:
            for _ in self._steps():
                self._emit("step")
            losses = self._measure_all()
            self.epoch += 1
            self._compare(losses)
            self._emit("epoch")
        self._emit("end")

    def state(self) -> TrainingState:
        """Return the state of training, with views of parameters and optimizer state."""
        parameters, memory = self.training_step.state()
        progress = TrainingProgress(
            step=self.step,
            epoch=self.epoch,
            best_loss=self.best_loss if math.isfinite(self.best_loss) else None,
            best_value=self.best_value if math.isfinite(self.best_value or 0) else None,
            best_epoch=self.best_epoch,
            rate_scale=self.rate_scale,
            recoveries=self.recoveries,
        )
        return TrainingState(parameters, memory, self.optimizer.numbers, progress)

    def restore(self, state: TrainingState) -> None:
        """Go to a state, in the middle of an epoch or not; `best_params` stay."""
        progress = state.progress
        self.training_step.restore(state.parameters, state.memory, state.optimizer)
        self.step, self.epoch = progress.step, progress.epoch
        self._restore_best(progress)
        self.rate_scale, self.recoveries = progress.rate_scale, progress.recoveries

    def restore_best(self, state: TrainingState) -> None:
        """Set the best epoch's parameters, loss and value of the metric."""
        to_device = self.model.backend.to_device
        self.best_params = {name: to_device(value) for name, value in state.parameters.items()}
        self._restore_best(state.progress)

    def _restore_best(self, progress: TrainingProgress) -> None:
        self.best_loss = math.inf if progress.best_loss is None else progress.best_loss
        self.best_value, self.best_epoch = progress.best_value, progress.best_epoch

    def replay(self, step: int) -> None:
        """Take steps of this epoch again, without callbacks, until `step` of them are completed."""
        steps = self._steps()
        while self.step < step:
            next(steps)

    def next_batch(self) -> tuple[Batch, float]:
        """Return the minibatch of the next step, and its learning rate."""
        return next(self.batches.epoch(self.epoch, self._first)), self.next_rate

    @property
    def next_rate(self) -> float:
        """The learning rate of the next step."""
        return self.optimizer.learning_rate * self._factor(self.step)

    @property
    def _first(self) -> int:
        """The next batch of the epoch."""
        return self.step - self.epoch * len(self.batches)

    def _factor(self, step: int) -> float:
        return self.rate_scale * self.schedule.factor(step, len(self.batches))

    def _steps(self) -> Iterator[None]:
        """Take the remaining steps of the epoch."""
        end = (self.epoch + 1) * len(self.batches)
        factors = [self._factor(step) for step in range(self.step, end)]
        taken = self.training_step.epoch(self.batches, self.epoch, self._first, self.step, factors)
        totals = collections.Counter[str]()
        for count, batch in enumerate(taken, start=1):
            totals.update(self.training_step.measured)
            self.measured = {name: total / count for name, total in totals.items()}
            self.step += 1
            self.batch = batch
            self.result = StepResult(self.step, self.training_step.figures, batch)
            yield

    def _measure_all(self) -> dict[str, float]:
        step = self.training_step
        return {
            name: _measure(step.measuring, held, step.ranks, lambda: self._emit("measured"))
            for name, held in self.validation.items()
        }

    def _compare(self, losses: dict[str, float]) -> None:
        """Check the losses of an epoch, and keep its parameters if it is the best."""
        self.losses = losses
        for name, loss in losses.items():
            reason = divergence(loss, len(self.model.word_to_idx))
            if reason is not None:
                raise StepDiverged(self.step, f"the {name} loss after epoch {self.epoch} {reason}")
        loss, value = losses.get("val", math.inf), None
        if self.metric is not None:
            value = self.figures[self.metric.figure] = self.metric()
        if _rank(value, loss) > _rank(self.best_value, self.best_loss):
            self.best_loss, self.best_value = loss, value
            self.best_epoch = self.epoch
            self.best_params = self._copies()

    def _copies(self) -> dict[str, Array]:
        return {name: value.copy() for name, value in self.model.params.items()}

    @property
    def ended(self) -> bool:
        """Whether it has come to the last epoch, or is out of patience."""
        patience = self.schedule.patience
        return self.epoch >= self.schedule.epochs or (
            patience is not None and self.epoch - self.best_epoch >= patience
        )

    def _emit(self, event: str) -> None:
        for _, callback in self._callbacks[event]:
            callback(self)
