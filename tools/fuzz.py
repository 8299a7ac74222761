"""Load thousands of broken and hostile files, and count what goes wrong.

    python tools/fuzz.py                                  # at least 20,000 cases of all loaders
    python tools/fuzz.py --loader run --cases 5000 --seed 1

A case passes if the file opens, or is refused with an `XpcapError` of one line that holds nothing a
terminal obeys: without a warning, within 1 s of processor time, with at most 500 MB resident and at
most 500 MB more of address space, and without running out of memory. Files are loaded in a process
of its own, so that a crash or a hang is a failure too. Those that fail are kept. Exits with 1 if
one failed.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzzing.changes import generated  # noqa: E402
from fuzzing.child import Child  # noqa: E402
from fuzzing.loaders import LOADERS  # noqa: E402
from hypothesis import given, seed  # noqa: E402

from xpcap.errors import printable  # noqa: E402


class Row(NamedTuple):
    """What became of a loader's cases: how many, the slowest in s, the peak in MB, the faults."""

    cases: int
    opened: int
    slowest: float
    peak: float
    faults: list[str]


def fuzz(name: str, count: int, number: int, folder: Path, kept: Path) -> Row:
    """Try one loader.

    Parameters
    ----------
    name
        Of the loader.
    count, number
        How many cases are drawn, and from which seed.
    folder
        Empty; the loader's files are made here.
    kept
        Where files that fail are kept.
    """
    loader = LOADERS[name]
    path = loader.make(folder)
    valid = path.read_bytes()
    child, outcomes, faults = Child(), [], []

    def check(content: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        outcome = child.load(name, path)
        outcomes.append(outcome)
        if outcome.fault:
            kept.mkdir(parents=True, exist_ok=True)
            file = kept / f"{name.replace(', ', '-').replace(' ', '-')}-{number}-{len(outcomes)}"
            file.write_bytes(content)
            faults.append(f"{file}: {outcome.fault}")

    whole = child.load(name, path)
    if not whole.opened or whole.fault:
        faults.append(f"the valid file is not opened: {whole.fault}")
    seed(number)(generated(count)(given(loader.changed(valid))(check)))()
    child.close()
    return Row(
        len(outcomes),
        sum(outcome.opened for outcome in outcomes),
        max(outcome.seconds for outcome in outcomes),
        max(outcome.megabytes for outcome in outcomes),
        faults,
    )


@click.command()
@click.option("--cases", default=20000, show_default=True, help="In all; as many of each loader.")
@click.option("--seed", "number", default=0, show_default=True, help="Of the draws.")
@click.option("--loader", "names", multiple=True, help="Only this one; may be given several times.")
@click.option("--keep", type=click.Path(path_type=Path), help="Where files that fail are kept.")
def main(cases: int, number: int, names: tuple[str, ...], keep: Path | None) -> None:
    """Load broken and hostile files."""
    warnings.simplefilter("ignore")  # of libraries that write such files
    unknown = set(names) - LOADERS.keys()
    if unknown:
        raise click.UsageError(f"no loader {', '.join(unknown)}; expected {', '.join(LOADERS)}")
    chosen = [name for name in names or LOADERS if not LOADERS[name].missing]
    for name in names or LOADERS:
        if missing := LOADERS[name].missing:
            click.echo(f"{name}: left out without {', '.join(missing)}")
    each = -(-cases // len(chosen))
    kept = keep or Path(tempfile.gettempdir()) / "xpcap-fuzz"
    begun, rows = time.perf_counter(), []
    click.echo(
        f"{'loader':<26} {'cases':>6} {'opened':>7} {'refused':>8} {'slowest':>9} {'peak':>7}"
    )
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            row = fuzz(name, each, number, Path(folder).resolve(), kept)
        rows.append(row)
        click.echo(
            f"{name:<26} {row.cases:>6} {row.opened:>7} {row.cases - row.opened:>8}"
            f" {row.slowest:>7.3f} s {row.peak:>4.0f} MB"
        )
        for fault in row.faults:
            click.echo(f"  FAILED {printable(fault)}")
    failed = sum(len(row.faults) for row in rows)
    click.echo(
        f"{sum(row.cases for row in rows)} cases in {time.perf_counter() - begun:.0f} s, seed"
        f" {number}: slowest {max(row.slowest for row in rows):.3f} s, peak"
        f" {max(row.peak for row in rows):.0f} MB, {failed} failed"
    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
