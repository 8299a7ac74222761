"""The training loop: minibatch -> loss and gradients -> clip -> update; then look at held-out data.

The whole loop stands in `Trainer.run`. What happens besides (history, progress, files) is done by
callbacks, by event: `"step"` after each update, `"measured"` after each batch of a validation,
`"epoch"` after the whole of it, `"end"`. At the first three a callback may raise: `state` is then
that of the last step, and whatever `restore` is given goes on from there.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy

from xpcap.backend import Array, namespace, to_host
from xpcap.data.minibatch import Batch, count_words
from xpcap.errors import ConfigurationError, DivergedError
from xpcap.models import CaptionModel
from xpcap.models.objective import Objective
from xpcap.optim import Optimizer, check_positive, cosine
from xpcap.parallel import Alone, Ranks
from xpcap.runs.checkpoint import TrainingProgress, TrainingState
from xpcap.train.shared import SharedLoss
from xpcap.train.step import TrainingStep

EVENTS = ("step", "measured", "epoch", "end")
EXPLODED = 3.0  # times the loss of one who guesses among all words


class WentWrong(DivergedError):
    """A step whose numbers are no good, and why."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step}: {reason}")
        self.step = step
        self.reason = reason


def wrong_with(loss: float, words: int) -> str | None:
    """Say what is wrong with a loss, in nats a word of so many words; None if nothing is."""
    if not math.isfinite(loss):
        return f"is {loss}"
    if loss > EXPLODED * math.log(words):
        return f"explodes: {loss:.3g} nats a word, guessing has {math.log(words):.3g}"
    return None


class StepFigures:
    """Loss and gradient norm of one training step, on the device until `fetch` has read them.

    Parameters
    ----------
    values
        `(2,)`: the loss in nats per caption, and the joint norm of all gradients before clipping.

    Attributes
    ----------
    values
        The same, on the host after `fetch`.
    """

    def __init__(self, values: Array) -> None:
        self.values = values


def fetch(several: Iterable[StepFigures]) -> None:
    """Read the figures of several steps from the device, in one copy; what is read stays read."""
    waiting = [figures for figures in several if not isinstance(figures.values, numpy.ndarray)]
    if waiting:
        xp = namespace(waiting[0].values)
        rows = to_host(xp.stack([figures.values for figures in waiting]))
        for figures, row in zip(waiting, rows, strict=True):
            figures.values = row


