"""One whole run: open the data, train, and leave a run folder behind."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy

import xpcap
from xpcap.backend import Backend
from xpcap.checkpoint import save_parameters
from xpcap.data import folder as layout
from xpcap.data.dataset import Dataset, Split, open_dataset
from xpcap.data.features import LazyFeatures
from xpcap.data.minibatch import EpochBatches
from xpcap.data.pca import PCA
from xpcap.data.prefetch import PrefetchedBatches
from xpcap.errors import ConfigurationError, DivergedError
from xpcap.kernels.products import check_precision
from xpcap.layers.dropout import check_rate
from xpcap.models import CaptioningRNN
from xpcap.models.captioner import check_cell
from xpcap.optim import Optimizer, check_positive, find_rule
from xpcap.run_folder import BEST, HISTORY, LAST, create_run
from xpcap.train.history import History
from xpcap.train.resident import ResidentStep
from xpcap.train.staging import StagedBatches
from xpcap.train.step import TrainingStep
from xpcap.train.tensorboard import EventFile, check_events
from xpcap.train.trainer import Schedule, Trainer

BATCH_SIZE = 128
EVALUATED_TRAINING_CAPTIONS = 1000


@dataclass(frozen=True)
class RunOptions:
    """What a run is made of, besides its data and its place.

    Parameters
    ----------
    features
        `"pca"`, `"fc7"` or `"auto"`.
    lazy
        Leave the features in their files.
    feature_dtype
        `"float32"` or `"float16"`.
    max_train
        Train on so many captions, drawn at random; None takes all.
    cell, hidden, wordvec, dropout, dtype
        Of the model, see `CaptioningRNN`.
    batch_size
        Captions a step; None is 128, or all of them where there are fewer.
    rule, lr
        The update rule and its learning rate.
    precision
        Of matrix products, see `TrainingStep`.
    schedule
        See `Schedule`.
    seed
        Of initial parameters, dropout, order and draws.

    Raises
    ------
    ConfigurationError
        If an option has a value that cannot be used, whatever the data.
    """

    features: str = "auto"
    lazy: bool = False
    feature_dtype: str = "float32"
    max_train: int | None = None
    cell: str = "lstm"
    hidden: int = 512
    wordvec: int = 256
    dropout: float = 0.0
    dtype: str = "float32"
    batch_size: int | None = None
    rule: str = "adam"
    lr: float = 1e-3
    precision: str = "float32"
    schedule: Schedule = field(default_factory=Schedule)
    seed: int = 0

    def __post_init__(self) -> None:
        check_cell(self.cell)
        check_rate(self.dropout)
        find_rule(self.rule)
        check_positive("--lr", self.lr)
        for name, value in (("--batch-size", self.batch_size), ("--max-train", self.max_train)):
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {value}")


def train_run(
    data: Path,
    out: Path,
    options: RunOptions,
    backend: Backend,
    watch: Callable[[Trainer], None] | None = None,
    tensorboard: Path | None = None,
) -> tuple[Trainer, Dataset]:
    """Train a captioner and write its run folder.

    Parameters
    ----------
    data
        A data folder.
    out
        The run folder, a new name.
    options
        What to train.
    backend
        Where.
    watch
        Called with the trainer before the first step, to add callbacks.
    tensorboard
        Where TensorBoard looks: an event file is written to its subfolder of the run's name.

    Returns
    -------
    trainer, dataset
        After the last epoch; the model has the best epoch's parameters.

    Raises
    ------
    XpcapError
        One line that names what is wrong; before the first epoch is whole, no folder is left.
    """
    check_precision(options.precision, backend.device is not None, options.dtype)
    events = None if tensorboard is None else tensorboard / out.resolve().name
    if events is not None:
        check_events(events)
    dataset = open_dataset(
        data,
        options.features,
        lazy=options.lazy,
        dtype=options.feature_dtype,
        max_train=options.max_train,
        rng=numpy.random.default_rng(options.seed),
    )
    dataset.references("val")  # a damaged file shall not be found after hours of training
    train, val = dataset.splits["train"], dataset.splits["val"]
    size = options.batch_size or min(BATCH_SIZE, len(train))
    config = _configuration(dataset, replace(options, batch_size=size))
    try:
        model = CaptioningRNN(dataset.vocabulary.word_to_idx, **config["model"], backend=backend)
    except (MemoryError, ValueError) as error:
        raise ConfigurationError(
            f"a model with {config['model']} cannot be made: {error}"
        ) from error
    measured = _some_of(train)
    config["training"]["feature_scale"] = scale = _feature_scale(measured)
    with backend.activate():
        model.params["W_proj"] /= scale
    optimizer = Optimizer(options.rule, learning_rate=options.lr)
    batches, step = _place(train, model, optimizer, options, size)
    validation = {"train": _evaluated(measured, size), "val": _evaluated(val, size)}
    trainer = Trainer(model, batches, optimizer, options.schedule, validation, step)
    reduced = dataset.kind == "pca" and "extractor" in dataset.description
    transform = PCA.read(data / layout.PCA) if reduced else None
    create_run(out, config, dataset.vocabulary, transform)
    try:
        history = History(out / HISTORY, None if events is None else EventFile(events).write)
        history.follow(trainer)
        trainer.on("epoch", lambda trainer: _save(trainer, out))
        if watch is not None:
            watch(trainer)
        with backend.activate(), numpy.errstate(over="ignore", invalid="ignore"):
            trainer.run()
    except BaseException as error:
        if not (out / BEST).exists():
            for folder in (out, events):
                if folder is not None:
                    shutil.rmtree(folder, ignore_errors=True)
        elif isinstance(error, (KeyboardInterrupt, DivergedError)):
            history.flush()
        raise
    model.params = dict(trainer.best_params)
    return trainer, dataset


def _configuration(dataset: Dataset, options: RunOptions) -> dict[str, Any]:
    training = asdict(options)
    model = {
        "input_dim": dataset.feature_dim,
        "wordvec_dim": training.pop("wordvec"),
        "hidden_dim": training.pop("hidden"),
        "cell_type": training.pop("cell"),
        "dropout": training.pop("dropout"),
        "dtype": training.pop("dtype"),
        "seed": options.seed,
    }
    return {
        "xpcap": xpcap.__version__,
        "model": model,
        "data": {
            "folder": str(dataset.folder.resolve()),
            "kind": dataset.kind,
            "name": dataset.description["name"],
            "features": dataset.description.get("features"),
            "extractor": dataset.description.get("extractor"),
        },
        "training": training,
    }


def _place(
    split: Split, model: CaptioningRNN, optimizer: Optimizer, options: RunOptions, size: int
) -> tuple[EpochBatches | StagedBatches, TrainingStep]:
    """Decide where the training data lie: on a GPU whole, if its memory is twice as much."""
    backend, clip_norm = model.backend, options.schedule.clip_norm
    seed = options.seed
    if backend.device is None:
        step = TrainingStep(model, optimizer, clip_norm, options.precision)
        return _batches(split, size, seed), step
    bytes_needed = math.prod(split.features.shape) * split.features.dtype.itemsize
    if 2 * bytes_needed > backend.free_memory():
        step = TrainingStep(model, optimizer, clip_norm, options.precision)
        return StagedBatches(_batches(split, size, seed), backend), step
    resident = ResidentStep(model, optimizer, split, size, clip_norm, options.precision)
    return EpochBatches(split, size, seed, with_features=False), resident


def _some_of(split: Split) -> Split:
    """Take evenly spaced captions, as many as are worth measuring after each epoch."""
    count = min(len(split), EVALUATED_TRAINING_CAPTIONS)
    rows = numpy.linspace(0, len(split) - 1, count).astype(int)
    return Split(split.captions[rows], split.image_idxs[rows], split.features, split.urls)


def _feature_scale(split: Split) -> float:
    """Return the root mean square of a split's features, or 1 if they are all zero.

    The initial `W_proj`, N(0, 1) / sqrt(D), gives h0 unit variance if features have mean square 1.
    Whatever their unit is, dividing it by their scale does that too.
    """
    features = split.features[split.image_idxs].astype(numpy.float64)
    return float(numpy.sqrt((features**2).mean())) or 1.0


def _evaluated(split: Split, size: int) -> EpochBatches:
    return _batches(split, min(size, len(split)))


def _batches(split: Split, size: int, seed: int | None = None) -> EpochBatches:
    """Make batches; of features that lie in a file, a thread reads them ahead."""
    ahead = isinstance(split.features, LazyFeatures)
    return (PrefetchedBatches if ahead else EpochBatches)(split, size, seed)


def _save(trainer: Trainer, out: Path) -> None:
    save_parameters(out / LAST, trainer.model.params)
    if trainer.best_epoch == trainer.epoch:
        save_parameters(out / BEST, trainer.best_params)
