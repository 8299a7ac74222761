"""`xpcap caption`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from xpcap.cli._decoding import decoding_options, make_decoder
from xpcap.cli._options import (
    AnyPath,
    device_option,
    json_option,
    open_runs,
    runs_argument,
    show_captions,
    show_json,
    threads_option,
)


@click.command()
@runs_argument
@click.option("--split", type=click.Choice(["train", "val"]), default="val", help="Whose images.")
@click.option("--count", type=click.IntRange(min=1), default=10, help="How many images.")
@click.option(
    "--image",
    "images",
    type=AnyPath,
    multiple=True,
    help="A picture to caption instead; may be given several times.",
)
@click.option(
    "--weights",
    type=AnyPath,
    help="The ONNX file that the features come from, if it has moved.",
    show_default=False,
)
@click.option("--data", type=AnyPath, help="The data folder, if it has moved.", show_default=False)
@click.option(
    "--n-best",
    type=click.IntRange(min=1),
    default=1,
    help="How many captions an image, the best of --beam or so many draws of --sample; each with"
    " its log-probability in nats.",
)
@decoding_options
@device_option
@threads_option
@json_option
def caption(
    runs: tuple[Path, ...],
    split: str,
    count: int,
    images: tuple[Path, ...],
    weights: Path | None,
    data: Path | None,
    n_best: int,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Caption images with a trained RUN: of its data set, or any pictures.

    Several RUNs decide together: the probability of a word is the average of theirs. Pictures can
    be captioned by runs whose features xpcap computes from pixels. --json adds to each caption the
    log-probability of every word.
    """
    from xpcap.runs.captions import caption_images, caption_split

    if images and data:
        raise click.UsageError("--data goes with the images of a data set, not with --image")
    if weights and not images:
        raise click.UsageError("--weights goes with --image")
    opened = open_runs(runs, device)
    how = make_decoder(opened.vocabulary, options, n_best)
    if images:
        shown = caption_images(opened, images, weights, how)
    else:
        shown = caption_split(opened, split, count, data, how)
    if as_json:
        show_json(shown)
    else:
        show_captions(shown)
