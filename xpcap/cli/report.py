"""`xpcap report`."""

from __future__ import annotations

from pathlib import Path

import click

from xpcap.cli._options import AnyPath, device_option, open_device, show, threads_option

PAGE = "report.html"


@click.command()
@click.argument("run", type=AnyPath)
@click.argument("run2", type=AnyPath, required=False)
@click.option("--split", type=click.Choice(["train", "val"]), default="val", help="Whose images.")
@click.option("--beam", type=click.IntRange(min=1), default=3, help="Width of the beam.")
@click.option(
    "--length-penalty",
    metavar="none|average|gnmt",
    default="none",
    help="What scores of the beam are divided by.",
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=300,
    help="How many images are listed; all are measured.",
)
@click.option("--data", type=AnyPath, help="The data folder, if it has moved.", show_default=False)
@click.option("--out", type=AnyPath, help="The page.", show_default=f"RUN/{PAGE}")
@device_option
@threads_option
def report(
    run: Path,
    run2: Path | None,
    split: str,
    beam: int,
    length_penalty: str,
    count: int,
    data: Path | None,
    out: Path | None,
    device: str,
) -> None:
    """Show what a RUN has learned, or two side by side: one HTML page that opens anywhere.

    Curves, gradients and gates over time, metrics, the best and the worst captions with their
    pictures, beams, how sure the run is of each word, and what in the image spoke for it.
    """
    from xpcap.decoding import Beam, Constraints
    from xpcap.report import check, gather, write_report
    from xpcap.runs import banned_tokens, open_run

    check()
    backend = open_device(device)
    runs = [open_run(folder, backend) for folder in (run, run2) if folder is not None]
    banned = banned_tokens(runs[0].vocabulary)
    how = Beam(width=beam, length_penalty=length_penalty, constraints=Constraints(banned=banned))
    page = out or run / PAGE
    write_report(page, gather(runs, split, how, data, count))
    show(page)
