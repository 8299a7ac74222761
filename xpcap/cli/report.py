"""`xpcap report`."""

from __future__ import annotations

from pathlib import Path

import click

from xpcap.cli import _options as common
from xpcap.cli._progress import stages


@click.command()
@click.argument("run", type=common.AnyPath)
@click.argument("run2", type=common.AnyPath, required=False)
@common.split_option
@common.option("--beam", 3, "Beam width.", type=common.Positive)
@common.length_penalty_option
@common.option(
    "--count", 300, "Number of images listed; metrics are of all images.", type=common.Positive
)
@common.data_option
@common.path("--out", "HTML file to write.", show_default="RUN/report.html")
@common.compute_options
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
    """Show what a RUN has learned, or compare two, in one self-contained HTML page.

    The best, the worst and other captions with their images, beams, word probabilities,
    attributions and attention; metrics; loss curves; gradients and gates over time; of a RUN made
    with --from also its captions before.
    """
    from xpcap.decoding import Beam, Constraints
    from xpcap.report import check, gather, write_report
    from xpcap.runs import banned_tokens, open_run

    check()
    backend = common.open_device(device)
    runs = [open_run(folder, backend) for folder in (run, run2) if folder is not None]
    constraints = Constraints(banned=banned_tokens(runs[0].vocabulary))
    decoder = Beam(width=beam, length_penalty=length_penalty, constraints=constraints)
    page = out or runs[0].folder / "report.html"
    with stages() as progress:
        contents = gather(runs, split, decoder, data, count, progress)
    write_report(page, contents)
    common.print_result(page)
