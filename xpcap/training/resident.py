"""Training steps on data that stay on the device: an epoch needs nothing from the host.

The order of an epoch and the settings of its steps are sent at its beginning; each step gathers its
own minibatch, and on a GPU is one CUDA graph. All captions are padded to one length with weight 0,
because the shapes of a graph cannot change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy

from xpcap.backend import Array, Backend
from xpcap.data.dataset import Split
from xpcap.data.features import Features
from xpcap.data.minibatch import Batch
from xpcap.kernels.batches import BatchArrays, next_batch
from xpcap.kernels.graphs import Repeated
from xpcap.kernels.products import multiplied_in
from xpcap.kernels.updates import loss_and_norm
from xpcap.layers.recurrence import Packing
from xpcap.models import CaptionModel
from xpcap.models.packed_batch import PackedBatch
from xpcap.optim import Optimizer
from xpcap.training.shared import SharedLoss
from xpcap.training.step import TrainingStep


class ResidentStep(TrainingStep):
    """A `TrainingStep` whose epochs use a split that is on the device.

    Dropout, label smoothing, clipping and the settings of the update rule, other than its learning
    rate, are those of the first step; a changed learning rate counts from the next epoch on.
    Batches have N = `batch_size` captions; the other arguments are those of `TrainingStep`.
    """

    def __init__(
        self,
        model: CaptionModel,
        optimizer: Optimizer,
        split: Split,
        batch_size: int,
        clip_norm: float | None = None,
        precision: str = "float32",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(model, optimizer, clip_norm, precision, label_smoothing=label_smoothing)
        backend, xp = model.backend, self.packed.xp
        N, T = batch_size, split.captions.shape[1] - 1
        dtype = numpy.result_type(*(value.dtype for value in model.params.values()))
        self._captions = backend.to_device(split.captions, numpy.int32)
        self._image_idxs = backend.to_device(split.image_idxs, numpy.int32)
        with backend.activate():
            self._features = _upload(split.features, backend)
            self._order = xp.zeros(len(split), dtype=numpy.int32)
            batches = -(-len(split) // N)
            count = len(optimizer.settings(1, 1.0))
            self._table = xp.zeros((batches, count), dtype=dtype)
            self._position = xp.zeros(2, dtype=numpy.int64)
            self._totals = xp.zeros(2, dtype=dtype)  # loss and norm
            self._now = BatchArrays(
                words=xp.empty(T * N, dtype=numpy.int32),
                targets=xp.empty(T * N, dtype=numpy.int32),
                weight=xp.empty(T * N, dtype=dtype),
                images=xp.empty(N, dtype=numpy.int32),
                settings=xp.empty(count, dtype=dtype),
                streams=xp.empty(2, dtype=numpy.uint64),
            )
        places = numpy.arange(N)[None, :] * T + numpy.arange(T)[:, None]
        self._batch = PackedBatch(
            Packing(N, [N] * T),
            self._now.images,
            self._now.words,
            self._now.targets,
            self._now.weight,
            backend.to_device(places.reshape(-1)),
        )
        self.measuring = SharedLoss(model)  # larger batches would move the memory of the graph
        self._repeated = self._new_repeated()

    def epoch(
        self, batches: Any, number: int, first: int, step: int, factors: Sequence[float]
    ) -> Iterator[Batch]:
        """As `TrainingStep.epoch`, in the order of `batches`, which need no features."""
        t = self.optimizer.config["t"] + 1
        table = [self.optimizer.settings(t + k, factor) for k, factor in enumerate(factors)]
        settings = numpy.array(table, self._table.dtype).reshape(-1, self._table.shape[1])
        to_device = self.model.backend.to_device
        self._order[...] = to_device(batches.order(number), numpy.int32)
        self._table[first:] = to_device(settings)
        self._position[...] = to_device(numpy.array([first, step]))
        for batch, factor in zip(batches.epoch(number, first), factors, strict=True):
            self._take_next(factor)
            yield batch

    def _take_next(self, factor: float) -> None:
        with self.model.backend.activate(), multiplied_in(self.precision):
            if self._gather():
                self._repeated = self._new_repeated()
            self._repeated(self._launch)
            self.figures = self._totals.copy()  # the next step writes to the same memory
        self.optimizer.count(factor)

    def _new_repeated(self) -> Repeated:
        return Repeated(self.packed.xp, self._now.weight.dtype)

    def _launch(self) -> None:
        xp, now = self.packed.xp, self._now
        next_batch(
            xp, self._captions, self._image_idxs, self._order, self._table, self._position,
            self.model.null, *now,
        )  # fmt: skip
        streams = (now.streams[:1], now.streams[1:]) if self.model.dropout else None
        losses = self.packed.compute(self._features, self._batch, streams, self.gradients)
        loss_and_norm(xp, losses, self._gradients, self.clip_norm, self._totals, now.settings)
        settings, decayed = now.settings, self._decayed
        self.optimizer.apply(xp, self._parameters, self._gradients, settings, decayed)


_BLOCK = 2**26  # bytes of features that are on the host at a time


def _upload(features: Features, backend: Backend) -> Array:
    """Copy features of images to the device block by block; they may be in a file."""
    images, *of_image = features.shape
    there = backend.xp.empty((images, *of_image), dtype=features.dtype)
    rows = max(1, _BLOCK // max(1, math.prod(of_image) * features.dtype.itemsize))
    for first in range(0, images, rows):
        there[first : first + rows] = backend.to_device(features[first : first + rows])
    return there