class Batches(Protocol):
    """Where minibatches come from: `len` of them an epoch."""

    def __len__(self) -> int: ...

    def epoch(self, number: int, first: int = 0, /) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0, from its batch `first` on."""


@dataclass(frozen=True)
class Schedule:
    """How long to train, and how the learning rate falls.

    Parameters
    ----------
    epochs
        How many times through the data.
    lr_decay
        What the learning rate is multiplied by after each epoch.
    cosine
        Let it fall to zero besides, on half a cosine over all steps.
    clip_norm
        The largest joint norm of all gradients; None leaves them as they are.
    patience
        Stop after so many epochs without a better validation loss; None never does.

    Raises
    ------
    ConfigurationError
        If a number is not positive.
    """

    epochs: int = 10
    lr_decay: float = 1.0
    cosine: bool = False
    clip_norm: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigurationError(f"epochs must be at least 1, got {self.epochs}")
        if self.patience is not None and self.patience < 1:
            raise ConfigurationError(f"patience must be at least 1, got {self.patience}")
        check_positive("learning-rate decay", self.lr_decay)
        if self.clip_norm is not None:
            check_positive("gradient clipping", self.clip_norm)

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """Return what the learning rate is multiplied by in a step, counted from 0."""
        factor = self.lr_decay ** (step // steps_per_epoch)
        return factor * cosine(step / (self.epochs * steps_per_epoch)) if self.cosine else factor


@dataclass(frozen=True)
class Figures:
    """How well a model predicts some captions.

    Parameters
    ----------
    loss
        Cross entropy in nats a word, `<END>` counted.
    """

    loss: float

    @property
    def perplexity(self) -> float:
        """e^loss: among how many equally likely words the model hesitates."""
        return math.exp(min(self.loss, 700.0))


def evaluate(model: CaptionModel, batches: Batches) -> Figures:
    """Measure a model on every batch of one epoch, without dropout; one wait for the device."""
    return _measure(SharedLoss(model), batches, Alone(), lambda: None)


def _measure(
    packed: Objective, batches: Batches, ranks: Ranks, tell: Callable[[], None]
) -> Figures:
    total: Any = 0.0
    words = 0
    backend = packed.model.backend
    with backend.activate():
        for batch in batches.epoch(0):
            if len(batch.captions):  # a small batch may leave nothing to this rank
                features = backend.to_device(batch.features)
                total = total + packed.evaluate(features, batch.captions) * len(batch.captions)
                words += count_words(to_host(batch.captions))
            tell()
        parts = ranks.gather((float(total), words))
        return Figures(sum(part for part, _ in parts) / sum(count for _, count in parts))


class Trainer:
    """Trains a captioner.

    Parameters
    ----------
    model
        What is trained; its `params` are changed in place, and by callbacks as `TrainingStep` says.
    batches
        Where minibatches come from.
    optimizer
        The update rule and what it remembers.
    schedule
        How long, and with which learning rates.
    validation
        By name (`"train"`, `"val"`), captions to measure after each epoch. Of `"val"` the best
        epoch is remembered.
    training_step
        What takes the steps, if not a `TrainingStep` of model, optimizer and schedule.

    Attributes
    ----------
    step, epoch
        How many are done.
    batch, learning_rate, loss, gradient_norm
        Of the last step: what it saw; the rate used; nats per caption and the gradients' norm
        before clipping, 0-d arrays on the device.
    step_figures
        The last step's loss and gradient norm, to be read later, together with others'.
    figures
        Of the last epoch, by name.
    best_loss, best_epoch, best_params
        The validation loss of the best epoch so far, which it was, and its parameters.
    rate_scale, recoveries
        What all learning rates are multiplied by, and how often numbers went wrong so far.
    """

    def __init__(
        self,
        model: CaptionModel,
        batches: Batches,
        optimizer: Optimizer,
        schedule: Schedule,
        validation: Mapping[str, Batches] | None = None,
        training_step: TrainingStep | None = None,
    ) -> None:
        self.model = model
        self.batches = batches
        self.optimizer = optimizer
        self.schedule = schedule
        self.validation = validation or {}
        self.step = self.epoch = 0
        self.step_figures: StepFigures | None = None
        self.learning_rate = optimizer.learning_rate
        self.batch: Batch | None = None
        self.figures: dict[str, Figures] = {}
        self.best_loss = math.inf
        self.best_epoch = 0
        self.best_params = self._copies()
        self.rate_scale = 1.0
        self.recoveries = 0
        self.training_step = training_step or TrainingStep(model, optimizer, schedule.clip_norm)
        self._callbacks: dict[str, list[Callable[[Trainer], None]]] = collections.defaultdict(list)

    @property
    def loss(self) -> Array:
        """The last step's loss in nats per caption, a 0-d array on the device."""
        return self.training_step.loss

    @property
    def gradient_norm(self) -> Array:
        """The last step's joint norm of all gradients before clipping, a 0-d array."""
        return self.training_step.gradient_norm

    def on(self, event: str, callback: Callable[[Trainer], None]) -> None:
        """Have `callback(trainer)` called at each `event`, one of `EVENTS`."""
        if event not in EVENTS:
            raise ConfigurationError(f"event '{event}' is unknown; expected {', '.join(EVENTS)}")
        self._callbacks[event].append(callback)

    def run(self) -> None:
        """Train until the last epoch, or until no epoch has been better for `patience` of them.

        Raises
        ------
        WentWrong
            If a loss measured after an epoch is not finite, or explodes.
        """
        while self.epoch < self.schedule.epochs and not self._out_of_patience():
            for batch, factor in self._remaining():
                self._take_step(batch, factor)
                self._tell("step")
            figures = self._measure_all()
            self.epoch += 1
            self._judge(figures)
            self._tell("epoch")
        self._tell("end")

    def state(self) -> TrainingState:
        """Return where training is: views of the parameters and of what the rule remembers.

        Of several ranks, all have to ask together.
        """
        parameters, memory = self.training_step.state()
        progress = TrainingProgress(
            step=self.step,
            epoch=self.epoch,
            best_loss=self.best_loss if math.isfinite(self.best_loss) else None,
            best_epoch=self.best_epoch,
            rate_scale=self.rate_scale,
            recoveries=self.recoveries,
        )
        return TrainingState(parameters, memory, self.optimizer.numbers, progress)

    def restore(self, state: TrainingState) -> None:
        """Go to where `state` is, in the middle of an epoch or not; `best_params` stay."""
        progress = state.progress
        self.training_step.restore(state.parameters, state.memory, state.optimizer)
        self.step, self.epoch = progress.step, progress.epoch
        self.best_loss = math.inf if progress.best_loss is None else progress.best_loss
        self.best_epoch = progress.best_epoch
        self.rate_scale, self.recoveries = progress.rate_scale, progress.recoveries

    def remember_best(self, state: TrainingState) -> None:
        """Take the best epoch's parameters and its loss from elsewhere."""
        to_device = self.model.backend.to_device
        self.best_params = {name: to_device(value) for name, value in state.parameters.items()}
        self.best_epoch = state.progress.best_epoch
        if state.progress.best_loss is not None:
            self.best_loss = state.progress.best_loss

    def replay(self, step: int) -> None:
        """Take steps of this epoch again, telling nobody, until `step` of them all are done."""
        remaining = self._remaining()
        while self.step < step:
            self._take_step(*next(remaining))

    def next_batch(self) -> tuple[Batch, float]:
        """Return the minibatch of the next step, and what its learning rate is scaled by."""
        return next(self._remaining())

    def _remaining(self) -> Iterator[tuple[Batch, float]]:
        """Begin, or go on with, an epoch: yield its batches and what their rates are scaled by."""
        total = len(self.batches)
        first = self.step - self.epoch * total
        steps = range(self.step, self.step + total - first)
        factors = [self.rate_scale * self.schedule.factor(step, total) for step in steps]
        self.training_step.begin_epoch(self.batches, self.epoch, self.step, factors)
        yield from zip(self.batches.epoch(self.epoch, first), factors, strict=True)

    def _take_step(self, batch: Batch, factor: float) -> None:
        self.training_step(batch, self.step, factor)
        self.batch = batch
        self.step_figures = StepFigures(self.training_step.figures)
        self.learning_rate = self.optimizer.learning_rate * factor
        self.step += 1

    def _measure_all(self) -> dict[str, Figures]:
        packed = self.training_step.measuring
        return {
            name: _measure(packed, held, self.training_step.ranks, lambda: self._tell("measured"))
            for name, held in self.validation.items()
        }

    def _judge(self, figures: dict[str, Figures]) -> None:
        self.figures = figures
        for name, found in figures.items():
            wrong = wrong_with(found.loss, len(self.model.word_to_idx))
            if wrong is not None:
                raise WentWrong(self.step, f"the {name} loss after epoch {self.epoch} {wrong}")
        if "val" in figures and figures["val"].loss < self.best_loss:
            self.best_loss = figures["val"].loss
            self.best_epoch = self.epoch
            self.best_params = self._copies()

    def _copies(self) -> dict[str, Array]:
        return {name: value.copy() for name, value in self.model.params.items()}

    def _out_of_patience(self) -> bool:
        patience = self.schedule.patience
        return patience is not None and self.epoch - self.best_epoch >= patience

    def _tell(self, event: str) -> None:
        for callback in self._callbacks[event]:
            callback(self)
