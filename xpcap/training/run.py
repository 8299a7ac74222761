"""A whole run: open the data, train, and leave a run folder; or resume one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy

from xpcap import threads
from xpcap.backend import Backend
from xpcap.data.dataset import Dataset, open_dataset
from xpcap.data.pca import read_transform
from xpcap.distributed import Alone, Ranks, check_alike
from xpcap.errors import CheckpointError, ConfigurationError, DivergedError
from xpcap.evaluation import check_lengths
from xpcap.files import explained
from xpcap.models import FAMILIES
from xpcap.optim import find_rule
from xpcap.runs.checkpoint import Checkpoint, TrainingState, read_checkpoint, written_by
from xpcap.runs.dataset import check_data, check_regions, check_unchanged, data_folder, digests
from xpcap.runs.folder import BEST, HISTORY, LAST, check_new_run, create_run, locked, not_a_run
from xpcap.runs.opening import build_model, make_model
from xpcap.runs.run import Run
from xpcap.signals import noted_signals
from xpcap.training.assembly import ScalesFeatures, default_batch_size, feature_scale, make_trainer
from xpcap.training.history import History
from xpcap.training.options import RunOptions, configuration, options_of
from xpcap.training.recovery import Recovery
from xpcap.training.saving import Saver
from xpcap.training.tensorboard import EventFile, check_events
from xpcap.training.trainer import StepDiverged, Trainer
from xpcap.training.watch import watch


def ignore_warning(message: str) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class RunContext:
    """The surroundings of a run while it trains."""

    tensorboard: Path | None = None  # events are written to the subfolder of the run's name here
    watch: Callable[[Trainer], None] | None = None  # called before the first step, adds callbacks
    warn: Callable[[str], None] = ignore_warning  # called with problems that do not end training
    ranks: Ranks = field(default_factory=Alone)  # the processes that train together


def train_run(
    data: Path,
    out: Path,
    options: RunOptions,
    backend: Backend,
    context: RunContext | None = None,
    source: Run | None = None,
) -> tuple[Trainer, Dataset]:
    """Train a captioner on a data folder, and write its run folder `out`, a new name.

    It starts from the parameters of the run `source`, if given; `options` are then those of
    `following_options`.

    Returns
    -------
    trainer, dataset
        The model has the parameters of the best epoch.

    Raises
    ------
    XpcapError
        If options or data are invalid, which leaves no folder, or training fails; the last
        checkpoint is then there.
    Stopped
        On SIGINT or SIGTERM; the run can be resumed.
    """
    context = context or RunContext()
    ranks = context.ranks
    if not ranks.rank:
        check_new_run(out)
    events = _events(context, out)
    dataset = _open(data, options, ranks)
    train = dataset.splits["train"]
    if options.self_critical is not None and source is None:
        raise ConfigurationError("stage self-critical needs a run to start from (from_run=RUN)")
    options = replace(
        options,
        batch_size=options.batch_size or default_batch_size(train, options.stage),
        threads=options.threads or threads.number(),
    )
    config = configuration(dataset, options, feature_scale(train))
    check_regions(FAMILIES[options.model], dataset)
    if source is not None:
        check_data(source, dataset)
        for name in ("train", "val"):
            check_lengths(source, dataset, name)
        same = "dropout", "seed"
        config["model"] |= {k: v for k, v in source.config["model"].items() if k not in same}
        config["training"]["from_run"] = str((source.file or source.folder).resolve())
    try:
        model = make_model(dataset.vocabulary, config["model"], backend)
    except (MemoryError, ValueError) as error:
        raise ConfigurationError(
            f"a model with {config['model']} cannot be made: {error}"
        ) from error
    if source is not None:
        model.params = {n: backend.to_device(p) for n, p in source.model.params.items()}
    elif isinstance(model, ScalesFeatures):
        model.scale_features(config["training"]["feature_scale"])
    _check_alike(context, config, dataset)
    run = Run(out, config, dataset.vocabulary, model, ranks=ranks)
    trainer = make_trainer(run, dataset, options)
    initial = Checkpoint(config, dataset.vocabulary, trainer.state(), written_by(backend.name))
    reduced = dataset.kind == "pca" and "extractor" in dataset.description
    if not ranks.rank:
        create_run(out, {LAST: initial}, read_transform(data) if reduced else None)
    with nullcontext() if ranks.rank else locked(out):
        _train(out, trainer, dataset, initial, options, context, events)
    return trainer, dataset


def resume_run(
    folder: Path,
    backend: Backend,
    change: Callable[[RunOptions], RunOptions] | None = None,
    data: Path | None = None,
    context: RunContext | None = None,
) -> tuple[Trainer, Dataset]:
    """Resume a run from its last checkpoint, as `train_run` would have continued.

    On the same device and with the same versions, every number is that of an uninterrupted run;
    otherwise within rounding. The number of threads is that of the run, unless `use_threads` has
    set another one.

    Parameters
    ----------
    folder, backend, context
        The run folder; the device and the context may be other ones than before.
    change
        Called with the options of the run, returns new ones, which may differ in `schedule.epochs`,
        `schedule.patience`, `lr`, `lazy`, `saving` and `on_nan`. None leaves them all. Another `lr`
        is the learning rate from here on, and the schedule is counted from here; warm-up is not
        repeated.
    data
        The data folder, if it has moved.

    Raises
    ------
    XpcapError, Stopped
        As `train_run`; and if the folder holds no run that can be resumed, another process trains
        there, or the data are not those of the run.
    """
    context = context or RunContext()
    ranks, path = context.ranks, folder / LAST
    with explained(folder, "read"):
        if folder.is_file():
            raise not_a_run(folder)
        if not path.exists():
            raise CheckpointError(
                f"{folder} has no {LAST} to resume from; expected a run made by xpcap train"
            )
    with nullcontext() if ranks.rank else locked(folder):
        last = read_checkpoint(path)
        before = options_of(path, last.config)
        if before.schedule.start > last.state.progress.step:
            raise CheckpointError(f"{path}: its schedule starts after its last step")
        options = before if change is None else change(before)
        if options.lr != before.lr:
            last = _restarted(last)
            options = replace(
                options, schedule=replace(options.schedule, start=last.state.progress.step)
            )
        if not (options.threads and threads.automatic()):
            options = replace(options, threads=threads.number())
        model = build_model(path, last).to(backend)
        run = Run(folder, last.config, last.vocabulary, model, ranks=ranks)
        dataset = _open(data_folder(run, data), options, ranks)
        check_data(run, dataset)
        check_unchanged(run, dataset)
        scale = last.config["training"]["feature_scale"]
        config = {**last.config, **configuration(dataset, options, scale)}
        config["model"] = last.config["model"]
        config["training"] = {**last.config["training"], **config["training"]}  # and from_run
        _check_alike(context, {**config, "progress": asdict(last.state.progress)}, dataset)
        trainer = make_trainer(run, dataset, options)
        _restore(folder, trainer, last.state, options.rule)
        _warn_of_jump(context, trainer, before, options)
        initial = Checkpoint(config, dataset.vocabulary, last.state, written_by(backend.name))
        events = _events(context, folder, resumed=True)
        _train(folder, trainer, dataset, initial, options, context, events)
    return trainer, dataset


def _restarted(last: Checkpoint) -> Checkpoint:
    """Return a checkpoint without the factor that recoveries left of the former rate."""
    progress = replace(last.state.progress, rate_scale=1.0)
    return replace(last, state=replace(last.state, progress=progress))


def _warn_of_jump(
    context: RunContext, trainer: Trainer, before: RunOptions, options: RunOptions
) -> None:
    """Warn if another number of epochs changes the learning rate, as that of a cosine."""
    epochs = options.schedule.epochs
    remain = options.schedule.warmup < trainer.step < epochs * len(trainer.batches)
    if epochs == before.schedule.epochs or not options.schedule.cosine or not remain:
        return
    if options.lr == before.lr:
        last = trainer.learning_rate
        context.warn(
            f"warning: the learning rate goes from {last:.2g} to {trainer.next_rate:.2g}, that of a"
            f" cosine over {epochs} epochs; --lr {last:.2g} would anneal it from where it was"
        )


def _restore(folder: Path, trainer: Trainer, last: TrainingState, rule: str) -> None:
    """Restore the last checkpoint, and the best epoch.

    The best checkpoint may be newer than the last one, since it is written first; the steps between
    them are taken again with the same results.
    """
    missing = set(find_rule(rule).memory) - last.memory.keys()
    if last.optimizer.keys() != trainer.optimizer.numbers.keys() or (
        last.optimizer["t"] and missing
    ):
        raise CheckpointError(
            f"{folder / LAST} lacks optimizer state of {rule}; expected a checkpoint to resume"
            f" from, which {BEST} is not"
        )
    trainer.restore(last)
    best = read_checkpoint(folder / BEST).state if (folder / BEST).exists() else TrainingState({})
    if best.progress.best_epoch < last.progress.best_epoch:
        raise CheckpointError(
            f"{folder / BEST} is not of epoch {last.progress.best_epoch}, the best one according to"
            f" {folder / LAST}"
        )
    if best.parameters:
        trainer.restore_best(best)


def _events(context: RunContext, folder: Path, resumed: bool = False) -> Path | None:
    """Return the folder for TensorBoard's events, if any, after checking it."""
    if context.tensorboard is None or context.ranks.rank:
        return None
    events = context.tensorboard / folder.resolve().name
    check_events(events, resumed)
    return events


