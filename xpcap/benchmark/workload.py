"""Workloads: model sizes, and captions with COCO's lengths and word frequencies.

Both matter: padding and repeated words cost nothing, so captions of uniformly random words of one
length would measure a different computation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy

from xpcap.backend import Backend
from xpcap.benchmark.clock import add_clock, set_clock
from xpcap.data.dataset import Split
from xpcap.data.minibatch import Batch, gather
from xpcap.data.vocabulary import SPECIAL
from xpcap.models import AttentionRNN, CaptioningRNN, Transformer

NULL, START, END, UNK = range(4)
MAX_LENGTH = 30  # words of a decoded caption
CAPTIONS, IMAGES = 2048, 512
BEAM = 3  # slots
Model = CaptioningRNN | Transformer


@dataclass(frozen=True)
class Configuration:
    """Sizes of a model and its batches: N captions of T + 1 words, D features, V words.

    Images have one vector of features, or one for each of their `regions`. A Transformer has
    `layers` with `heads`.
    """

    batch_size: int
    hidden: int
    features: int
    vocabulary: int
    wordvec: int = 256
    steps: int = 16
    regions: int = 0
    layers: int = 3
    heads: int = 8


CONFIGURATIONS = {
    "seed": Configuration(100, 200, 512, 1004),
    "full": Configuration(128, 512, 4096, 1004),
    "bigvocab": Configuration(128, 512, 512, 10_000),
}
GRIDS = {"grid-512": Configuration(128, 512, 512, 2500, regions=49)}


def draw_captions(
    count: int, vocabulary: int, steps: int, rng: numpy.random.Generator
) -> numpy.ndarray:
    """Generate captions `(count, steps + 1)` with lengths and word frequencies like COCO's.

    Lengths are 8 plus a negative binomial number (2.2 on average), at most `steps - 1`. The most
    frequent word has probability 16%, `<UNK>` 8% for 1,004 words, the others fall as
    (rank + 40)^-1.65. 128 captions then have about 360 distinct words of 1,004, or 460 of 10,000,
    and 30% of a batch is padding, as for COCO's captions of at most 15 words.
    """
    p = _frequencies(vocabulary)
    lengths = numpy.minimum(8 + rng.negative_binomial(6, 6 / 8.2, count), steps - 1)
    captions = numpy.full((count, steps + 1), NULL, numpy.int32)
    captions[:, 0] = START
    inside = numpy.arange(1, steps + 1) <= lengths[:, None]
    captions[:, 1:][inside] = UNK + rng.choice(len(p), int(inside.sum()), p=p)
    captions[numpy.arange(count), lengths + 1] = END
    return captions


def _frequencies(vocabulary: int) -> numpy.ndarray:
    """Return the probability of each word from `<UNK>` on."""
    ranks = numpy.arange(1, vocabulary - UNK - 1)
    unknown = 0.08 if vocabulary < 2000 else 0.0
    tail = (ranks + 40.0) ** -1.65
    return numpy.concatenate([[unknown, 0.16], (0.84 - unknown) * tail / tail.sum()])


class Workload:
    """Model sizes, a data set, and the order of its batches.

    `cell` is that of a recurrent network, or "transformer" for a `Transformer`. `captions` are word
    indices `(count, T+1)` to use instead of generated ones. With `scoring`, of `AttentionRNN`, the
    model looks at regions.
    """

    def __init__(
        self,
        configuration: Configuration,
        cell: str,
        captions: numpy.ndarray | None = None,
        scoring: str | None = None,
    ) -> None:
        self.configuration = size = configuration
        self.cell = cell
        self.scoring = scoring
        rng = numpy.random.default_rng(0)
        if captions is None:
            captions = draw_captions(CAPTIONS, size.vocabulary, size.steps, rng)
        captions = captions[: len(captions) // size.batch_size * size.batch_size]
        shape = (size.regions, size.features) if size.regions else (size.features,)
        features = rng.standard_normal((IMAGES, *shape), dtype=numpy.float32)
        images = rng.integers(IMAGES, size=len(captions))
        self.split = Split(captions, images, features, [""] * IMAGES)
        self._order: numpy.ndarray = rng.permutation(len(captions))

    def rows(self, k: int) -> numpy.ndarray:
        """Return the captions `(N,)` of the k-th batch, cyclically."""
        N = self.configuration.batch_size
        first = k % len(self) * N
        rows: numpy.ndarray = self._order[first : first + N]
        return rows

    def __len__(self) -> int:
        """Return the number of batches, all of N captions."""
        return len(self.split) // self.configuration.batch_size

    def uniform_loss(self, k: int) -> float:
        """Return the k-th batch's loss, in nats per caption, for uniform word probabilities."""
        words = numpy.count_nonzero(self.split.captions[self.rows(k), 1:] != NULL)
        return words * math.log(self.configuration.vocabulary) / self.configuration.batch_size

    def order(self, epoch: int) -> numpy.ndarray:
        """Return the captions of all batches in order."""
        return self._order

    def batch(self, k: int) -> Batch:
        """Gather the k-th batch."""
        return gather(self.split, self.rows(k))

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """Yield batches without features, as for a `ResidentStep`."""
        for k in range(first, len(self)):
            yield Batch(self.split.captions[self.rows(k)], None, self.rows(k))

    def model(self, backend: Backend | str, dtype: type = numpy.float32) -> Model:
        """Return a new model to train, the same every time."""
        return _moved(self._new(), backend, dtype)

    def _new(self) -> Model:
        size = self.configuration
        names = [*SPECIAL, *(f"w{k}" for k in range(len(SPECIAL), size.vocabulary))]
        words = {word: index for index, word in enumerate(names)}
        if self.cell == Transformer.family:
            return Transformer(
                words, size.features, size.hidden, layers=size.layers, heads=size.heads,
                positions="learned", max_length=MAX_LENGTH, seed=1, backend="cpu",
            )  # fmt: skip
        family = CaptioningRNN if self.scoring is None else AttentionRNN
        options: dict[str, Any] = {} if self.scoring is None else {"scoring": self.scoring}
        return family(
            words, size.features, size.wordvec, size.hidden, self.cell, numpy.float32,
            seed=1, backend="cpu", **options,
        )  # fmt: skip

    def decoding_model(
        self, backend: Backend | str, dtype: type = numpy.float32, weight: float = 0.05
    ) -> Model:
        """Return a new model to decode with, the same every time.

        It is untrained, but its captions have COCO's lengths, and 128 of them have some 110
        distinct words, as those of a model trained on COCO. Its weights are too large for training.
        `weight` is that of the logarithms of word frequencies; with 1, captions that it draws have
        COCO's frequencies.
        """
        model = self._new()
        add_clock(model, _frequencies(self.configuration.vocabulary), weight)
        return _moved(model, backend, dtype)

    def images_to_decode(self) -> numpy.ndarray:
        """Return features `(N, D)` for which `decoding_model` writes captions of COCO's lengths."""
        N = self.configuration.batch_size
        lengths = (self.split.captions[:N, 1:] != NULL).sum(axis=1) - 1
        return set_clock(self.decoding_model("cpu"), self.split.features[:N], lengths.tolist())


def _moved(model: Model, backend: Backend | str, dtype: type) -> Model:
    """Move a model to a backend, and convert its parameters to a dtype."""
    model.params = {name: value.astype(dtype) for name, value in model.params.items()}
    model.to(backend)
    return model
