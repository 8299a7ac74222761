"""One training step: loss and gradients, clipping, update, all in memory that stays where it is."""

from __future__ import annotations

from typing import Any

from xpcap.backend import Array
from xpcap.data.minibatch import Batch
from xpcap.kernels.updates import square_sum
from xpcap.models import CaptioningRNN
from xpcap.models.packed import PackedLoss
from xpcap.optim import Optimizer, clip_scale
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

    Attributes
    ----------
    loss, gradient_norm
        Of the last step: nats a caption, and the norm before clipping (None without clipping);
        arrays of no axes, on the device.
    """

    def __init__(
        self, model: CaptioningRNN, optimizer: Optimizer, clip_norm: float | None = None
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.loss: Array = None
        self.gradient_norm: Array = None
        self.packed = PackedLoss(model)
        shapes = {name: value.shape for name, value in model.params.items()}
        self._layout = FlatLayout(shapes)
        self._parameters: Array = None
        self._gradients: Array = None
        self._views: dict[str, Array] = {}

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
        self._gather()
        features = self.model.backend.to_device(batch.features)
        gradients = self._layout.views(self._gradients)
        self.loss = self.packed.loss(features, batch.captions, step, gradients)
        scale: Any = 1.0
        if self.clip_norm is not None:
            xp = self.packed.xp
            squares = xp.empty(1, dtype=self._gradients.dtype)
            square_sum(xp, self._gradients, squares)
            self.gradient_norm = xp.sqrt(squares)[0]
            scale = clip_scale(xp, self.gradient_norm, self.clip_norm)
        self.optimizer.update(self.packed.xp, self._parameters, self._gradients, factor, scale)

    def _gather(self) -> None:
        """Make the parameters views of one array, unless they are already."""
        params = self.model.params
        if all(params[name] is view for name, view in self._views.items()) and self._views:
            return
        xp, dtype = self.model.backend.xp, next(iter(params.values())).dtype
        self._parameters = self._layout.join(xp, params, dtype)
        self._gradients = xp.zeros_like(self._parameters)
        self._views = self._layout.views(self._parameters)
        params.update(self._views)

    def remembered(self, name: str) -> dict[str, Array]:
        """Return what the update rule remembers of a parameter."""
        memory = self.optimizer.memory.items()
        return {key: self._layout.views(value)[name] for key, value in memory}
