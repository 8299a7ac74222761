"""`xpcap caption`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from xpcap.cli import _options as common
from xpcap.cli._decoding import decoding_options, search_of
from xpcap.cli._progress import stages

if TYPE_CHECKING:
    from xpcap.data.dataset import Dataset
    from xpcap.runs import Run

_ENDINGS = (".json", ".csv", ".html")
_OF_A_SPLIT, _OF_FILES = ("split", "count", "data"), ("weights", "skip_broken")


def _check_ending(
    context: click.Context, parameter: click.Parameter, value: Path | None
) -> Path | None:
    if value is not None and value.suffix.lower() not in _ENDINGS:
        raise click.BadParameter(f"{value} has another ending than {', '.join(_ENDINGS)}")
    return value


@click.command()
@click.argument("arguments", nargs=-1, required=True, metavar="RUN... [IMAGE]...")
@common.split_option
@common.option("--count", 10, "Number of images of the split.", type=common.Positive)
@click.option("--image", "images", multiple=True, help="The same as IMAGE; may be repeated.")
@click.option(
    "--skip-broken",
    is_flag=True,
    help="Leave out image files that cannot be opened, which are named on stderr; in JSON they have"
    " the reason as their error and no caption, in HTML it is shown.",
)
@common.path("--weights", "ONNX file of the feature extractor, if it has moved since training.")
@common.data_option
@common.option(
    "--n-best",
    1,
    "Number of captions per image: the best of --beam, or samples of --sample, each with its"
    " log-probability in nats.",
    type=common.Positive,
)
@decoding_options
@common.compute_options
@common.json_option
@common.path(
    "--out",
    "File to write instead of printing captions: .json as --json; .csv with the columns image,"
    " caption and log_prob, and rank with --n-best; or .html, thumbnails with their captions.",
    callback=_check_ending,
)
@common.path(
    "--attention",
    "Folder to write a PNG for each image, with the name of the image's file: the image under the"
    " heat map of each word of its caption, for models with attention to the regions of a grid.",
)
def caption(
    arguments: tuple[str, ...],
    split: str,
    count: int,
    images: tuple[str, ...],
    skip_broken: bool,
    weights: Path | None,
    data: Path | None,
    n_best: int,
    device: str,
    as_json: bool,
    out: Path | None,
    attention: Path | None,
    **options: Any,
) -> None:
    """Caption any image files, or images of a trained RUN's data set.

    An IMAGE is a file, a folder, of which all images at any depth are taken, or a pattern such as
    '*.jpg'. Image files need runs whose features xpcap computes from pixels. Several RUNs, before
    the first IMAGE, form an ensemble: their word probabilities are averaged. --json adds the
    log-probability of every word.
    """
    from xpcap.data.image_files import SUFFIXES, find_images
    from xpcap.report.attention_figure import figure_paths
    from xpcap.runs.captions import caption_dataset, caption_images, evenly_spaced
    from xpcap.runs.dataset import open_data

    if Path(arguments[0]).suffix.lower() in SUFFIXES:
        raise click.UsageError(f"{arguments[0]} is no run; expected a run, then images")
    first = next((k for k, name in enumerate(arguments) if k and not _is_run(name)), None)
    runs, given = arguments[:first], arguments[first:] if first else ()
    _check_options([*given, *images], as_json, out)
    run = common.open_runs([Path(name) for name in runs], device)
    decoder = search_of(run, options, n_best)
    dataset, looking = None, attention is not None
    figures: list[Path] = []
    if given or images:
        files = [*find_images(given), *(path for name in images for path in find_images([name]))]
        if attention is not None:
            figures = figure_paths(run, attention, files)
        with stages() as progress:
            captioned = caption_images(run, files, weights, decoder, skip_broken, progress, looking)
        for entry in captioned:
            if "error" in entry:
                common.print_message(f"left out: {entry['error']}")
    else:
        dataset = open_data(run, data)
        if attention is not None:
            addresses = dataset.split(split).urls
            rows = evenly_spaced(dataset, split, count)
            figures = figure_paths(run, attention, [addresses[row] for row in rows])
        captioned = caption_dataset(run, dataset, split, count, decoder, looking)
    if looking:
        _draw_attention(figures, run, dataset, captioned)
    if out is not None:
        _write(out, run, runs, dataset, captioned, n_best > 1)
    elif as_json:
        common.print_json(captioned)
    else:
        common.print_captions([entry for entry in captioned if "error" not in entry])


def _is_run(name: str) -> bool:
    """Whether an argument is a run folder or a checkpoint file."""
    from xpcap.runs import is_run

    path = Path(name)
    return is_run(path) or (path.suffix == ".safetensors" and path.is_file())


def _check_options(images: Sequence[str], as_json: bool, out: Path | None) -> None:
    """Refuse options that have no effect, and runs among images."""
    source = click.get_current_context().get_parameter_source
    expected, other = "the images of a data set", "image files"
    if not images:
        expected, other = other, expected
    for name in _OF_A_SPLIT if images else _OF_FILES:
        if source(name) is ParameterSource.COMMANDLINE:
            option = common.option_name(name)
            raise click.UsageError(f"{option} goes with {expected}, not with {other}")
    for name in images:
        if _is_run(name):
            raise click.UsageError(f"{name} is a run; expected runs before images")
    if as_json and out is not None:
        raise click.UsageError("--json prints; expected it without --out, or --out FILE.json")


def _write(
    out: Path,
    run: Run,
    names: Sequence[str],
    dataset: Dataset | None,
    captioned: Sequence[dict[str, Any]],
    ranked: bool,
) -> None:
    from xpcap.distributed import by_first
    from xpcap.runs.captions import write_csv, write_json

    def write() -> None:
        match out.suffix.lower():
            case ".json":
                write_json(out, captioned)
            case ".csv":
                write_csv(out, captioned, ranked)
            case _:
                _write_html(out, names, dataset, captioned)

    by_first(run.ranks, write)
    common.print_result(out)


def _write_html(
    out: Path, names: Sequence[str], dataset: Dataset | None, captioned: Sequence[dict[str, Any]]
) -> None:
    from xpcap.report.contact_sheet import write_contact_sheet

    with stages() as progress:
        title = f"Captions by {' and '.join(names)}"
        write_contact_sheet(out, title, captioned, _opener(dataset), progress)


def _draw_attention(
    paths: Sequence[Path], run: Run, dataset: Dataset | None, captioned: Sequence[dict[str, Any]]
) -> None:
    """Write the figures, and take the weights out of what is printed."""
    from xpcap.distributed import by_first
    from xpcap.report.attention_figure import not_in_font, write_figures

    def write() -> None:
        shown = [entry["captions"][0]["caption"] for entry in captioned if entry["captions"]]
        if lacking := not_in_font(shown):
            common.print_message(
                f"the font of the figures lacks {' '.join(lacking)}: drawn as boxes"
            )
        with stages() as progress:
            write_figures(run, paths, captioned, _opener(dataset), progress)

    by_first(run.ranks, write)
    for entry in captioned:
        entry.pop("attention", None)


def _opener(dataset: Dataset | None) -> Callable[[str], Any]:
    """Return a function that opens images of the data set, or image files, by their addresses."""
    from xpcap.data.images import open_stored

    folder = Path() if dataset is None else dataset.folder.absolute()
    return lambda name: open_stored(folder / name)
