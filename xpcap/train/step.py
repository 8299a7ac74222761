"""One training step: loss and gradients, clipping, update, all in memory that stays where it is.

Of several ranks, each computes gradients of its share of a batch; of their sum it gets a part, with
which it updates that part of the parameters. So each remembers the moments of that part only, as in
ZeRO's first stage (Rajbhandari et al., "ZeRO: memory optimizations toward training trillion
parameter models", 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from xpcap.backend import Array
from xpcap.data.minibatch import Batch
from xpcap.kernels.products import check_precision, multiplied_in
from xpcap.kernels.updates import clip_scale, square_sum
from xpcap.models import CaptionModel
from xpcap.optim import Optimizer
from xpcap.parallel import Alone, Ranks, part_of
from xpcap.train.flat import FlatLayout
from xpcap.train.replicas import InCommon, Separate, replicate
from xpcap.train.shared import SharedLoss
from xpcap.workspace import row_multiple


class TrainingStep:
    """Updates a captioner's parameters, a batch at a time.

    From the first step on, `model.params` are views of one array `(P,)`, changed in place; arrays
    that were put there meanwhile are taken over. On a GPU the rows of matrices are padded to
    multiples of 8 elements. Several ranks may have this array in common: they
    change a parameter between two steps by putting a new array there, the same and all of them.

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
        Of the last step, by parameter, before clipping; of several ranks, none has all of them.
    packed, measuring
        What computes losses with gradients, and what may be used to measure a loss.
    figures
        Of the last step, `(2,)` on the device: its loss in nats per caption, and the joint norm of
        all gradients before clipping. Every step makes a new array.
    """

    def __init__(
        self,
        model: CaptionModel,
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
        self.figures: Array = None
        self.gradients: dict[str, Array] = {}
        self.packed = self.measuring = SharedLoss(model)
        shapes = {name: value.shape for name, value in model.params.items()}
        self._layout = FlatLayout(shapes, self.ranks.size, row_multiple(model.backend.xp))
        self._own = part_of(self.ranks, self._layout.size)
        self._replica: Separate | InCommon
        self._parameters: Array = None
        self._gradients: Array = None
        self._views: dict[str, Array] = {}

    def begin_epoch(self, batches: Any, epoch: int, step: int, factors: Sequence[float]) -> None:
        """Called before each epoch; here all that a step needs comes with its batch.

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
                loss = self.packed.loss(features, batch.captions, step, self.gradients, batch.share)
        else:  # a small batch, of which others have all
            loss = self.packed.xp.zeros((), dtype=self._gradients.dtype)
            self._gradients[...] = 0
        self._replica.sum_gradients()
        self.figures = self.totals(loss)
        scale: Any = 1.0
        if self.clip_norm is not None:
            scale = clip_scale(self.packed.xp, self.figures[1], self.clip_norm)
        parameters, gradients = self._parameters[self._own], self._gradients[self._own]
        self.optimizer.update(self.packed.xp, parameters, gradients, factor, scale)
        self._replica.tell_parameters()

    @property
    def loss(self) -> Array:
        """The last step's loss in nats per caption, a 0-d array on the device; None before it."""
        return None if self.figures is None else self.figures[0]

    @property
    def gradient_norm(self) -> Array:
        """The last step's joint norm of all gradients before clipping, a 0-d array, or None."""
        return None if self.figures is None else self.figures[1]

    def totals(self, loss: Array) -> Array:
        """Return the loss and the joint norm of all gradients, summed over all ranks, `(2,)`."""
        xp = self.packed.xp
        sums = xp.empty(2, dtype=self._gradients.dtype)
        norm = sums[1:]
        sums[:1] = loss
        square_sum(xp, self._gradients[self._own], norm)
        self.ranks.sum(sums)
        xp.sqrt(norm, out=norm)  # CuPy would copy another view of the same memory first
        return sums

    def _gather(self) -> bool:
        """Make the parameters views of one array; return whether they were not already."""
        params = self.model.params
        views = self._views
        if params.keys() == views.keys() and all(params[name] is views[name] for name in views):
            return False
        self._layout.check(params)
        xp, dtype = self.packed.xp, numpy.result_type(*(value.dtype for value in params.values()))
        self._replica = replicate(self.ranks, self._layout.join(xp, params, dtype))
        self._parameters, self._gradients = self._replica.parameters, self._replica.gradients
        self._views = self._layout.views(self._parameters)
        self.gradients = self._layout.views(self._gradients)
        params.update(self._views)
        return True

    def state(self) -> tuple[dict[str, Array], dict[str, dict[str, Array]]]:
        """Return the parameters, and what the update rule remembers of each: views of both.

        Of several ranks, all have to ask for it together; they get copies of what is remembered.
        """
        with self.model.backend.activate():
            self._gather()
            memory = {
                key: self._layout.views(self._whole(part))
                for key, part in self.optimizer.memory.items()
            }
        return dict(self._views), memory

    def _whole(self, part: Array) -> Array:
        """Return an array `(P,)` of which each rank has its part."""
        if self.ranks.size == 1:
            return part
        whole = self.packed.xp.empty_like(self._parameters)
        whole[self._own] = part
        self.ranks.all_gather(whole)
        return whole

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
        self.ranks.wait()  # others may still look at the parameters that are changed here
        to_device = self.model.backend.to_device
        with self.model.backend.activate():
            self._gather()
            xp = self.packed.xp
            for key in {*memory, *self.optimizer.memory}:
                whole = xp.zeros_like(self._parameters)
                views = self._layout.views(whole)
                for name, value in memory.get(key, {}).items():
                    views[name][...] = to_device(value)
                part = self.optimizer.config.setdefault(key, xp.empty_like(whole[self._own]))
                part[...] = whole[self._own]
            for name, view in self._views.items():
                view[...] = to_device(parameters[name])
        self.optimizer.config.update(numbers)
