"""`xpcap data`: making data folders, and looking into them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xpcap.cli._options import (
    AnyPath,
    device_option,
    join_others,
    json_option,
    open_device,
    refuse_ranks,
    show,
    show_json,
    talk,
    threads_option,
)
from xpcap.cli._progress import stages

if TYPE_CHECKING:
    from xpcap.data.encoding import BuildReport


@click.group()
def data() -> None:
    """Make data folders to train on, and look into them."""
    refuse_ranks("prepare")


@data.command()
@click.option("--out", type=AnyPath, required=True, help="The new data folder.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Another seed, other pictures.")
@click.option("--train", type=click.IntRange(min=2), default=2000, help="Training pictures.")
@click.option("--val", type=click.IntRange(min=1), default=500, help="Validation pictures.")
def scenes(out: Path, seed: int, train: int, val: int) -> None:
    """Draw the built-in world: pictures of coloured shapes, with captions and features."""
    from xpcap.data.scenes import make_scenes

    with stages() as progress:
        make_scenes(out, seed=seed, train=train, val=val, progress=progress)
    talk(f"{train} training and {val} validation pictures")
    show(out)


@data.command("coco-json")
@click.option("--captions", type=AnyPath, required=True, help="COCO's captions_*.json.")
@click.option("--instances", type=AnyPath, required=True, help="COCO's instances_*.json.")
@click.option("--out", type=AnyPath, required=True, help="The new data folder.")
@click.option("--vocab", type=AnyPath, help="A vocabulary to use, such as coco2014_vocab.json.")
@click.option("--min-count", type=int, default=5, help="Else: how often a word must occur.")
@click.option("--max-words", type=int, default=15, help="Longer captions are not trained on.")
@json_option
def coco_json(
    captions: Path,
    instances: Path,
    out: Path,
    vocab: Path | None,
    min_count: int,
    max_words: int,
    as_json: bool,
) -> None:
    """Build a data folder from COCO's annotation files.

    The features are people's object boxes (five numbers a category), not pixels.
    """
    from xpcap.data.coco_json import build_from_coco

    report = build_from_coco(
        captions, instances, out, vocabulary=vocab, min_count=min_count, max_words=max_words
    )
    if as_json:
        show_json({"folder": str(out), **asdict(report)})
        return
    _say_what_was_built(report, max_words)
    show(out)


@data.command()
@click.argument("captions", type=AnyPath)
@click.option("--out", type=AnyPath, required=True, help="The new data folder.")
@click.option(
    "--extractor",
    metavar="NAME",
    help="Compute features too: filter-bank; or vgg16-fc7, vgg16-fc7-caffe, resnet101-pool,"
    " clip-vit or onnx, with --weights.",
)
@click.option("--weights", type=AnyPath, help="The network, an ONNX file.")
@click.option("--output", metavar="NAME", help="Which of the network's outputs, if it has several.")
@click.option(
    "--preprocessing",
    type=AnyPath,
    help="A JSON file that changes the preset's size, shorter_side, interpolation, channels, scale,"
    " mean or std.",
)
@click.option(
    "--images",
    type=AnyPath,
    help="The folder that pictures' names start from.",
    show_default="that of CAPTIONS",
)
@click.option("--vocab", type=AnyPath, help="A vocabulary to use, such as coco2014_vocab.json.")
@click.option(
    "--min-count",
    type=int,
    help="Else: how often a word must occur.",
    show_default="5 from 5,000 training captions on, else 1",
)
@click.option("--max-words", type=int, default=20, help="Longer captions are not trained on.")
@click.option(
    "--validation", default="val", metavar="val|test", help="Which split is held out, if named."
)
@click.option("--skip-broken", is_flag=True, help="Leave out pictures that cannot be opened.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Threads that open pictures.",
    show_default="one a core",
)
@threads_option
@json_option
def prepare(
    captions: Path,
    out: Path,
    extractor: str | None,
    weights: Path | None,
    output: str | None,
    preprocessing: Path | None,
    images: Path | None,
    vocab: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a data folder of your own pictures and the file CAPTIONS.

    CAPTIONS is a JSON list of objects with "image" (a file), "captions" (a list) and, if you like,
    "split" (train, val or test); or a CSV file with the columns image, caption and split; or a
    captions file of COCO's; or a Karpathy split. Interrupted, the same command goes on.
    """
    from xpcap.backend import CPU
    from xpcap.data.extractors import make_extractor
    from xpcap.data.prepare import prepare as make_folder
    from xpcap.files import read_json

    if extractor is not None:
        changes = None if preprocessing is None else read_json(preprocessing)
        chosen = make_extractor(extractor, weights, output, changes)
    elif weights or output or preprocessing:
        raise click.UsageError("--weights, --output and --preprocessing need --extractor")
    else:
        chosen = None
    ranks = join_others(CPU)
    with stages() as progress:
        report = make_folder(
            captions,
            out,
            images=images,
            extractor=chosen,
            vocabulary=vocab,
            progress=progress,
            ranks=ranks,
            **options,
        )
    if as_json:
        broken = [{"image": str(path), "reason": reason} for path, reason in report.broken]
        show_json({"folder": str(out), **asdict(report), "broken": broken})
        return
    for _, reason in report.broken:
        talk(f"left out: {reason}")
    _say_what_was_built(report.built, options["max_words"])
    talk(
        f"pictures left out: {len(report.broken)} broken, {report.without_captions} without"
        f" captions, {report.unused} of another split"
    )
    if chosen is None:
        talk("features are still to come: see the README, Data folders")
    show(out)


