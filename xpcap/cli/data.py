"""`xpcap data`: making data folders."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from xpcap.cli._options import AnyPath, json_option, show_json, talk
from xpcap.cli._progress import stages


@click.group()
def data() -> None:
    """Make data folders to train on."""


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
    click.echo(out)


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
    for split, images in report.images.items():
        talk(f"{split}: {images} images, {report.captions[split]} captions")
    talk(f"left out: {report.too_long} captions over {max_words} words, {report.empty} without any")
    talk(f"vocabulary: {report.words} entries; <UNK> is {report.unknown:.1%} of all words")
    click.echo(out)
