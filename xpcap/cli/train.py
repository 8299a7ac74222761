"""`xpcap train`."""

from __future__ import annotations

import contextlib
import functools
import itertools
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from xpcap import distributed
from xpcap.cli._options import (
    AnyPath,
    device_option,
    join_others,
    json_option,
    open_device,
    show,
    show_captions,
    show_json,
    talk,
    threads_option,
)
from xpcap.cli._progress import stages, training
from xpcap.cli._run_options import changed, saved_every, to_options
from xpcap.errors import DivergedError, Stopped

if TYPE_CHECKING:
    from xpcap.distributed import Ranks
    from xpcap.train.trainer import Trainer

SHOWN = 8


@click.command()
@click.option(
    "--data",
    default="scenes",
    metavar="scenes|DIR",
    help="The built-in set, or a data folder (./scenes for one of that name).",
)
@click.option(
    "--features",
    type=click.Choice(["auto", "pca", "fc7"]),
    default="auto",
    help="Which features; auto takes pca where there is one.",
)
@click.option("--lazy", is_flag=True, help="Leave features in their files, reading as needed.")
@click.option(
    "--feature-dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    help="Of the features in memory.",
)
@click.option("--cell", default="lstm", metavar="rnn|lstm|gru", help="The recurrent cell.")
@click.option("--hidden", type=click.IntRange(min=1), default=512, help="Size of the hidden state.")
@click.option("--wordvec", type=click.IntRange(min=1), default=256, help="Size of a word vector.")
@click.option("--dropout", type=float, default=0.0, help="Share of elements dropped, in [0, 1).")
@click.option(
    "--batch-size",
    type=int,
    help="Captions a step.",
    show_default="128, or all where there are fewer",
)
@click.option("--epochs", type=int, default=6, help="Times through the captions.")
@click.option(
    "--rule", default="adam", metavar="sgd|sgd_momentum|rmsprop|adam|adamw", help="The update rule."
)
@click.option("--lr", type=float, default=1e-3, help="The learning rate.")
@click.option("--lr-decay", type=float, default=1.0, help="Its factor after each epoch.")
@click.option(
    "--schedule",
    type=click.Choice(["constant", "cosine"]),
    default="cosine",
    help="Whether it falls to zero on half a cosine besides.",
)
@click.option(
    "--clip",
    type=float,
    default=5.0,
    help="Largest joint norm of the gradients; 0 leaves them as they are.",
)
@click.option(
    "--patience",
    type=int,
    show_default=False,
    help="Stop after so many epochs without a better validation loss.",
)
@click.option(
    "--max-train", type=int, show_default=False, help="Train on so many captions, drawn at random."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float64"]),
    default="float32",
    help="Of the parameters.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "tf32", "bf16"]),
    default="float32",
    help="To which the factors of matrix products are rounded; tf32 and bf16 on a GPU only.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Of parameters, order, dropout and draws."
)
@click.option("--out", type=AnyPath, show_default="runs/DATA-CELL-NUMBER", help="The run folder.")
@click.option(
    "--tensorboard",
    type=AnyPath,
    metavar="DIR",
    show_default=False,
    help="Write TensorBoard events too, in a folder of DIR that is named like the run;"
    " tensorboard --logdir DIR compares all runs there.",
)
@click.option(
    "--resume",
    type=AnyPath,
    metavar="RUN",
    show_default=False,
    help="Go on with a run that was stopped. Its options are as before; these may be given anew:"
    " --epochs, --patience, --lazy, --save-every, --keep, --on-nan, --on-nan-limit, --data,"
    " --device and --tensorboard.",
)
@click.option(
    "--save-every",
    metavar="STEPS|MINUTESm",
    callback=lambda context, parameter, value: saved_every(value),
    show_default="an epoch",
    help="Write a checkpoint so often besides: 500, or 10m.",
)
@click.option(
    "--keep", type=click.IntRange(min=0), default=0, help="Earlier checkpoints that are kept."
)
@click.option(
    "--on-nan",
    type=click.Choice(["stop", "skip", "rollback"]),
    default="stop",
    help="When a loss or a gradient is not finite, or a loss explodes: skip the minibatch, or go"
    " back at half the rate.",
)
@click.option(
    "--on-nan-limit", type=click.IntRange(min=0), default=3, help="How often, before it stops."
)
@device_option
@threads_option
@json_option
def train(
    data: str,
    out: Path | None,
    resume: Path | None,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a captioner and leave a run folder.

    With no options: draws the built-in scenes once, trains an LSTM on them, and prints the
    validation loss and eight validation captions beside people's own. Ctrl-C ends it after a step,
    and --resume RUN goes on from there as if it had never stopped.
    """  # fmt: skip
    from xpcap.runs import Run, check_new_run
    from xpcap.runs.captions import caption_dataset
    from xpcap.train.run import RunContext, resume_run, train_run

    context = RunContext(options.pop("tensorboard"), warn=talk)
    if resume is not None:
        if _given("out"):
            raise click.UsageError("--out does not go with --resume, which goes on in its folder")
        anew = {name: value for name, value in options.items() if _given(name)}
        backend = open_device(device)
        context = replace(context, ranks=join_others(backend))
        moved = _data_folder(data, context.ranks) if _given("data") else None
        with training() as watch, _hints(resume):
            context = replace(context, watch=None if distributed.rank() else _told(watch, resume))
            change = functools.partial(changed, given=anew)
            trainer, dataset = resume_run(resume, backend, change, moved, context)
        out = resume
    else:
        chosen = to_options(options)
        if out is not None:
            check_new_run(out)
        backend = open_device(device)
        context = replace(context, ranks=join_others(backend))
        folder = _data_folder(data, context.ranks)
        name = f"{folder.name}-{chosen.cell}"
        out = out or distributed.by_first(context.ranks, lambda: _next_run(Path("runs"), name))
        talk(f"data: {folder}; run: {out}")
        with training() as watch, _hints(out):
            context = replace(context, watch=None if distributed.rank() else watch)
            trainer, dataset = train_run(folder, out, chosen, backend, context)
    run = Run(out, {}, dataset.vocabulary, trainer.model)
    shown = caption_dataset(run, dataset, "val", SHOWN)
    if as_json:
        show_json({"run": str(out), **_figures(trainer), "captions": shown})
    else:
        show_captions(shown)
        figures = _figures(trainer)
        show(
            f"validation loss {figures['val_loss']:.4f} nats a word, perplexity"
            f" {figures['val_perplexity']:.2f} (epoch {figures['epoch']}); run: {out}"
        )


@contextlib.contextmanager
def _hints(run: Path) -> Iterator[None]:
    """Add to errors of training the command and the options that would help."""
    resume = shlex.join(["xpcap", "train", "--resume", str(run)])
    try:
        yield
    except Stopped as stop:
        raise Stopped(f"{stop}: {resume}", stop.signal) from stop
    except DivergedError as error:
        raise DivergedError(f"{error} (--lr, --on-nan)") from error


def _given(name: str) -> bool:
    """Whether an option stands in the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


def _data_folder(data: str, ranks: Ranks) -> Path:
    """Return the data folder; the built-in one is made if it is not there yet, on any machine."""
    from xpcap.data.locations import scenes_folder
    from xpcap.data.scenes import make_scenes

    if data != "scenes":
        return Path(data)
    folder = scenes_folder()

    def make() -> None:
        if not folder.exists():
            talk(f"drawing the built-in scenes, once, in {folder}")
            with stages() as progress:
                make_scenes(folder, progress=progress)

    distributed.in_turn(ranks, make)
    return folder


def _told(watch: Callable[[Trainer], None], run: Path) -> Callable[[Trainer], None]:
    """Return what says where a run goes on before it watches it."""

    def begin(trainer: Trainer) -> None:
        total = trainer.schedule.epochs * len(trainer.batches)
        talk(f"run: {run}, from step {trainer.step} of {total}")
        watch(trainer)

    return begin


def _next_run(parent: Path, name: str) -> Path:
    return next(path for k in itertools.count(1) if not (path := parent / f"{name}-{k}").exists())


def _figures(trainer: Trainer) -> dict[str, Any]:
    from xpcap.train.trainer import perplexity_of

    return {
        "epoch": trainer.best_epoch,
        "steps": trainer.step,
        "val_loss": trainer.best_loss,
        "val_perplexity": perplexity_of(trainer.best_loss),
    }
