"""One training step: loss and gradients, clipping, update, all in memory that stays where it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from xpcap.backend import Array
from xpcap.data.minibatch import Batch
from xpcap.kernels.products import check_precision, multiplied_in
from xpcap.kernels.updates import square_sum
from xpcap.models import CaptioningRNN
from xpcap.models.packed import PackedLoss
from xpcap.optim import Optimizer, clip_scale
from xpcap.parallel import Alone, Ranks
from xpcap.train.flat import FlatLayout


class TrainingStep:
    """Updates a captioner's parameters, a batch at a time.

    From the first step on, `model.params` are views of one array `(P,)`, changed in place; arrays
    that were put there meanwhile are taken over.

    Parameters
    ----------
    model
        What is trained.
    optimizer
        The update rule.
    clip_norm
        The largest joint norm of all gradients, or None.
    precision
        `"float32"`, or on a GPU `"tf32"` or `"bf16"`: how the factors of matrix products are
        rounded. Parameters, moments, states and all sums are float32.
    ranks
        The processes over which each batch is shared out; None is this one alone.

    Attributes
    ----------
    gradients
        Of the last step, by parameter, before clipping.
    packed, measuring
        What computes losses with gradients, and what may be used to measure a loss.
    loss, gradient_norm
        Of the last step: nats a caption, and the joint norm of all gradients before clipping;
        arrays of no axes, on the device.
    """

    def __init__(
        self,
        model: CaptioningRNN,
        optimizer: Optimizer,
        clip_norm: float | None = None,
        precision: str = "float32",
        ranks: Ranks | None = None,
    ) -> None:
        dtype = numpy.result_type(*(value.dtype for value in model.params.values()))
        check_precision(precision, model.backend.device is not None, dtype)
        self.model = model
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.precision = precision
        self.ranks = ranks or Alone()
        self.loss: Array = None
        self.gradient_norm: Array = None
        self.gradients: dict[str, Array] = {}
        self.packed = self.measuring = PackedLoss(model)
        shapes = {name: value.shape for name, value in model.params.items()}
        self._layout = FlatLayout(shapes)
        self._parameters: Array = None
        self._gradients: Array = None
        self._summed: Array = None
        self._views: dict[str, Array] = {}

    def begin_epoch(self, batches: Any, epoch: int, step: int, factors: Sequence[float]) -> None:
        """Hear of an epoch before its steps; all that a step needs comes with its batch.

        Parameters
        ----------
        batches
            Where the epoch's batches come from.
        epoch, step
            Which epoch it is, and the number of its first step.
        factors
            What the schedule multiplies the learning rate by, step by step.
        """

    def __call__(self, batch: Batch, step: int, factor: float) -> None:
        """Take a step.

        Parameters
        ----------
        batch
            Captions on the host or the device, and features.
        step
            Its number, which chooses the dropout masks.
        factor
            What the schedule multiplies the learning rate by.
        """
        with self.model.backend.activate():
            self._take(batch, step, factor)

    def _take(self, batch: Batch, step: int, factor: float) -> None:
        self._gather()
        if len(batch.captions):
            features = self.model.backend.to_device(batch.features)
            with multiplied_in(self.precision):
                self.loss = self.packed.loss(
                    features, batch.captions, step, self.gradients, batch.share
                )
        else:  # a small batch, of which others have all
            self.loss = self.packed.xp.zeros((), dtype=self._gradients.dtype)
            self._gradients[...] = 0
        if self.ranks.size > 1:
            self._sum()
        scale: Any = 1.0
        self.gradient_norm = self.norm()
        if self.clip_norm is not None:
            scale = clip_scale(self.packed.xp, self.gradient_norm, self.clip_norm)
        self.optimizer.update(self.packed.xp, self._parameters, self._gradients, factor, scale)

    def _sum(self) -> None:
        """Add up loss and gradients of all ranks, in one go."""
        self._summed[-1] = self.loss
        self.ranks.sum(self._summed)
        self.loss = self._summed[-1].copy()

    def norm(self) -> Array:
        """Return the joint norm of all gradients, an array of no axes."""
        xp = self.packed.xp
        squares = xp.empty(1, dtype=self._gradients.dtype)
        square_sum(xp, self._gradients, squares)
        return xp.sqrt(squares)[0]

    def _gather(self) -> bool:
        """Make the parameters views of one array; return whether they were not already."""
        params = self.model.params
        views = self._views
        if params.keys() == views.keys() and all(params[name] is views[name] for name in views):
            return False
        self._layout.check(params)
        xp, dtype = self.packed.xp, numpy.result_type(*(value.dtype for value in params.values()))
        self._parameters = self._layout.join(xp, params, dtype)
        self._summed = xp.zeros(self._layout.size + 1, dtype=dtype)  # the loss comes last
        self._gradients = self._summed[:-1]
        self._views = self._layout.views(self._parameters)
        self.gradients = self._layout.views(self._gradients)
        params.update(self._views)
        return True

    def state(self) -> tuple[dict[str, Array], dict[str, dict[str, Array]]]:
        """Return the parameters, and what the update rule remembers of each: views of both."""
        with self.model.backend.activate():
            self._gather()
        memory = self.optimizer.memory.items()
        return dict(self._views), {key: self._layout.views(flat) for key, flat in memory}

    def restore(
        self,
        parameters: Mapping[str, Array],
        memory: Mapping[str, Mapping[str, Array]],
        numbers: Mapping[str, float],
    ) -> None:
        """Go back, or on, to another state, in the memory of this one.

        Parameters
        ----------
        parameters, memory
            As from `state`, on any device.
        numbers
            The optimizer's.

        Raises
        ------
        ShapeError
            If the parameters are not those of the model.
        """
        self._layout.check(parameters)
        to_device = self.model.backend.to_device
        with self.model.backend.activate():
            self._gather()
            for key in {*memory, *self.optimizer.memory}:
                flat = self.optimizer.config.get(key)
                if flat is None:
                    flat = self.optimizer.config[key] = self.packed.xp.zeros_like(self._parameters)
                flat[...] = 0
                for name, value in memory.get(key, {}).items():
                    self._layout.views(flat)[name][...] = to_device(value)
            for name, view in self._views.items():
                view[...] = to_device(parameters[name])
        self.optimizer.config.update(numbers)

    def remembered(self, name: str) -> dict[str, Array]:
        """Return what the update rule remembers of a parameter."""
        memory = self.optimizer.memory.items()
        return {key: self._layout.views(value)[name] for key, value in memory}
