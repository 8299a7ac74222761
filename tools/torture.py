"""Kill a training process at random moments, let it go on, and compare with one left in peace.

    python tools/torture.py --kills 200

A captioner learns the built-in scenes with dropout, saved every few steps. Its process is killed
by SIGKILL: one time in four at a moment drawn over its start, in which it reads its data; else at
one drawn over all that it still has to do after its first checkpoint. Every other time it may go on
from such a moment until a half-written file is seen. After each kill every checkpoint there must be
whole, and none older than before. Then it goes on by `xpcap train --resume`; when it has come to
its end, its files must be, byte by byte, those of the undisturbed run: parameters, what Adam
remembers, history. Then the next run begins, until there were as many kills as asked for. Exits
with 1 if anything differs.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from xpcap.data.scenes import make_scenes
from xpcap.errors import XpcapError
from xpcap.runs import LAST
from xpcap.runs.checkpoint import read_checkpoint

OPTIONS = {
    "--hidden": 64, "--wordvec": 32, "--batch-size": 20, "--lr": 0.01, "--dropout": 0.3,
    "--save-every": 3, "--keep": 2,
}  # fmt: skip
PICTURES = {"train": 40, "val": 10}
_SHORTER = 0.9  # the time that training is taken to last, when it has come to its end before a kill
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass
class Result:
    """What happened.

    Parameters
    ----------
    kills, in_writing
        How many, and how many of them left a checkpoint half-written.
    before_training
        How many came before a run's first step was done.
    resumed
        How often a run was gone on with.
    runs
        How many came to their end and were compared.
    faults
        What was not as it should be.
    """

    kills: int = 0
    in_writing: int = 0
    before_training: int = 0
    resumed: int = 0
    runs: int = 0
    faults: list[str] = field(default_factory=list)


class Torture:
    """Trains, kills and compares, in a folder of its own."""

    def __init__(self, place: Path, epochs: int, seed: int) -> None:
        self.place = place
        self.epochs = epochs
        self.result = Result()
        self._rng = random.Random(seed)
        make_scenes(place / "scenes", **PICTURES)
        self._beginning, self._training = self._time("whole")
        self._steps = read_checkpoint(place / "whole" / LAST).state.progress.step

    def run(self, kills: int) -> Iterator[Result]:
        """Yield what has happened so far, after every kill and every run."""
        while self.result.kills < kills:
            name = f"run-{self.result.runs + 1}"
            while self._killed(name):
                yield self.result
                if self.result.kills == kills:
                    self._finish(self._start(name))
                    break
            self.result.runs += 1
            self._compare(name)
            yield self.result

    def _start(self, name: str) -> subprocess.Popen[str]:
        """Begin a run, or go on with it where there is something to go on from."""
        if (self.place / name / LAST).exists():
            words = ["--resume", name]
            self.result.resumed += 1
        else:
            options = {"--data": "./scenes", "--out": name, "--epochs": self.epochs, **OPTIONS}
            words = [str(word) for option in options.items() for word in option]
        return subprocess.Popen(
            [sys.executable, "-m", "xpcap", "train", *words, "--device", "cpu", "--json"],
            cwd=self.place, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env={
                **os.environ, **ONE_THREAD,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "XPCAP_COMPILED": "0",  # numba takes longer to start than a kill is apart
            },
        )  # fmt: skip

    def _time(self, name: str) -> tuple[float, float]:
        """Train in peace; return the seconds until the first checkpoint, and those from then on."""
        begun = time.perf_counter()
        process = self._start(name)
        self._wait(process, lambda: (self.place / name / LAST).exists())
        first = time.perf_counter()
        self._finish(process)
        return first - begun, time.perf_counter() - first

    def _wait(self, process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
        """Wait until something has happened, or the process has ended."""
        while process.poll() is None and not happened():
            time.sleep(0.0002)

    def _finish(self, process: subprocess.Popen[str]) -> None:
        """Wait for a process that nobody kills."""
        _, said = process.communicate()
        if process.returncode:
            raise XpcapError(f"training ended with {process.returncode}: {said.strip()}")

    def _killed(self, name: str) -> bool:
        """Kill a run's process, and look at what it leaves; False if it came to its end before."""
        run, before, number = self.place / name, self._saved(name), self.result.kills
        left, mark = 1 - before / self._steps, _identity(run / LAST)
        process = self._start(name)
        if number % 4:
            self._wait(process, lambda: _identity(run / LAST) != mark)
            seconds = self._rng.uniform(0, left * self._training)
        else:
            seconds = self._rng.uniform(0, self._beginning)
        begun = time.perf_counter()
        self._wait(process, lambda: time.perf_counter() > begun + seconds)
        if number % 2:
            self._wait(process, lambda: _writing(process, run))
        process.kill()
        if process.wait() == 0:
            self._training *= _SHORTER
        if process.returncode >= 0:
            self._finish(process)
            return False
        process.communicate()
        self.result.kills += 1
        self.result.in_writing += _writing(process, run)
        after = self._saved(name)
        self.result.before_training += not after
        if after < before:
            self.result.faults.append(f"{name} fell back from step {before} to {after}")
        return True

    def _saved(self, name: str) -> int:
        """Return the last step that a run has saved, after a look at all its checkpoints."""
        steps = {
            path.name: read_checkpoint(path).state.progress.step
            for path in (self.place / name).glob("*.safetensors")
        }
        return steps.get(LAST, 0)

    def _compare(self, name: str) -> None:
        found, expected = (_contents(self.place / run) for run in (name, "whole"))
        for file in sorted(found.keys() | expected.keys()):
            if found.get(file) != expected.get(file):
                self.result.faults.append(f"{name}: {file} is not that of the undisturbed run")


def _identity(path: Path) -> int | None:
    """Return what tells a file from another that has replaced it."""
    return path.stat().st_mtime_ns if path.exists() else None


def _writing(process: subprocess.Popen[str], run: Path) -> bool:
    """Whether a process is, or was, in the middle of writing a file of a run."""
    return any(run.glob(f".*.{process.pid}.part"))


def _contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir()}


@click.command()
@click.option("--kills", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), default=12, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the moments.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def main(kills: int, epochs: int, seed: int, as_json: bool) -> None:
    """Kill training at random moments, resume it, and compare it with an undisturbed run."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="xpcap-torture-") as place:
        try:
            torture = Torture(Path(place), epochs, seed)
            for result in torture.run(kills):
                if result.kills % 20 == 0 and result.kills:
                    click.echo(f"{result.kills} kills, {result.runs} runs", err=True)
        except XpcapError as error:
            raise click.ClickException(str(error)) from error
    result = torture.result
    seconds = time.perf_counter() - begun
    if as_json:
        click.echo(json.dumps({**vars(result), "seconds": round(seconds, 1)}, indent=2))
    else:
        click.echo(
            f"{result.kills} kills in {seconds:.0f} s: {result.in_writing} left a half-written"
            f" file, {result.before_training} came before the first checkpoint of a step;"
            f" {result.resumed} times a run was gone on with, {result.runs} came to their end"
        )
        click.echo("\n".join(result.faults) or "all are the undisturbed run, bit for bit")
    sys.exit(bool(result.faults))


if __name__ == "__main__":
    main()
