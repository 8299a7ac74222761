"""`xpcap caption`."""

from __future__ import annotations

from pathlib import Path

import click

from xpcap.cli._options import (
    AnyPath,
    device_option,
    json_option,
    open_device,
    show_captions,
    show_json,
)


@click.command()
@click.argument("run", type=AnyPath)
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
@device_option
@json_option
def caption(
    run: Path,
    split: str,
    count: int,
    images: tuple[Path, ...],
    weights: Path | None,
    data: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Caption images with a trained RUN: of its data set, or any pictures.

    Pictures can be captioned by runs whose features xpcap computes from pixels.
    """
    from xpcap.run_folder import open_run
    from xpcap.train.showing import caption_pictures, caption_split

    if images and data:
        raise click.UsageError("--data goes with the images of a data set, not with --image")
    if weights and not images:
        raise click.UsageError("--weights goes with --image")
    opened = open_run(run, open_device(device))
    if images:
        shown = caption_pictures(opened, images, weights)
    else:
        shown = caption_split(opened, split, count, data)
    if as_json:
        show_json(shown)
    else:
        show_captions(shown)
