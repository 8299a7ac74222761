"""`xpcap average`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from xpcap.cli._options import AnyPath, path, print_message, print_result


@click.command()
@click.argument("run", type=AnyPath)
@click.option(
    "--last",
    type=click.IntRange(min=2),
    help="Number of checkpoints to average.",
    show_default="all that are kept",
)
@path("--out", "Checkpoint file to write, a new name.", show_default="RUN/average.safetensors")
def average(run: Path, last: int | None, out: Path | None) -> None:
    """Average the parameters of the last checkpoints of a RUN.

    Train with --keep 5 to keep those of the last five epochs. The mean is a checkpoint that other
    commands take for a RUN; it often captions better than each of those averaged.
    """
    from xpcap.runs import average_checkpoints

    file = average_checkpoints(run, out, last=last)
    print_result(file)
    print_message(f"next: {shlex.join(['xpcap', 'evaluate', str(file)])}")
