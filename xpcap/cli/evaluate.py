"""`xpcap evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from xpcap.cli._decoding import decoding_options, make_decoder, used
from xpcap.cli._options import (
    AnyPath,
    device_option,
    json_option,
    open_runs,
    runs_argument,
    show,
    show_json,
    talk,
    threads_option,
)


@click.command()
@runs_argument
@click.option("--split", type=click.Choice(["train", "val"]), default="val", help="Whose images.")
@click.option(
    "--metrics",
    metavar="NAMES",
    help="BLEU-1 to BLEU-4, ROUGE-L, CIDEr, CIDEr-D, distinct-1, distinct-2, novel,"
    " vocabulary-use, perplexity; METEOR and SPICE with Java; with commas between them.",
    show_default="those that need no Java",
)
@decoding_options
@click.option("--data", type=AnyPath, help="The data folder, if it has moved.", show_default=False)
@click.option("--images", type=AnyPath, help="Write every image's values, as lines of JSON.")
@click.option("--results", type=AnyPath, help="Write the captions in COCO's results format.")
@device_option
@threads_option
@json_option
def evaluate(
    runs: tuple[Path, ...],
    split: str,
    metrics: str | None,
    data: Path | None,
    images: Path | None,
    results: Path | None,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Caption a split with a trained RUN, and measure the captions against people's.

    Several RUNs decide together: the probability of a word is the average of theirs. Values are of
    all captions together; CIDEr and CIDEr-D are ten times a cosine, and count how rare words are in
    this split's references. Perplexity is that of people's captions, as far as they are encoded.
    """
    from xpcap.evaluation import DEFAULT, evaluate_run, write_images, write_results
    from xpcap.runs.dataset import open_data

    names = DEFAULT if metrics is None else [name.strip() for name in metrics.split(",")]
    opened = open_runs(runs, device)
    how = make_decoder(opened.vocabulary, options)
    found = evaluate_run(opened, open_data(opened, data), split, how, names)
    for path, write in ((images, write_images), (results, write_results)):
        if path is not None and not opened.ranks.rank:
            write(path, found)
            talk(f"written: {path}")
    if as_json:
        show_json({"images": len(found.images), "decoding": used(options), **found.scores.corpus})
        return
    talk(f"{len(found.images)} images of '{split}'")
    for name, value in found.scores.corpus.items():
        show(f"{name:<15} {value:.4f}")
