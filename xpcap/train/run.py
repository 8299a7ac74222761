"""One whole run: open the data, train, and leave a run folder behind; or go on with one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy

from xpcap import threads
from xpcap.backend import Backend
from xpcap.data import folder as layout
from xpcap.data.dataset import Dataset, Split, open_dataset
from xpcap.data.features import LazyFeatures
from xpcap.data.minibatch import EpochBatches
from xpcap.data.pca import PCA
from xpcap.data.prefetch import PrefetchedBatches
from xpcap.errors import CheckpointError, ConfigurationError, DataError, DivergedError
from xpcap.files import explained
from xpcap.kernels.products import check_precision
from xpcap.models import CaptionModel
from xpcap.optim import Optimizer, find_rule
from xpcap.parallel import Alone, Ranks, check_alike
from xpcap.runs import BEST, HISTORY, LAST, check_new_run, create_run, locked, open_run
from xpcap.runs.checkpoint import Checkpoint, TrainingState, read_checkpoint, written_by
from xpcap.runs.dataset import check_data, fingerprint, fingerprints
from xpcap.runs.opening import make_model
from xpcap.train.history import History
from xpcap.train.options import RunOptions, configuration, options_of
from xpcap.train.recovery import Recovery
from xpcap.train.resident import ResidentStep
from xpcap.train.saving import Saver
from xpcap.train.signals import heard
from xpcap.train.staging import StagedBatches
from xpcap.train.step import TrainingStep
from xpcap.train.tensorboard import EventFile, check_events
from xpcap.train.trainer import Trainer, WentWrong

BATCH_SIZE = 128
EVALUATED_TRAINING_CAPTIONS = 1000


@runtime_checkable
class ScalesFeatures(Protocol):
    """A model that adapts its initial parameters to the scale of the features."""

    def scale_features(self, scale: float) -> None:
        """Take features as if they were divided by their root mean square, `scale`."""


def say_nothing(message: str) -> None:
    """Take no notice of a warning."""


@dataclass(frozen=True)
class Conduct:
    """How a run is watched while it trains.

    Parameters
    ----------
    tensorboard
        Where TensorBoard looks: an event file is written to its subfolder of the run's name.
    watch
        Called with the trainer before the first step, to add callbacks.
    warn
        Told of what does not end training.
    ranks
        The processes that train together; None is this one alone.
    """

    tensorboard: Path | None = None
    watch: Callable[[Trainer], None] | None = None
    warn: Callable[[str], None] = say_nothing
    ranks: Ranks = field(default_factory=Alone)


def train_run(
    data: Path, out: Path, options: RunOptions, backend: Backend, conduct: Conduct | None = None
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
    conduct
        How it is watched.

    Returns
    -------
    trainer, dataset
        After the last epoch; the model has the best epoch's parameters.

    Raises
    ------
    XpcapError
        One line that names what is wrong. A mistake leaves no folder; of a run that has begun, the
        last checkpoint is there.
    Stopped
        If SIGINT or SIGTERM came; the run can be resumed.
    """
    conduct = conduct or Conduct()
    check_precision(options.precision, backend.device is not None, options.dtype)
    ranks = conduct.ranks
    if not ranks.rank:
        check_new_run(out)
    events = _events(conduct, out)
    dataset = _open(data, options, ranks)
    train = dataset.splits["train"]
    options = replace(
        options,
        batch_size=options.batch_size or min(BATCH_SIZE, len(train)),
        threads=options.threads or threads.number(),
    )
    config = configuration(dataset, options, _feature_scale(_some_of(train)))
    try:
        model = make_model(dataset.vocabulary, config["model"], backend)
    except (MemoryError, ValueError) as error:
        raise ConfigurationError(
            f"a model with {config['model']} cannot be made: {error}"
        ) from error
    if isinstance(model, ScalesFeatures):
        model.scale_features(config["training"]["feature_scale"])
    _check_alike(conduct, config, dataset)
    trainer = _trainer(model, dataset, options, ranks)
    begun = Checkpoint(config, dataset.vocabulary, trainer.state(), written_by(backend.name))
    reduced = dataset.kind == "pca" and "extractor" in dataset.description
    if not ranks.rank:
        create_run(out, {LAST: begun}, PCA.read(data / layout.PCA) if reduced else None)
    with _locked(out, ranks):
        _train(out, trainer, begun, options, conduct, events)
    return trainer, dataset


