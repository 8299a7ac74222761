"""Loss and gradients of a batch that is shared among the CPU's threads.

Each thread has its own memory and gradients; at the end the gradients are summed. Results depend on
the number of threads within rounding.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy

from xpcap import threads
from xpcap.backend import Array, is_host, namespace
from xpcap.data.minibatch import Share, count_words, deal
from xpcap.models import CaptionModel
from xpcap.models.objective import Objective
from xpcap.models.scheduled_sampling import ScheduledSampling


class SharedLoss(Objective):
    """An `Objective` that all threads compute together."""

    def __init__(
        self,
        model: CaptionModel,
        label_smoothing: float = 0.0,
        scheduled: ScheduledSampling | None = None,
    ) -> None:
        super().__init__(model, label_smoothing, scheduled)
        self._others: list[Objective] = []
        self._gradients: list[dict[str, Array]] = []

    def loss(
        self,
        features: Array,
        captions: Array,
        step: int,
        gradients: dict[str, Array],
        share: Share | None = None,
        images: numpy.ndarray | None = None,
        weights: numpy.ndarray | None = None,
    ) -> Array:
        """As `Objective.loss`."""
        parts = self._deal(features, captions, share, images, weights)
        several = [gradients, *self._memory(len(parts) - 1, gradients)]
        shared = zip([self, *self._others], parts, several, strict=False)
        tasks = [
            partial(Objective.loss, one, features, some, step, own, its, rows, counts)
            for one, (some, its, rows, counts), own in shared
        ]
        loss, *others = threads.run(tasks)
        _add(several)
        return sum(others, start=loss)

    def evaluate(
        self,
        features: Array,
        captions: Array,
        share: Share | None = None,
        images: numpy.ndarray | None = None,
    ) -> Array:
        """As `Objective.evaluate`."""
        parts = self._deal(features, captions, share, images)
        shared = zip([self, *self._others], parts, strict=False)
        tasks = [
            partial(Objective.evaluate, one, features, some, its, rows)
            for one, (some, its, rows, _) in shared
        ]
        loss, *others = threads.run(tasks)
        return sum(others, start=loss)

    def _deal(
        self,
        features: Array,
        captions: Array,
        share: Share | None,
        images: numpy.ndarray | None,
        weights: numpy.ndarray | None = None,
    ) -> list[tuple[Array, Share | None, numpy.ndarray | None, numpy.ndarray | None]]:
        """Return each thread's captions, which share of the batch they are, images and weights."""
        fits = images is not None or features.shape[:1] == captions.shape[:1]
        shared = captions.ndim == 2 and fits and is_host(self.model.backend.xp)
        count = len(threads.spans(len(captions))) if shared else 1
        if count == 1:
            return [(captions, share, images, weights)]
        while len(self._others) < count - 1:
            self._others.append(Objective(self.model, self.label_smoothing, self.scheduled))
        whole = share or Share(numpy.arange(len(captions)), len(captions), count_words(captions))
        return [
            (
                captions[rows],
                whole._replace(places=whole.places[rows]),
                rows if images is None else images[rows],
                None if weights is None else weights[rows],
            )
            for rows in deal(captions, count)
        ]

    def _memory(self, count: int, like: dict[str, Array]) -> list[dict[str, Array]]:
        """Return memory for `count` more gradients, reused from call to call."""
        if self._gradients and _layout(self._gradients[0]) != _layout(like):
            self._gradients.clear()
        while len(self._gradients) < count:
            empty = {name: namespace(value).empty_like(value) for name, value in like.items()}
            self._gradients.append(empty)
        return self._gradients[:count]


def _layout(gradients: dict[str, Array]) -> dict[str, Any]:
    return {name: (value.shape, value.dtype) for name, value in gradients.items()}


def _add(several: list[dict[str, Array]]) -> None:
    """Add all gradients to the first; each thread adds some rows of every array."""
    total, *others = several

    def add(thread: int, count: int) -> None:
        for name, sums in total.items():
            part = slice(len(sums) * thread // count, len(sums) * (thread + 1) // count)
            for other in others:
                sums[part] += other[name][part]

    if others:
        threads.run([partial(add, thread, len(several)) for thread in range(len(several))])
