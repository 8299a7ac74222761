"""Features that do not fit on a GPU: those of the next batch are copied during a step.

Two buffers take turns, each of pinned host memory and device memory of the same size. Copies run on
their own stream; events keep them from overwriting data in use.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy

from xpcap.backend import Array, Backend
from xpcap.data.minibatch import Batch, EpochBatches


class StagedBatches:
    """`EpochBatches`, which have features on the host, with features on a GPU."""

    def __init__(self, batches: EpochBatches, backend: Backend) -> None:
        self._batches = batches
        features = batches.split.features
        shape, dtype = (batches.batch_size, *features.shape[1:]), features.dtype
        with backend.activate():
            stream = backend.xp.cuda.Stream(non_blocking=True)
            self._buffers = [_Buffer(backend.xp, shape, dtype, stream) for _ in range(2)]

    def __len__(self) -> int:
        """Return how many batches an epoch has."""
        return len(self._batches)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """Yield batches as `EpochBatches` does, after starting the copy of the next."""
        waiting: tuple[Batch, _Buffer] | None = None
        for k, batch in enumerate(self._batches.epoch(number, first)):
            buffer = self._buffers[k % 2]
            buffer.send(batch.features)
            if waiting is not None:
                yield waiting[0]._replace(features=waiting[1].receive())
            waiting = batch, buffer
        if waiting is not None:
            yield waiting[0]._replace(features=waiting[1].receive())


class _Buffer:
    def __init__(
        self, xp: Any, shape: tuple[int, ...], dtype: numpy.dtype[Any], stream: Any
    ) -> None:
        self._cuda = xp.cuda
        self._stream = stream
        count = math.prod(shape)
        memory = xp.cuda.alloc_pinned_memory(count * dtype.itemsize)
        self._host = numpy.frombuffer(memory, dtype, count).reshape(shape)
        self._device = xp.empty(shape, dtype=dtype)
        self._sent = xp.cuda.Event(disable_timing=True)
        self._rows = 0

    def send(self, features: numpy.ndarray) -> None:
        """Start to copy features to the device, after all work launched so far."""
        self._sent.synchronize()  # of two batches ago: the pinned memory is free again
        self._rows = len(features)
        self._host[: self._rows] = features
        launched = self._cuda.Event(disable_timing=True)
        launched.record(self._cuda.get_current_stream())
        self._stream.wait_event(launched)
        self._device[: self._rows].set(self._host[: self._rows], stream=self._stream)
        self._sent.record(self._stream)

    def receive(self) -> Array:
        """Return the features; later launches wait for their copy."""
        self._cuda.get_current_stream().wait_event(self._sent)
        return self._device[: self._rows]