def _check_alike(context: RunContext, config: Mapping[str, Any], dataset: Dataset) -> None:
    """Check that all ranks have the same options, data and versions."""
    if context.ranks.size > 1:
        found = {**digests(dataset.splits, dataset.splits), **_flat(config), **written_by("")}
        for name in ("data.folder", "training.from_run", "training.threads"):
            found.pop(name, None)  # may differ between machines
        check_alike(context.ranks, found)


def _flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        inner = isinstance(value, dict)
        found |= _flat(value, f"{above}{name}.") if inner else {above + name: value}
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
    dataset.references("val")  # find a damaged file now, not after hours of training
    return dataset


def _train(
    folder: Path,
    trainer: Trainer,
    dataset: Dataset,
    initial: Checkpoint,
    options: RunOptions,
    context: RunContext,
    events: Path | None,
) -> None:
    """Train to the end in a folder that holds a run; the model gets the best parameters."""
    ranks = context.ranks
    with noted_signals() as received:
        recovery = Recovery(options.on_nan, folder, context.warn, ranks)
        history = History(
            None if ranks.rank else folder / HISTORY,
            initial.state.progress.history,
            also=None if events is None else EventFile(events, trainer.step).write,
            warn=context.warn,
            check=recovery.check,
        )
        recovery.follow(trainer)
        history.follow(trainer)
        saver = Saver(folder, initial, history, options.saving, received, context.warn, ranks)
        saver.follow(trainer)
        if context.watch is not None:
            context.watch(trainer)
        if options.self_critical is not None:
            metric = None if trainer.step else trainer.metric
            before = None if metric is None else metric()
            if not ranks.rank:
                watch(trainer, folder / HISTORY, dataset.splits["train"], context.warn, before)
        try:
            with (
                trainer.model.backend.activate(),
                threads.shared_among(options.threads or threads.number()),
                numpy.errstate(over="ignore", invalid="ignore"),
            ):
                _run(trainer, recovery, history)
        except DivergedError:
            history.flush(trainer)
            raise
    trainer.model.params = dict(trainer.best_params)


def _run(trainer: Trainer, recovery: Recovery, history: History) -> None:
    """Train to the end, recovering from divergence if that is allowed."""
    while True:
        try:
            trainer.run()
            return
        except StepDiverged as error:
            try:
                history.drop(recovery.recover(trainer, error))
            except DivergedError:
                history.drop(error.step)
                raise
