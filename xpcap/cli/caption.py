"""`xpcap caption`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from xpcap.cli import _options as common
from xpcap.cli._decoding import decoding_options, search_of


@click.command()
@common.runs_argument
@common.split_option
@common.option("--count", 10, "Number of images of the split.", type=common.Positive)
@common.path(
    "--image images", "Image file to caption instead of a split; may be repeated.", multiple=True
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
    """Caption images of a trained RUN's data set, or any image files.

    Several RUNs form an ensemble: their word probabilities are averaged. Image files need runs
    whose features xpcap computes from pixels. --json adds the log-probability of every word.
    """
    from xpcap.runs.captions import caption_dataset, caption_images
    from xpcap.runs.dataset import open_data

    if images and data:
        raise click.UsageError("--data goes with the images of a data set, not with --image")
    if weights and not images:
        raise click.UsageError("--weights goes with --image")
    run = common.open_runs(runs, device)
    decoder = search_of(run.vocabulary, options, n_best)
    if images:
        captioned = caption_images(run, images, weights, decoder)
    else:
        captioned = caption_dataset(run, open_data(run, data), split, count, decoder)
    (common.print_json if as_json else common.print_captions)(captioned)