def resume_run(
    folder: Path,
    backend: Backend,
    change: Callable[[RunOptions], RunOptions] | None = None,
    data: Path | None = None,
    conduct: Conduct | None = None,
) -> tuple[Trainer, Dataset]:
    """Go on with a run from its last checkpoint as if it had never stopped.

    On the device and with the versions that it was begun with, every number is the same as then;
    elsewhere within rounding. The number of threads is that of the run, unless `use_threads` has
    set another one.

    Parameters
    ----------
    folder
        The run.
    backend
        Where to go on.
    change
        Told the options that the run had, returns those it shall have: `schedule.epochs`,
        `schedule.patience`, `lazy`, `saving` and `on_nan` may be others. None leaves them all.
    data
        The data folder, if it has moved.
    conduct
        How it is watched.

    Returns
    -------
    trainer, dataset
        As from `train_run`.

    Raises
    ------
    XpcapError, Stopped
        As `train_run`; and if the folder holds no run that can be gone on with, another process is
        at work on it, or the data are others.
    """
    conduct, path = conduct or Conduct(), folder / LAST
    with explained(folder, "read"):
        if not path.exists():
            raise CheckpointError(
                f"{folder} has no {LAST} to go on from; expected a run made by xpcap train"
            )
    ranks = conduct.ranks
    with _locked(folder, ranks):
        last = read_checkpoint(path)
        try:
            options = options_of(last.config)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        options = options if change is None else change(options)
        if not (options.threads and threads.automatic()):
            options = replace(options, threads=threads.number())
        check_precision(options.precision, backend.device is not None, options.dtype)
        run = open_run(path, backend)
        dataset = _open(data or Path(run.config["data"]["folder"]), options, ranks)
        check_data(run, dataset)
        if fingerprint(dataset.splits) != run.config["data"].get("captions"):
            raise DataError(f"{dataset.folder} has other captions than {folder} was begun with")
        scale = last.config["training"]["feature_scale"]
        config = {**last.config, **configuration(dataset, options, scale)}
        _check_alike(conduct, {**config, "progress": asdict(last.state.progress)}, dataset)
        trainer = _trainer(run.model, dataset, options, ranks)
        _restore(folder, trainer, last.state, options.rule)
        begun = Checkpoint(config, dataset.vocabulary, last.state, written_by(backend.name))
        events = _events(conduct, folder, resumed=True)
        _train(folder, trainer, begun, options, conduct, events)
    return trainer, dataset


def _restore(folder: Path, trainer: Trainer, last: TrainingState, rule: str) -> None:
    """Let a trainer go on from the last checkpoint, and know the best epoch so far.

    That may be one which the last checkpoint does not know of yet: it was written before it, and
    the steps since then, when they are taken again, are the same.
    """
    forgotten = set(find_rule(rule).memory) - last.memory.keys()
    if last.optimizer.keys() != trainer.optimizer.numbers.keys() or (
        last.optimizer["t"] and forgotten
    ):
        raise CheckpointError(
            f"{folder / LAST} does not have all that {rule} remembers; expected a checkpoint to go"
            f" on from, which {BEST} is not"
        )
    trainer.restore(last)
    best = read_checkpoint(folder / BEST).state if (folder / BEST).exists() else TrainingState({})
    if best.progress.best_epoch < last.progress.best_epoch:
        raise CheckpointError(
            f"{folder / BEST} is not of epoch {last.progress.best_epoch}, the best so far as"
            f" {folder / LAST} says"
        )
    if best.parameters:
        trainer.remember_best(best)


def _locked(folder: Path, ranks: Ranks) -> AbstractContextManager[None]:
    """Let no others train in a run's folder; of several ranks the first one sees to it."""
    return nullcontext() if ranks.rank else locked(folder)


def _events(conduct: Conduct, folder: Path, resumed: bool = False) -> Path | None:
    """Return where TensorBoard's events go, if anywhere, after a look whether they can."""
    if conduct.tensorboard is None or conduct.ranks.rank:
        return None
    events = conduct.tensorboard / folder.resolve().name
    check_events(events, resumed)
    return events


def _check_alike(conduct: Conduct, config: Mapping[str, Any], dataset: Dataset) -> None:
    """Check that all ranks go about the same run in the same way, with the same data and versions.

    Raises
    ------
    ConfigurationError
        It says what differs.
    """
    if conduct.ranks.size > 1:
        found = {**_flat(config), **written_by(""), **fingerprints(dataset.splits)}
        del found["data.folder"], found["training.threads"]  # may differ between machines
        check_alike(conduct.ranks, found)


