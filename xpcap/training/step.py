"""One training step: loss and gradients, clipping, update, all in memory that stays where it is.

Of several ranks, each computes the gradient of its share of a batch, and one all-reduce sums them.
All ranks then apply the same update to all parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy

from xpcap.backend import Array
from xpcap.data.minibatch import Batch
from xpcap.distributed import Alone, Ranks
from xpcap.kernels.products import check_precision, multiplied_in
from xpcap.kernels.updates import clip_scale, square_sum
from xpcap.models import CaptionModel
from xpcap.models.scheduled_sampling import ScheduledSampling
from xpcap.optim import Optimizer
from xpcap.training.flat import FlatLayout
from xpcap.training.shared import SharedLoss
from xpcap.workspace import row_multiple


class Batches(Protocol):
    """A source of minibatches: `len` of them per epoch."""

    def __len__(self) -> int: ...

    def epoch(self, number: int, first: int = 0, /) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0, from its batch `first` on."""


class TrainingStep:
    """Updates a captioner's parameters, one batch at a time.

    From the first step on, `model.params` are views of one array `(P,)`, changed in place; arrays
    that replace them are copied into it. On a GPU the rows of matrices are padded to multiples of 8
    elements. Weight decay applies to the parameters that the model `decays`, which lie first.

    Parameters
    ----------
    model, optimizer
        The model to train, and the update rule.
    clip_norm
        The largest global norm of the gradient, or None.
    precision
        `"float32"`, or on a GPU `"tf32"` or `"bf16"`: rounding of the factors of matrix products.
        Parameters, moments, states and all sums are float32.
    ranks
        The processes that share each batch; None is this one alone.
    label_smoothing
        Of the training loss, see `softmax_cross_entropy`; `measuring` has none.
    scheduled
        Scheduled sampling, or None.

    Attributes
    ----------
    gradients
        Of the last step, by parameter, before clipping.
    packed, measuring
        Compute losses with gradients; and losses of validation data.
    measured
        Of the last step, by name, what else the history records; here nothing.
    figures
        Of the last step, `(2,)` on the device: loss in nats per caption, and global norm of the
        gradient before clipping. Every step makes a new array; None before the first.
    """

    def __init__(
        self,
        model: CaptionModel,
        optimizer: Optimizer,
        clip_norm: float | None = None,
        precision: str = "float32",
        ranks: Ranks | None = None,
        label_smoothing: float = 0.0,
        scheduled: ScheduledSampling | None = None,
    ) -> None:
        dtype = numpy.result_type(*(value.dtype for value in model.params.values()))
        check_precision(precision, model.backend.device is not None, dtype)
        self.model = model
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.precision = precision
        self.ranks = ranks or Alone()
        self.figures: Array = None
        self.gradients: dict[str, Array] = {}
        self.measured: dict[str, float] = {}
        self.packed = self.measuring = SharedLoss(model, label_smoothing, scheduled)
        shapes = {name: value.shape for name, value in model.params.items()}
        decayed = {name: shape for name, shape in shapes.items() if model.decays(name)}
        multiple = row_multiple(model.backend.xp)
        self._layout = FlatLayout({**decayed, **shapes}, multiple)
        self._decayed = FlatLayout(decayed, multiple).size  # elements at the beginning
        self._parameters: Array = None
        self._gradients: Array = None
        self._views: dict[str, Array] = {}

    def epoch(
        self, batches: Any, number: int, first: int, step: int, factors: Sequence[float]
    ) -> Iterator[Batch]:
        """Take the remaining steps of an epoch; yield each batch after its step.

        These are the batches from `first` on of epoch `number`, counted from 0, and the steps from
        `step` on, one per factor of the learning rate.
        """
        for batch, factor in zip(batches.epoch(number, first), factors, strict=True):
            self(batch, step, factor)
            step += 1
            yield batch

    def __call__(self, batch: Batch, step: int, factor: float) -> None:
        """Take one step; its number chooses the dropout masks.

        Captions and features may be on the host or the device; `factor` is that of the schedule.
        """
        xp = self.packed.xp
        with self.model.backend.activate():
            self._gather()
            loss = self._loss(batch, step)
            self.ranks.sum(self._gradients)
            self.figures = self._loss_and_norm(loss)
            scale: Any = 1.0
            if self.clip_norm is not None:
                scale = clip_scale(xp, self.figures[1], self.clip_norm)
            self.optimizer.update(
                xp, self._parameters, self._gradients, factor, scale, self._decayed
            )

    def _loss(self, batch: Batch, step: int) -> Array:
        if not len(batch.captions):  # the batch has fewer captions than there are ranks
            self._gradients[...] = 0
            return 0
        features = self.model.backend.to_device(batch.features)
        with multiplied_in(self.precision):
            return self.packed.loss(features, batch.captions, step, self.gradients, batch.share)

    def _loss_and_norm(self, loss: Array) -> Array:
        """Return the loss, summed over all ranks, and the norm of the summed gradient, `(2,)`."""
        xp = self.packed.xp
        totals = xp.empty(2, dtype=self._gradients.dtype)
        totals[:1] = loss
        self.ranks.sum(totals[:1])
        norm = totals[1:]
        square_sum(xp, self._gradients, norm)
        xp.sqrt(norm, out=norm)  # CuPy would copy another view of the same memory first
        return totals

    @property
    def loss(self) -> Array:
        """The last step's loss in nats per caption, a 0-d array on the device."""
        return self.figures[0]

    @property
    def gradient_norm(self) -> Array:
        """The last step's global norm of the gradient before clipping, a 0-d array."""
        return self.figures[1]

    def _gather(self) -> bool:
        """Make the parameters views of one array; return whether they were not already."""
        params, views = self.model.params, self._views
        if params.keys() == views.keys() and all(params[name] is views[name] for name in views):
            return False
        self._layout.check(params)
        xp, dtype = self.packed.xp, numpy.result_type(*(value.dtype for value in params.values()))
        self._parameters = self._layout.join(xp, params, dtype)
        self._gradients = xp.zeros_like(self._parameters)
        self._views = self._layout.views(self._parameters)
        self.gradients = self._layout.views(self._gradients)
        params.update(self._views)
        return True

    def state(self) -> tuple[dict[str, Array], dict[str, dict[str, Array]]]:
        """Return views of the parameters, and of the optimizer state by kind and parameter."""
        with self.model.backend.activate():
            self._gather()
        memory = self.optimizer.memory.items()
        return dict(self._views), {key: self._layout.views(array) for key, array in memory}

    def restore(
        self,
        parameters: Mapping[str, Array],
        memory: Mapping[str, Mapping[str, Array]],
        numbers: Mapping[str, float],
    ) -> None:
        """Set parameters and optimizer state, in the memory they are in.

        `parameters` and `memory` are as from `state`, on any device, and `numbers` the optimizer's;
        parameters that are not those of the model raise `ShapeError`.
        """
        self._layout.check(parameters)
        to_device = self.model.backend.to_device
        with self.model.backend.activate():
            self._gather()
            for key in {*memory, *self.optimizer.memory}:
                new = self.packed.xp.zeros_like(self._parameters)
                array = self.optimizer.config.setdefault(key, new)
                array[...] = 0
                views = self._layout.views(array)
                for name, value in memory.get(key, {}).items():
                    views[name][...] = to_device(value)
            for name, view in self._views.items():
                view[...] = to_device(parameters[name])
        self.optimizer.config.update(numbers)
