"""Scheduled sampling: some of the words read in training are the model's own.

S. Bengio, O. Vinyals, N. Jaitly and N. Shazeer, "Scheduled sampling for sequence prediction with
recurrent neural networks" (NIPS 2015). In two passes it works for every family (T. Mihaylova and
A. F. T. Martins, "Scheduled sampling for Transformers", ACL student research workshop 2019): the
first reads the references and draws a word from each of its predictions; the second, the training
step itself, reads some of them in place of the references' words, and predicts those. There is no
gradient through the first pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy

from xpcap.backend import Array, namespace
from xpcap.kernels import fastest
from xpcap.layers.sampling import draw_words, uniform
from xpcap.options import check_counts, check_number

if TYPE_CHECKING:
    from xpcap.models.packed_batch import PackedBatch

_STREAM = 2**61  # added to the number of the step: the stream of its random numbers


@dataclass(frozen=True)
class ScheduledSampling:
    """The probability that a word is the model's own rises linearly to `rate` over `steps`."""

    rate: float
    steps: int

    def __post_init__(self) -> None:
        check_number("scheduled_sampling", self.rate, "[0, 1]")
        check_counts(1, math.inf, steps=self.steps)

    def draw(
        self,
        scores: Array,
        batch: PackedBatch,
        kept: Iterable[int | None],
        seed: int,
        step: int,
    ) -> PackedBatch:
        """Return a batch of which some words are drawn from the predictions before them.

        `scores (M, V)` predict the word after each row, and are overwritten. Where a word of `kept`
        is drawn, such as `<END>`, the reference's stays.
        """
        xp, packing = namespace(scores), batch.packing
        count = batch.all_places or packing.capacity
        numbers = uniform(xp, 2 * count, seed, _STREAM + step).reshape(2, count)[:, batch.places]
        drawn, log_probs = xp.empty(len(scores), numpy.int32), xp.empty(len(scores), scores.dtype)
        draw_words(fastest(xp), scores, numbers[0].astype(scores.dtype), drawn, log_probs)
        steps = itertools.pairwise(packing.rows)
        after = [xp.arange(a.start, a.start + b.stop - b.start) for a, b in steps]
        first = xp.zeros(packing.rows[0].stop if packing.rows else 0, dtype=int)
        own = drawn[xp.concatenate([first, *after])]
        chosen = numbers[1] < self.rate * min(1.0, step / self.steps)
        chosen[: len(first)] = False  # <START> is always read
        for word in kept:
            chosen &= own != word
        words = xp.where(chosen, own, batch.words)
        return batch._replace(words=words, distinct=None, which=None)