def _flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= (
            _flat(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
        )
    return found


def _open(data: Path, options: RunOptions, ranks: Ranks) -> Dataset:
    dataset = open_dataset(
        data,
        options.features,
        lazy=options.lazy or ranks.size > 1,  # each rank reads its own rows
        dtype=options.feature_dtype,
        max_train=options.max_train,
        rng=numpy.random.default_rng(options.seed),
    )
    dataset.references("val")  # a damaged file shall not be found after hours of training
    return dataset


def _trainer(model: CaptionModel, dataset: Dataset, options: RunOptions, ranks: Ranks) -> Trainer:
    train, val = dataset.splits["train"], dataset.splits["val"]
    size = options.batch_size or len(train)
    optimizer = Optimizer(options.rule, learning_rate=options.lr)
    batches, step = _place(train, model, optimizer, options, size, ranks)
    measured = {"train": _some_of(train), "val": val}
    validation = {
        name: _batches(split, min(size, len(split)), None, ranks)
        for name, split in measured.items()
    }
    return Trainer(model, batches, optimizer, options.schedule, validation, step)


def _train(
    folder: Path,
    trainer: Trainer,
    begun: Checkpoint,
    options: RunOptions,
    conduct: Conduct,
    events: Path | None,
) -> None:
    """Train to the end, in a folder that holds a run; the model has the best parameters then."""
    ranks = conduct.ranks
    with heard() as signal:
        recovery = Recovery(options.on_nan, folder, conduct.warn, ranks)
        history = History(
            None if ranks.rank else folder / HISTORY,
            begun.state.progress.history,
            also=None if events is None else EventFile(events, trainer.step).write,
            warn=conduct.warn,
            check=recovery.check,
        )
        recovery.follow(trainer)
        history.follow(trainer)
        saver = Saver(folder, begun, history, options.saving, signal, conduct.warn, ranks)
        saver.follow(trainer)
        if conduct.watch is not None:
            conduct.watch(trainer)
        try:
            with (
                trainer.model.backend.activate(),
                threads.use_threads(options.threads or threads.number()),
                numpy.errstate(over="ignore", invalid="ignore"),
            ):
                _run(trainer, recovery, history)
        except DivergedError:
            history.flush(trainer)
            raise
    trainer.model.params = dict(trainer.best_params)


def _run(trainer: Trainer, recovery: Recovery, history: History) -> None:
    """Train to the end; where numbers go wrong and can be mended, go on."""
    while True:
        try:
            trainer.run()
            return
        except WentWrong as wrong:
            try:
                history.drop(recovery.recover(trainer, wrong))
            except DivergedError:
                history.drop(wrong.step)
                raise


def _place(
    split: Split,
    model: CaptionModel,
    optimizer: Optimizer,
    options: RunOptions,
    size: int,
    ranks: Ranks,
) -> tuple[EpochBatches | StagedBatches, TrainingStep]:
    """Decide where the training data lie: on a GPU whole, if its memory is twice as much.

    Of several ranks each has its share of every batch only, which comes from the host.
    """
    backend, clip_norm = model.backend, options.schedule.clip_norm
    seed = options.seed
    step = TrainingStep(model, optimizer, clip_norm, options.precision, ranks)
    if backend.device is None:
        return _batches(split, size, seed, ranks), step
    bytes_needed = math.prod(split.features.shape) * split.features.dtype.itemsize
    if ranks.size > 1 or 2 * bytes_needed > backend.free_memory():
        return StagedBatches(_batches(split, size, seed, ranks), backend), step
    resident = ResidentStep(model, optimizer, split, size, clip_norm, options.precision)
    return EpochBatches(split, size, seed, with_features=False), resident


def _some_of(split: Split) -> Split:
    """Take evenly spaced captions, as many as are worth measuring after each epoch."""
    count = min(len(split), EVALUATED_TRAINING_CAPTIONS)
    rows = numpy.linspace(0, len(split) - 1, count).astype(int)
    return Split(split.captions[rows], split.image_idxs[rows], split.features, split.urls)


def _feature_scale(split: Split) -> float:
    """Return the root mean square of a split's features, or 1 if they are all zero."""
    features = split.features[split.image_idxs].astype(numpy.float64)
    return float(numpy.sqrt((features**2).mean())) or 1.0


def _batches(split: Split, size: int, seed: int | None, ranks: Ranks) -> EpochBatches:
    """Make batches; of features that lie in a file, a thread reads them ahead."""
    kind = PrefetchedBatches if isinstance(split.features, LazyFeatures) else EpochBatches
    return kind(split, size, seed, rank=ranks.rank, ranks=ranks.size)
