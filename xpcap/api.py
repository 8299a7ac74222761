"""xpcap from Python: preparing data, training, and opening a run to use it.

Options have the names of the command line's, with underscores.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xpcap import runs
from xpcap.backend import as_backend
from xpcap.data.dataset import Dataset, open_dataset
from xpcap.data.extractors import choose_extractor
from xpcap.data.prepare import UNSPACED
from xpcap.data.prepare import prepare as prepare_folder
from xpcap.data.progress import Progress
from xpcap.data.scenes import built_in_scenes, make_scenes
from xpcap.data.splits import parse_splits
from xpcap.decoding import Beam, Constraints
from xpcap.errors import ConfigurationError
from xpcap.evaluation import DEFAULT, evaluate_run
from xpcap.options import check_options
from xpcap.report import check, gather, write_report
from xpcap.runs.dataset import data_folder, open_data
from xpcap.runs.folder import reserved_run
from xpcap.runs.search import banned_tokens, check_search, make_search
from xpcap.training.options import changed_options, following_options, run_options
from xpcap.training.run import RunContext, resume_run, train_run
from xpcap.training.trainer import EVENTS, Trainer, ended_line, epoch_line

__all__ = ["Run", "open_run", "prepare", "train"]

_PROGRESS_SECONDS = 10.0  # between the lines that are printed


_PREPARING = (
    "images", "vocabulary", "min_count", "max_words", "tokens", "skip_broken", "workers", "progress"
)  # fmt: skip


class Run(runs.Run):
    """A trained captioner, as `open_run` and `train` return it."""

    def evaluate(
        self,
        split: str = "val",
        *,
        metrics: Sequence[str] | str = DEFAULT,
        data: str | Path | None = None,
        **options: Any,
    ) -> dict[str, float]:
        """Caption a split of the data set, and return the metrics of all captions together.

        `metrics` are names of `xpcap.evaluation.METRICS`; `data` is the data folder, if it has
        moved; `options` are those of `xpcap.runs.make_search`, such as `beam=3`.
        """
        check_search(options)
        dataset = open_data(self, None if data is None else Path(data))
        how = make_search(self.vocabulary, **options)
        return dict(evaluate_run(self, dataset, split, how, metrics).scores.corpus)

    def report(
        self,
        out: str | Path | None = None,
        *,
        split: str = "val",
        beam: int = 3,
        count: int = 300,
        data: str | Path | None = None,
    ) -> Path:
        """Write a report of the run as an HTML page, by default `report.html` in its folder.

        See `xpcap report --help`; it needs the extra `report`.
        """
        if self.partners:
            raise ConfigurationError("a report is of one run, or of two beside each other")
        check()
        page = self.folder / "report.html" if out is None else Path(out)
        how = Beam(beam, constraints=Constraints(banned=banned_tokens(self.vocabulary)))
        moved = None if data is None else Path(data)
        write_report(page, gather([self], split, how, moved, count, _printed_progress()))
        return page


def prepare(
    captions: str | Path,
    out: str | Path,
    *,
    extractor: str | None = None,
    weights: str | Path | None = None,
    output: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    splits: str | Mapping[str, str] | None = None,
    **options: Any,
) -> Dataset | None:
    """Make a data folder `out` of images and the file or folder `captions`, and open it.

    The extractor is by default that for photographs if the extra `photos` is installed, or else the
    filter bank; `output="grid"` takes the features of regions of both; `weights`, `preprocessing`
    and other outputs are for networks in ONNX format. With `"none"` there are no features: None is
    returned, as the folder cannot be opened before it has some. `splits` are as for the command,
    `"none=train,eval=test"`, or a dict; the other `options` are those of
    `xpcap.data.prepare.prepare`. See datasets/README.md.
    """
    known = inspect.signature(prepare_folder).parameters
    counts = dict.fromkeys(("min_count", "max_words", "workers"), 1)  # whole numbers
    options = {name: value for name, value in options.items() if value is not None}
    check_options(options, {n: counts.get(n, known[n].default) for n in _PREPARING})
    for name in ("images", "vocabulary"):
        if name in options:
            options[name] = Path(options[name])
    file = None if weights is None else Path(weights)
    chosen = choose_extractor(extractor, file, output, preprocessing)
    if isinstance(splits, str):
        splits = parse_splits(splits)
    options.setdefault("progress", _printed_progress())
    report = prepare_folder(Path(captions), Path(out), extractor=chosen, splits=splits, **options)
    for _, reason in report.broken:
        print(f"left out: {reason}")
    if report.unspaced:
        print(UNSPACED.format('tokens="characters"'))
    return None if chosen is None else open_dataset(Path(out), lazy=True)


def train(
    data: str | Path | Dataset | None = None,
    *,
    out: str | Path | None = None,
    from_run: str | Path | Run | None = None,
    resume: str | Path | Run | None = None,
    device: str | None = None,
    tensorboard: str | Path | None = None,
    callbacks: Mapping[str, Callable[[Trainer], None]] | None = None,
    verbose: bool = True,
    **options: Any,
) -> Run:
    """Train a captioner, write its run folder, and return it with the best epoch's parameters.

    Parameters
    ----------
    data
        A data folder, or `"scenes"` for the built-in set, which is drawn once, and the default.
    out
        The run folder, a new name; by default `runs/DATA-MODEL-NUMBER`.
    from_run
        A run whose best epoch's model training starts from, or a checkpoint file; its data are
        the default of `data`.
    resume
        A stopped run to continue with its own options, of which only some may be given anew.
    device
        `"cpu"`, `"gpu"`, `"gpu:1"` or `"auto"`; None is the default one, see `use_backend`.
    tensorboard
        A folder for TensorBoard events.
    callbacks
        Functions of the `Trainer` by event: `"step"`, `"measured"`, `"epoch"` or `"end"`.
    verbose
        Print the losses after each epoch.
    options
        All others of `xpcap train --help`, such as `epochs=10` or `cell="gru"`.

    Raises
    ------
    XpcapError
        If options or data are invalid, which leaves no folder, or training fails.
    Stopped
        On SIGINT or SIGTERM; the run can be resumed.
    """

    def watch(trainer: Trainer) -> None:
        if verbose and trainer.ended:
            print(ended_line(trainer))
        elif verbose:
            trainer.on("epoch", lambda trainer: print(epoch_line(trainer)))
        for event, callback in called.items():
            trainer.on(event, callback)

    called = callbacks or {}
    if not isinstance(called, Mapping) or not set(called) <= set(EVENTS):
        raise ConfigurationError(
            f"callbacks: expected a dict from {', '.join(EVENTS)} to functions of the trainer"
        )
    backend = as_backend(device)
    context = RunContext(None if tensorboard is None else Path(tensorboard), watch, print)
    if resume is not None:
        for name, other in (("out", out), ("from_run", from_run)):
            if other is not None:
                raise ConfigurationError(
                    f"{name} does not go with resume, which continues in its folder"
                )
        moved = None if data is None or data == "scenes" else _folder(data)
        stopped = _path(resume)
        resume_run(
            stopped,
            backend,
            lambda before: changed_options(before, **options),
            moved,
            context,
        )
        return open_run(stopped, device=device)
    if isinstance(from_run, Run):
        from_run = from_run.file or from_run.folder
    source = None if from_run is None else open_run(from_run, device="cpu")
    chosen = run_options(**options) if source is None else following_options(source, **options)
    if source is not None and data is None:
        folder = data_folder(source, None)
    else:
        folder = _folder("scenes" if data is None else data, chosen.attends)
    if out is not None:
        train_run(folder, Path(out), chosen, backend, context, source)
        return open_run(out, device=device)
    with reserved_run(Path("runs"), f"{folder.resolve().name}-{chosen.label}") as run:
        train_run(folder, run, chosen, backend, context, source)
    return open_run(run, device=device)


def open_run(*paths: str | Path, device: str | None = None) -> Run:
    """Open a run, or the ensemble of several, which averages their word probabilities.

    A path is a run folder, of which the best epoch is taken, or a checkpoint file. If there is no
    run, or it is damaged, or runs do not fit together, `CheckpointError` is raised.
    """
    if not paths:
        raise ConfigurationError("open_run takes the path of one run or more")
    backend = as_backend(device)
    opened = runs.ensemble([runs.open_run(Path(path), backend) for path in paths])
    return Run(**vars(opened))


def _printed_progress() -> Progress:
    """Return a callback that prints a line every few seconds."""
    shown = time.monotonic()

    def show(doing: str, done: int, total: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= _PROGRESS_SECONDS:
            shown = time.monotonic()
            print(f"{doing}: {done} of {total}")

    return show


def _path(run: str | Path | Run) -> Path:
    return run.folder if isinstance(run, Run) else Path(run)


def _folder(data: str | Path | Dataset, regions: bool = False) -> Path:
    if isinstance(data, Dataset):
        return data.folder
    if data != "scenes":
        return Path(data)
    return built_in_scenes(_draw, "grid" if regions else None)


def _draw(folder: Path, output: str | None) -> None:
    print(f"drawing the built-in scenes, once, in {folder}")
    make_scenes(folder, output=output)