def _say_what_was_built(report: BuildReport, max_words: int) -> None:
    for split, images in report.images.items():
        talk(f"{split}: {images} images, {report.captions[split]} captions")
    talk(f"left out: {report.too_long} captions over {max_words} words, {report.empty} without any")
    talk(f"vocabulary: {report.words} entries; <UNK> is {report.unknown:.1%} of all words")


@data.command()
@click.argument("folder", type=AnyPath)
@click.option("--dim", type=click.IntRange(min=1), default=512, help="Components to keep.")
@click.option("--whiten", is_flag=True, help="Give every component variance 1.")
@click.option("--replace", is_flag=True, help="Write over the pca features that are there.")
@device_option
@threads_option
@json_option
def pca(folder: Path, device: str, as_json: bool, **options: Any) -> None:
    """Reduce the features of the data folder FOLDER to their principal components.

    They may be larger than memory. Runs that are trained on the folder then take these features,
    and keep the transform for new pictures.
    """
    from xpcap.data.reduction import reduce_folder

    backend = open_device(device)
    with stages() as progress:
        report = reduce_folder(folder, backend=backend, progress=progress, **options)
    if as_json:
        show_json({"folder": str(folder), **asdict(report)})
        return
    talk(
        f"{report.images} images: {report.width} to {report.dim} numbers,"
        f" {report.explained:.1%} of the variance"
    )
    talk(f"{report.seconds:.1f} s, of which {report.product_seconds:.1f} s for matrix products")
    show(folder)


@data.command()
@click.argument("name", type=click.Choice(["coco"]))
@click.option(
    "--out", type=AnyPath, default="datasets/coco_captioning", help="The new data folder."
)
@click.option("--url", help="A mirror of the archive.", show_default="the course's site")
def download(name: str, out: Path, url: str | None) -> None:
    """Fetch the CS231n data set: COCO's captions with VGG-16 features, about 1 GB.

    Interrupted, the same command goes on. Every file is checked by its size and SHA-256.
    """
    from xpcap.data.download import ADDRESS, download_coco

    with stages(in_bytes=True) as progress:
        download_coco(out, url or ADDRESS, progress)
    show(out)


@data.command()
@click.argument("folder", type=AnyPath)
@json_option
def info(folder: Path, as_json: bool) -> None:
    """Show what is in the data folder FOLDER, and what is wrong with it.

    Exits with 1 if something is.
    """
    from xpcap.data.summary import summarize

    with stages() as progress:
        found = summarize(folder, progress)
    if as_json:
        show_json(found)
    else:
        _show_summary(found)
    click.get_current_context().exit(1 if found["problems"] else 0)


def _show_summary(found: dict[str, Any]) -> None:
    show(f"{found['folder']}: {found.get('name') or 'unknown'}")
    extractor = (found.get("extractor") or {}).get("name")
    show(f"  features    {found.get('features') or 'of unknown origin'}")
    show(f"  extractor   {extractor or 'none: new pictures cannot be captioned'}")
    show(f"  vocabulary  {found['vocabulary'] or 'unknown'}")
    for name, split in found["splits"].items():
        unknown = f", <UNK> {split['unknown']:.1%} of their words" if "unknown" in split else ""
        show(f"{name}: {split['images']} images, {split.get('captions')} captions{unknown}")
        for kind, part in split["features"].items():
            if part:
                shape = " x ".join(map(str, part["shape"]))
                show(f"  {kind:<4} {shape} {part['dtype']}, {part['bytes'] / 2**20:.1f} MiB")
        most = max(split.get("lengths", {}).values(), default=1)
        for length, count in split.get("lengths", {}).items():
            show(f"  {length:>3} words {count:>8}  {'#' * round(40 * count / most)}")
    for problem in found["problems"]:
        show(f"problem: {problem}")
