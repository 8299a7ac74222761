"""`xpcap evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from xpcap.cli import _options as common
from xpcap.cli._decoding import decoding_options, search_of, used


@click.command()
@common.runs_argument
@common.split_option
@click.option(
    "--metrics",
    metavar="NAMES",
    help="Comma-separated metrics: BLEU-1 to BLEU-4, ROUGE-L, CIDEr, CIDEr-D, distinct-1,"
    " distinct-2, novel, vocabulary-use, perplexity; with Java, METEOR and SPICE.",
    show_default="those that need no Java",
)
@decoding_options
@common.data_option
@common.path("--images", "Write each image's values to this file, as JSON lines.")
@common.path("--results", "Write the captions to this file, in COCO's format.")
@common.compute_options
@common.json_option
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
    """Caption a split with a trained RUN, and compare the captions with the references.

    Several RUNs form an ensemble: their word probabilities are averaged. Values are over all
    captions together; CIDEr and CIDEr-D range from 0 to 10, with document frequencies of this
    split's references. Perplexity is that of the encoded references.
    """
    from xpcap.evaluation import DEFAULT, evaluate_run, write_images, write_results
    from xpcap.runs.dataset import open_data

    run = common.open_runs(runs, device)
    decoder = search_of(run, options)
    found = evaluate_run(run, open_data(run, data), split, decoder, metrics or DEFAULT)
    for path, write in ((images, write_images), (results, write_results)):
        if path is not None and not run.ranks.rank:
            write(path, found)
            common.print_message(f"written: {path}")
    values, count = found.scores.corpus, len(found.images)
    if as_json:
        common.print_json({"images": count, "decoding": used(options, decoder), **values})
        return
    common.print_message(f"{count} images of '{split}'")
    if count == 1 and any(name.startswith("CIDEr") for name in values):
        common.print_message(
            "CIDEr of a single image is 0: it weighs words by how few other images have them"
        )
    for name, value in values.items():
        common.print_result(f"{name:<15} {value:.4f}")
