"""The trainer of a run: its batches and step, and what is measured after each epoch."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import numpy

from xpcap.data.dataset import Dataset, Split
from xpcap.data.features import row_blocks
from xpcap.data.minibatch import EpochBatches
from xpcap.distributed import Ranks
from xpcap.models import CaptionModel
from xpcap.models.inspection import attends
from xpcap.models.scheduled_sampling import ScheduledSampling
from xpcap.optim import Optimizer
from xpcap.options import given
from xpcap.runs.run import Run
from xpcap.training.attention import AttentionEntropy
from xpcap.training.options import RunOptions
from xpcap.training.resident import ResidentStep
from xpcap.training.reward_check import check_rewards
from xpcap.training.rewards import Rewards, parse_reward, training_references
from xpcap.training.selection import LOSS, CaptionMetric
from xpcap.training.self_critical import SelfCritical, SelfCriticalStep
from xpcap.training.staging import StagedBatches
from xpcap.training.step import TrainingStep
from xpcap.training.trainer import Trainer

LARGEST_BATCH, SMALLEST_BATCH, STEPS = 128, 16, 75
EVALUATED_TRAINING_CAPTIONS = 1000


@runtime_checkable
class ScalesFeatures(Protocol):
    """A model that adapts its initial parameters to the scale of the features."""

    def scale_features(self, scale: float) -> None:
        """Take features as if they were divided by their root mean square, `scale`."""


def default_batch_size(split: Split, stage: str = "cross-entropy") -> int:
    """Return 128 captions, or fewer, at least 16, so that an epoch has 75 steps; at most all.

    Self-critical training takes many more steps than passes over the images: 16 images.
    """
    if stage == "self-critical":
        return min(SMALLEST_BATCH, len(numpy.unique(split.image_idxs)))
    captions = len(split)
    return min(captions, LARGEST_BATCH, max(SMALLEST_BATCH, captions // STEPS))


def make_trainer(run: Run, dataset: Dataset, options: RunOptions) -> Trainer:
    """Make the trainer of a run's model; with `run.ranks` it shares each batch."""
    model, ranks = run.model, run.ranks
    train, val = dataset.splits["train"], dataset.splits["val"]
    size = options.batch_size or len(train)
    settings = given(learning_rate=options.lr, weight_decay=options.weight_decay)
    optimizer = Optimizer(options.rule, **settings)
    if options.self_critical is None:
        batches, step = _place(train, model, optimizer, options, size, ranks)
    else:
        batches, step = _drawing(run, dataset, optimizer, options, options.self_critical, size)
    measured = {"train": some_of(train), "val": val}
    validation = {
        name: _batches(split, min(size, len(split)), None, ranks)
        for name, split in measured.items()
    }
    metric = None if options.select == LOSS else CaptionMetric(options.select, run, dataset)
    trainer = Trainer(model, batches, optimizer, options.schedule, validation, step, metric)
    if attends(model, dataset.feature_shape):
        some = some_of(val)
        looking = _batches(some, min(size, len(some)), None, ranks)
        AttentionEntropy(looking, ranks).follow(trainer)
    return trainer


def _place(
    split: Split,
    model: CaptionModel,
    optimizer: Optimizer,
    options: RunOptions,
    size: int,
    ranks: Ranks,
) -> tuple[EpochBatches | StagedBatches, TrainingStep]:
    """Place the training data: on a GPU if they fit in half its free memory, else on the host.

    Of several ranks, each gets its share of every batch from the host.
    """
    backend, clip_norm, seed = model.backend, options.schedule.clip_norm, options.seed
    smoothing, batches = options.label_smoothing, _batches(split, size, seed, ranks)
    scheduled = None
    if options.scheduled_sampling:
        steps = options.schedule.epochs * len(batches)
        scheduled = ScheduledSampling(options.scheduled_sampling, steps)
    step = TrainingStep(model, optimizer, clip_norm, options.precision, ranks, smoothing, scheduled)
    if backend.device is None:
        return batches, step
    bytes_needed = math.prod(split.features.shape) * split.features.dtype.itemsize
    if ranks.size > 1 or scheduled or 2 * bytes_needed > backend.free_memory():
        return StagedBatches(batches, backend), step
    resident = ResidentStep(model, optimizer, split, size, clip_norm, options.precision, smoothing)
    return EpochBatches(split, size, seed, with_features=False), resident


def _drawing(
    run: Run,
    dataset: Dataset,
    optimizer: Optimizer,
    options: RunOptions,
    how: SelfCritical,
    size: int,
) -> tuple[EpochBatches | StagedBatches, TrainingStep]:
    """Return the batches of images and the steps of self-critical training, and test its reward.

    Every rank tests it, so that an error ends them all.
    """
    model, ranks, split = run.model, run.ranks, dataset.splits["train"]
    references = training_references(dataset)
    rewards = Rewards(references, model.word_to_idx, parse_reward(how.reward))
    check_rewards(rewards, references, split, model.idx_to_word)
    step = SelfCriticalStep(
        model, optimizer, split.image_idxs, rewards,
        int(min(dataset.max_words + 1, model.max_length)), how,
        options.schedule.clip_norm, options.precision, ranks,
    )  # fmt: skip
    batches = _batches(split, size, options.seed, ranks, by_image=True)
    return StagedBatches(batches, model.backend) if model.backend.device else batches, step


def some_of(split: Split) -> Split:
    """Take evenly spaced captions, to be measured after each epoch."""
    count = min(len(split), EVALUATED_TRAINING_CAPTIONS)
    rows = numpy.linspace(0, len(split) - 1, count).astype(int)
    return Split(split.captions[rows], split.image_idxs[rows], split.features, split.urls)


def feature_scale(train: Split) -> float:
    """Return the root mean square of some captions' features, or 1 if they are all zero.

    Regions that are absent do not count.
    """
    split = some_of(train)
    images, captions = numpy.unique(split.image_idxs, return_counts=True)
    squares, numbers = 0.0, 0
    for block in row_blocks(split.features):
        rows = slice(*numpy.searchsorted(images, (block.start, block.stop)))
        if rows.stop > rows.start:
            features = split.features[images[rows]]
            count = numpy.full(len(features), features[0].size)
            if features.ndim == 3:
                count = features.any(axis=2).sum(axis=1) * features.shape[2]
            features = features.reshape(len(features), -1)
            of_image = numpy.einsum("nd,nd->n", features, features, dtype=numpy.float64)
            squares += captions[rows] @ of_image
            numbers += captions[rows] @ count
    return math.sqrt(squares / max(1, numbers)) or 1.0


def _batches(
    split: Split, size: int, seed: int | None, ranks: Ranks, by_image: bool = False
) -> EpochBatches:
    return EpochBatches(split, size, seed, by_image=by_image, rank=ranks.rank, ranks=ranks.size)
