"""Self-critical steps of xpcap, and what they need of a benchmark's workload."""

from __future__ import annotations

import functools

import numpy

from xpcap.benchmark.contenders import Ours
from xpcap.benchmark.workload import IMAGES, MAX_LENGTH, UNK, Workload
from xpcap.data.minibatch import Batch
from xpcap.optim import Optimizer
from xpcap.training.rewards import Rewards
from xpcap.training.self_critical import SelfCritical, SelfCriticalStep

REFERENCES = 5  # captions of an image that rewards compare with
SAMPLES = 5  # captions drawn of an image
STILL = 1e-12  # learning rate, after which captions have the same lengths
FREQUENCIES = 1.0  # weight of the logarithms of word frequencies, of a model to draw captions from


def references(workload: Workload) -> list[list[list[int]]]:
    """Return captions of each image, without special tokens; V stands for unknown words."""
    split = workload.split
    rows = numpy.random.default_rng(1).integers(len(split), size=(IMAGES, REFERENCES))
    captions = split.captions[rows]
    captions = numpy.where(captions == UNK, workload.configuration.vocabulary, captions)
    return [[caption[caption > UNK].tolist() for caption in known] for known in captions]


class WithSelfCritical(Ours):
    """What `Ours` does, and self-critical steps.

    `drawn` are the captions and rewards of the last one.
    """

    drawn: tuple[numpy.ndarray, numpy.ndarray] | None = None

    def self_critical(self, k: int) -> None:
        """Go from N images to the update by the rewards of captions drawn; k is the step."""
        self.critical(self._images, k, 1.0)

    @functools.cached_property
    def critical(self) -> SelfCriticalStep:
        """The self-critical step."""
        workload, backend = self.workload, self.model.backend
        model = workload.decoding_model(backend, self.dtype, FREQUENCIES)
        words = [[[f"w{k}" for k in caption] for caption in known]
                 for known in references(workload)]  # fmt: skip
        rewards = Rewards(words, model.word_to_idx, {"CIDEr-D": 1.0})

        def reward(images: numpy.ndarray, captions: numpy.ndarray) -> numpy.ndarray:
            self.drawn = captions, rewards(images, captions)
            return self.drawn[1]

        N = workload.configuration.batch_size
        return SelfCriticalStep(
            model, Optimizer("adam", learning_rate=STILL), numpy.arange(N), reward, MAX_LENGTH,
            SelfCritical(samples=SAMPLES), precision=self.precision,
        )  # fmt: skip

    @functools.cached_property
    def _images(self) -> Batch:
        """The images to draw captions of."""
        N = self.workload.configuration.batch_size
        features = self.model.backend.to_device(self.workload.images_to_decode(), self.dtype)
        return Batch(self.workload.split.captions[:N], features, numpy.arange(N))
