"""Self-critical training: steps that raise the expected reward of the captions a model draws.

With captions w drawn from the model's distribution p, a reward r, and a baseline b that does not
depend on w (R. J. Williams, "Simple statistical gradient-following algorithms", 1992),

    loss     = -E[r(w)]
    gradient = -E[(r(w) - b) d log p(w)]    as E[d log p(w)] = sum of p(w) d log p(w) = d 1 = 0

So one step draws K captions of each of N images, and its gradient is that of their cross entropy,
-log p(w), with the weight r(w) - b, the advantage. The baseline is the reward of the image's greedy
caption (Rennie et al., "Self-critical sequence training for image captioning", CVPR 2017), or the
mean reward of its other K - 1 captions (R. Luo, "A better variant of self-critical sequence
training", 2020).

An entropy bonus adds beta E[-log p(w) / n(w)], with n the number of words, to what is raised: the
entropy in nats per word. Its gradient is that of the reward -beta (log p(w) + 1) / n(w), in which
the 1 comes from the gradient of log p(w) itself. Without n, long captions of any words would pay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy

from xpcap.backend import Array, to_host
from xpcap.data.minibatch import Batch, Share
from xpcap.distributed import Ranks
from xpcap.errors import ConfigurationError
from xpcap.kernels.products import multiplied_in
from xpcap.layers.sampling import uniform
from xpcap.models import CaptionModel
from xpcap.models.generation import sampled
from xpcap.optim import Optimizer
from xpcap.options import LARGEST, check_counts, check_number
from xpcap.training.rewards import parse_reward
from xpcap.training.samples import DESCRIBED, describe_samples
from xpcap.training.step import TrainingStep

BASELINES = ("mean", "greedy")
_DRAWN = 2**62  # added to the number of the step: the stream of its captions

Rewards = Callable[[numpy.ndarray, numpy.ndarray], numpy.ndarray]
"""Rewards `(R,)` of captions `(R, T)` of the images `(R,)`."""


@dataclass(frozen=True)
class SelfCritical:
    """How a self-critical step estimates the gradient; see the top of this file."""

    reward: str = "CIDEr-D"  # see `parse_reward`
    samples: int = 5  # K, captions drawn of each image
    baseline: str = "mean"  # one of `BASELINES`
    entropy: float = 0.0  # beta, weight of the entropy of captions per word
    cross_entropy: float = 0.0  # the share of the cross entropy of references in the loss, below 1

    def __post_init__(self) -> None:
        parse_reward(self.reward)
        if self.baseline not in BASELINES:
            raise ConfigurationError(
                f"baseline {self.baseline!r:.40} is unknown; expected {', '.join(BASELINES)}"
            )
        check_counts(2 if self.baseline == "mean" else 1, LARGEST, samples=self.samples)
        check_number("entropy", self.entropy, "[0, inf)")
        check_number("cross_entropy", self.cross_entropy, "[0, 1)")


def mean_of_others(rewards: numpy.ndarray) -> numpy.ndarray:
    """Return, for each of K captions of N images, the mean reward of the other ones `(N, K)`."""
    found: numpy.ndarray = (rewards.sum(axis=1, keepdims=True) - rewards) / (rewards.shape[1] - 1)
    return found


class Drawn(NamedTuple):
    """Captions drawn of N images, K of each."""

    captions: numpy.ndarray  # (N K, T) int32
    lengths: numpy.ndarray  # (N K,), words, `<END>` included
    log_probs: numpy.ndarray  # (N, K)
    rewards: numpy.ndarray  # (N, K)
    baseline: numpy.ndarray  # (N, K)
    advantages: numpy.ndarray  # (N, K), rewards minus the baseline, both with the entropy bonus

    def weights(self) -> numpy.ndarray:
        """Return what each word `(N K, T)` counts in the cross entropy of these captions."""
        inside = numpy.arange(self.captions.shape[1]) < self.lengths[:, None]
        return numpy.where(inside, self.advantages.reshape(-1, 1), 0)


def lengths_of(captions: numpy.ndarray, end: int | None) -> numpy.ndarray:
    """Return the number of words `(R,)` of drawn captions `(R, T)`, `<END>` included.

    One without it has T words, of which `<NULL>` may be one: unlike those of `samples.count_words`,
    whose captions may be padded.
    """
    ended = captions == end
    found: numpy.ndarray = numpy.where(
        ended.any(axis=1), ended.argmax(axis=1) + 1, captions.shape[1]
    )
    return found


def count_distinct(captions: numpy.ndarray, images: int) -> int:
    """Return the number of different captions of N images `(N K, T)`, added up over images."""
    image = numpy.repeat(numpy.arange(images), len(captions) // max(images, 1))
    return len(numpy.unique(numpy.column_stack([image, captions]), axis=0))


def _join(above: numpy.ndarray, below: numpy.ndarray) -> numpy.ndarray:
    """Stack rows of captions or weights; the narrower ones are padded with 0."""
    width = max(above.shape[1], below.shape[1])
    return numpy.vstack([numpy.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in (above, below)])


class SelfCriticalStep(TrainingStep):
    """A `TrainingStep` whose loss is minus the expected reward.

    Dropout is not used: captions are drawn from the distribution whose gradient is computed. Which
    captions are drawn depends on the model's seed, the number of the step and the place of an image
    in the batch alone, not on the number of threads and ranks.

    Parameters
    ----------
    model, optimizer, clip_norm, precision, ranks
        As for `TrainingStep`.
    images
        `(M,)`: the image of each caption of the training split.
    rewards
        Gives the reward of captions; they are as `CaptionModel.sample` returns them, on the host.
    max_length
        T, the most words of a caption, `<END>` included.
    options
        How the gradient is estimated.

    Attributes
    ----------
    measured
        Of the last step, over all ranks: means of `reward`, `baseline` and `advantage` (its
        absolute value); `entropy` in nats per word; `distinct`, the number of different captions
        among those of an image; and those of `describe_samples`.
    """

    def __init__(
        self,
        model: CaptionModel,
        optimizer: Optimizer,
        images: numpy.ndarray,
        rewards: Rewards,
        max_length: int,
        options: SelfCritical,
        clip_norm: float | None = None,
        precision: str = "float32",
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(model, optimizer, clip_norm, precision, ranks)
        self.options = options
        self._images = images
        self._rewards = rewards
        self._max_length = max_length
        self._share: Share | None = None

    def epoch(
        self, batches: Any, number: int, first: int, step: int, factors: Sequence[float]
    ) -> Iterator[Batch]:
        """As `TrainingStep.epoch`; captions and words of a batch yielded are those drawn."""
        for batch in super().epoch(batches, number, first, step, factors):
            yield batch._replace(share=self._share)

    def _loss(self, batch: Batch, step: int) -> Array:
        N, K = len(batch.captions), self.options.samples
        features = self.model.backend.to_device(batch.features)
        with multiplied_in(self.precision):
            drawn = self._draw(features, batch, step)
            self._record(drawn, batch)
            if not N:  # the batch has fewer images than there are ranks
                self._gradients[...] = 0
                return 0
            images, scale = numpy.repeat(numpy.arange(N), K), 1 - self.options.cross_entropy
            captions, weights = drawn.captions, scale * drawn.weights()
            if self.options.cross_entropy:
                references = to_host(batch.captions)[:, 1:]
                counts = K * self.options.cross_entropy * (references != self.model.null)
                captions, weights = _join(captions, references), _join(weights, counts)
                images = numpy.append(images, numpy.arange(N))
            first = numpy.full((len(captions), 1), self.model.start_word, captions.dtype)
            weights = weights * (len(captions) / (batch.total * K))
            captions = numpy.hstack([first, captions])
            self.packed.loss(features, captions, step, self.gradients, None, images, weights)
        return -drawn.log_probs.sum() / (batch.total * K)

    def _draw(self, features: Array, batch: Batch, step: int) -> Drawn:
        """Draw captions of the batch's images, and compute their advantages."""
        model, K, T, N = self.model, self.options.samples, self._max_length, len(batch.captions)
        if not N:
            none = numpy.zeros((0, K))
            return Drawn(numpy.zeros((0, T), numpy.int32), numpy.zeros(0, int), *[none] * 4)
        places = numpy.arange(N) if batch.share is None else batch.share.places
        numbers = uniform(numpy, batch.total * K * T, model.seed, _DRAWN + step)
        numbers = numbers.reshape(batch.total, K * T)[places].reshape(N * K, T)
        to_device, dtype = model.backend.to_device, self._parameters.dtype
        found = sampled(model, features, T, to_device(numbers, dtype))
        captions, log_probs = (to_host(part) for part in found)
        images = self._images[to_host(batch.rows)]
        rewards = self._rewards(numpy.repeat(images, K), captions).reshape(N, K)
        log_probs = log_probs.reshape(N, K)
        lengths = lengths_of(captions, model.end)
        scores = rewards - self.options.entropy * (log_probs + 1) / lengths.reshape(N, K)
        if self.options.baseline == "greedy":
            greedy = self._rewards(images, to_host(model.sample(features, T)))
            baseline = subtracted = numpy.repeat(greedy[:, None], K, axis=1)
        else:
            baseline, subtracted = mean_of_others(rewards), mean_of_others(scores)
        return Drawn(captions, lengths, log_probs, rewards, baseline, scores - subtracted)

    def _record(self, drawn: Drawn, batch: Batch) -> None:
        """Average what was drawn over all ranks."""
        sums = {
            "reward": drawn.rewards.sum(),
            "baseline": drawn.baseline.sum(),
            "advantage": abs(drawn.advantages).sum(),
            "entropy": -drawn.log_probs.sum(),
            "distinct": self.options.samples * count_distinct(drawn.captions, len(drawn.rewards)),
        }
        count, described = len(drawn.captions), dict.fromkeys(DESCRIBED, 0.0)
        if count:
            described = describe_samples(drawn.captions, self.model.word_to_idx)
        sums |= {name: count * value for name, value in described.items()}
        parts = self.ranks.gather((drawn.lengths.sum(), *sums.values()))
        words, *totals = numpy.sum(parts, axis=0).tolist()
        total = batch.total * self.options.samples
        self._share = Share(numpy.zeros(0, int), total, int(words))
        self.measured = {name: value / total for name, value in zip(sums, totals, strict=True)}
        self.measured["entropy"] *= total / words
