"""`xpcap train`."""

from __future__ import annotations

import contextlib
import functools
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from xpcap import distributed
from xpcap.cli import _options as common
from xpcap.cli._options import NonNegative, Positive, choice, option, path, print_message
from xpcap.cli._progress import stages, training
from xpcap.errors import DivergedError, Stopped

if TYPE_CHECKING:
    from xpcap.data.dataset import Dataset
    from xpcap.distributed import Ranks
    from xpcap.training.options import RunOptions
    from xpcap.training.trainer import Trainer

SHOWN = 8


@click.command()
@option(
    "--data",
    "scenes",
    "Data folder, or scenes for the built-in set (./scenes for a folder of that name).",
    metavar="scenes|DIR",
)
@choice(
    "--features", "auto|pca|fc7", "Image features to use; auto uses pca if the data folder has it."
)
@click.option("--lazy", is_flag=True, help="Read features from disk as needed.")
@choice("--feature-dtype", "float32|float16", "Floating-point type of the features in memory.")
@choice(
    "--stage",
    "cross-entropy|self-critical",
    "What is trained: the probability of references, or with --from the expected reward of"
    " captions that the model draws (see xpcap/training/README.md).",
)
@path(
    "--from from_run",
    "Start from the best epoch of a run, with its model and, unless --data says otherwise, data.",
    metavar="RUN",
)
@option(
    "--reward",
    "CIDEr-D",
    "Self-critical reward: metrics, CIDEr-D or BLEU-4, and their weights.",
    metavar="METRIC[:WEIGHT],...",
)
@option("--samples", 5, "Captions drawn of each image in a self-critical step.", type=Positive)
@choice(
    "--baseline",
    "mean|greedy",
    "Self-critical baseline of rewards: the mean reward of an image's other captions, or that of"
    " its greedy caption.",
)
@option(
    "--entropy", 0.0, "Weight of the entropy of captions, in nats per word, added to the reward."
)
@option(
    "--cross-entropy",
    0.0,
    "Share of the cross entropy of references in the self-critical loss, below 1.",
)
@choice(
    "--model",
    "recurrent|attention|transformer",
    "Captioner: a recurrent network, one with attention to regions of the image, or a Transformer.",
)
@option("--cell", "lstm", "Recurrent cell.", metavar="rnn|lstm|gru")
@choice("--scoring", "additive|dot", "Score of attention: additive, or scaled dot product.")
@option(
    "--doubly-stochastic",
    0.0,
    "With attention: weight of the penalty that each region's attention adds up to 1.",
)
@option("--layers", 3, "Number of layers of a Transformer.", type=Positive)
@option("--heads", 8, "Number of heads of a Transformer's attention.", type=Positive)
@option(
    "--encoder-layers",
    0,
    "Number of a Transformer's layers in which regions look at each other.",
    type=NonNegative,
)
@choice("--positions", "sinusoidal|learned", "Vectors of a Transformer's positions.")
@click.option(
    "--tie-embeddings",
    is_flag=True,
    help="Share a Transformer's word vectors with its vocabulary layer.",
)
@option("--hidden", 512, "Hidden state size.", type=Positive)
@option("--wordvec", 256, "Word vector size.", type=Positive)
@option("--dropout", 0.0, "Dropout rate, in [0, 1).")
@click.option(
    "--batch-size",
    type=int,
    help="Captions per step, or with --stage self-critical images.",
    show_default="128; fewer of small sets, so that an epoch has 75 steps, but at least 16; 16"
    " images",
)
@option(
    "--epochs",
    6,
    "Number of passes over the training captions, or with --stage self-critical images.",
)
@option("--rule", "adam", "Update rule.", metavar="sgd|sgd_momentum|rmsprop|adam|adamw")
@click.option(
    "--lr",
    default=1e-3,
    help="Initial learning rate; given anew with --resume, that from which the schedule starts"
    " again.",
    show_default="0.001; 0.0002 with --stage self-critical",
)
@click.option(
    "--weight-decay",
    type=float,
    help="Weight decay of the rule adamw; biases, norms and embeddings have none.",
    show_default="0.01 with --rule adamw",
)
@option("--lr-decay", 1.0, "Learning-rate decay factor per epoch.")
@choice("--schedule", "cosine|constant", "Learning-rate schedule; cosine anneals to zero.")
@option(
    "--warmup",
    0,
    "Number of steps in which the learning rate first rises linearly to its initial value.",
    type=NonNegative,
    metavar="STEPS",
)
@option(
    "--label-smoothing",
    0.0,
    "Label smoothing of the training loss: the share of each target that goes to all words evenly.",
)
@option(
    "--scheduled-sampling",
    0.0,
    "Probability at the end of training, from 0 at its beginning, that a word is read that the"
    " model drew itself.",
)
@option("--clip", 5.0, "Maximum norm of all gradients together; 0 disables clipping.")
@click.option(
    "--select",
    default="loss",
    help="What the best epoch has: the lowest validation loss, or the highest value of this metric"
    " of greedy captions of at most 1,000 validation images, which take a few seconds after each"
    " epoch on a CPU.",
    show_default="loss; CIDEr-D with --stage self-critical",
    metavar="loss|BLEU-1|BLEU-2|BLEU-3|BLEU-4|ROUGE-L|CIDEr|CIDEr-D",
)
@click.option(
    "--patience", type=int, help="Stop after N epochs without a better one; see --select."
)
@click.option("--max-train", type=int, help="Train on a random subset of N captions.")
@choice("--dtype", "float32|float64", "Floating-point type of the parameters.")
@choice(
    "--precision",
    "float32|tf32|bf16",
    "Rounding of the factors of matrix products; tf32 and bf16 need a GPU.",
)
@option("--seed", 0, "Random seed of parameters, order, dropout and subsets.", type=NonNegative)
@path("--out", "Run folder to create.", show_default="runs/DATA-MODEL-NUMBER")
@path(
    "--tensorboard",
    "Also write TensorBoard events, to a folder of DIR named like the run.",
    metavar="DIR",
)
@path(
    "--resume",
    "Continue a stopped run with its own options; --epochs, --lr, --patience, --lazy, --save-every,"
    " --keep, --on-nan, --on-nan-limit, --data, --device and --tensorboard may be changed.",
    metavar="RUN",
)
@click.option(
    "--save-every",
    metavar="STEPS|MINUTESm",
    help="Write a checkpoint every N steps or minutes too, such as 500 or 10m.",
)
@option(
    "--keep",
    0,
    "Number of checkpoints to keep, of the last epochs and of --save-every; xpcap average averages"
    " them.",
    type=NonNegative,
)
@choice(
    "--on-nan",
    "stop|skip|rollback",
    "What to do if a loss or gradient is not finite or a loss explodes: stop, skip the"
    " minibatch, or roll back and halve the learning rate.",
)
@option("--on-nan-limit", 3, "Maximum number of recoveries.", type=NonNegative)
@common.compute_options
@common.json_option
def train(
    data: str,
    out: Path | None,
    resume: Path | None,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a captioner and write a run folder.

    Without options: draws the built-in scenes once, trains an LSTM on them, and prints the
    validation loss and eight validation captions with their references. Ctrl-C stops after the
    current step, and --resume RUN continues as if the run had never been stopped.
    """
    from xpcap.runs import Run, check_new_run, open_run
    from xpcap.runs.captions import caption_dataset
    from xpcap.runs.dataset import data_folder
    from xpcap.runs.folder import reserved_run
    from xpcap.training.options import following_options, run_options
    from xpcap.training.run import RunContext, resume_run, train_run
    from xpcap.training.trainer import ended_line, perplexity_of

    tensorboard, source = options.pop("tensorboard"), options.pop("from_run")
    given = {name: value for name, value in options.items() if _given(name)}
    if resume is None:
        from_run = None
        if source is not None:
            from_run = open_run(source, "cpu")
            with common.named_as_options():
                chosen = following_options(from_run, **given)
        else:
            with common.named_as_options():
                chosen = run_options(**given)
        if out is not None:
            check_new_run(out)
        backend, ranks = common.open_shared_device(device)
        if from_run is not None and not _given("data"):
            folder = data_folder(from_run, None)
        else:
            folder = _data_folder(data, ranks, chosen.attends)
        name = f"{folder.resolve().name}-{chosen.label}"
        if out is None:
            reserved, command = reserved_run(Path("runs"), name), click.get_current_context()
            out = distributed.by_first(ranks, lambda: command.with_resource(reserved))
        print_message(f"data: {folder}; run: {out}")
        start = functools.partial(train_run, folder, out, chosen, backend, source=from_run)
    elif source is not None:
        raise click.UsageError("--from does not go with --resume, which continues a run as it was")
    elif out is None:
        backend, ranks = common.open_shared_device(device)
        moved = None
        if _given("data"):
            regions = data == "scenes" and _options_of(resume).attends
            moved = _data_folder(data, ranks, regions)
        out = resume
        change = functools.partial(_changed, given)
        start = functools.partial(resume_run, resume, backend, change, moved)
    else:
        raise click.UsageError("--out does not go with --resume, which continues in its own folder")
    had_ended = False
    with training() as show_progress, _hints(out):

        def watch(trainer: Trainer) -> None:
            nonlocal had_ended
            if resume is not None:
                had_ended, total = trainer.ended, trainer.schedule.epochs * len(trainer.batches)
                print_message(f"run: {resume}, from step {trainer.step} of {total}")
            if had_ended:
                print_message(common.with_options(ended_line(trainer)))
            show_progress(trainer)

        context = RunContext(tensorboard, None if ranks.rank else watch, print_message, ranks)
        trainer, dataset = start(context=context)
    config = {"data": {"max_words": dataset.max_words}}
    run = Run(out, config, dataset.vocabulary, trainer.model)
    captions = [] if had_ended else caption_dataset(run, dataset, "val", SHOWN)
    loss, perplexity = trainer.best_loss, perplexity_of(trainer.best_loss)
    metric, value = trainer.metric, trainer.best_value
    if as_json:
        common.print_json(
            {
                "run": str(out),
                "epoch": trainer.best_epoch,
                "steps": trainer.step,
                "val_loss": loss,
                "val_perplexity": perplexity,
                **({} if metric is None else {metric.figure: value}),
                "captions": captions,
            }
        )
    else:
        common.print_captions(captions)
        common.print_result(
            f"validation loss {loss:.4f} nats per word, perplexity {perplexity:.2f}"
            f"{'' if metric is None else f', {metric.name} {value:.4f}'}"
            f" (epoch {trainer.best_epoch}); run: {out}"
        )
        print_message(f"next: {_next_command(out, dataset)}")


@contextlib.contextmanager
def _hints(run: Path) -> Iterator[None]:
    """Add to errors of training the command and the options that help."""
    resume = shlex.join(["xpcap", "train", "--resume", str(run)])
    try:
        yield
    except Stopped as stop:
        raise Stopped(f"{stop}: {resume}", stop.signal) from stop
    except DivergedError as error:
        raise DivergedError(f"{error} (--lr, --on-nan)") from error


def _next_command(run: Path, dataset: Dataset) -> str:
    what = "photo.jpg" if dataset.description.get("extractor") else "--beam 3"
    commands = (["caption", str(run), *what.split()], ["evaluate", str(run)], ["report", str(run)])
    return "; ".join(shlex.join(["xpcap", *words]) for words in commands)


def _given(name: str) -> bool:
    """Whether an option was given on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


def _data_folder(data: str, ranks: Ranks, regions: bool = False) -> Path:
    """Return the data folder; on each machine the built-in one is created if it does not exist."""
    from xpcap.data.scenes import built_in_scenes, make_scenes

    if data != "scenes":
        return Path(data)

    def draw(folder: Path, output: str | None) -> None:
        print_message(f"drawing the built-in scenes, once, in {folder}")
        with stages() as progress:
            make_scenes(folder, output=output, progress=progress)

    output = "grid" if regions else None
    return distributed.in_turn(ranks, lambda: built_in_scenes(draw, output))


def _options_of(run: Path) -> RunOptions:
    """Read the options of a run."""
    from xpcap.runs.checkpoint import read_checkpoint
    from xpcap.runs.folder import checkpoint_of
    from xpcap.training.options import options_of

    path = checkpoint_of(run)
    return options_of(path, read_checkpoint(path).config)


def _changed(given: dict[str, Any], before: RunOptions) -> RunOptions:
    from xpcap.training.options import changed_options

    with common.named_as_options():
        return changed_options(before, **given)
