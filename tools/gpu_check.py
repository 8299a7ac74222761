"""Check and time xpcap on a GPU within a given number of minutes.

    PYTHONUNBUFFERED=1 python tools/gpu_check.py --minutes 9
    python tools/gpu_check.py --device cpu       # a rehearsal, on smaller work

Starts from a bare checkout: the package need not be installed, and neither git nor a network is
needed. Each stage (see `gpu_stages.py`) runs in a process of its own with a time limit, so that a
crash, a hang or a sticky CUDA error ends that stage only; a stage that fails is repeated with
CUDA_LAUNCH_BLOCKING=1. Every result is appended to `log.txt` and written to one JSON file as it
comes, in the folder that the environment variable OUT names, else in `tools/results`.

The summary at the end is at most 12,000 characters: a table of the results, then the end of the
output of each stage that failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
SUMMARY = 12_000  # characters
MARK = "RESULT "  # begins a line of a stage's output that is a result, as JSON
WITH_PARENT = """import ctypes, os, signal, sys
try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, on Linux
except (OSError, AttributeError):
    pass
os.execvp(sys.argv[1], sys.argv[1:])"""  # ends a stage with the check, even if that is killed
GRACE = 3.0  # seconds between SIGTERM and SIGKILL
SHORTEST = 10.0  # seconds; with less left, no stage is started


@dataclass(frozen=True)
class Stage:
    """A part of the check.

    Parameters
    ----------
    name
        Of the stage.
    seconds
        Its time limit; the last stage has all that is left.
    command
        What runs it; None for the function of that name in `gpu_stages.py`.
    """

    name: str
    seconds: float
    command: Sequence[str] | None = None


@dataclass
class Outcome:
    """How a stage ended, with what it printed and the results among that."""

    name: str
    status: str = "running"
    seconds: float = 0.0
    results: dict[str, Any] = field(default_factory=dict)
    output: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the stage ended with exit status 0."""
        return self.status == "passed"


STAGES = [
    Stage("versions", 30),
    Stage("kernels", 70),
    Stage("sanitizer", 75),
    Stage("agreement", 60),
    Stage("selfcheck", 40),
    Stage("profile", 90),
    Stage("products", 60),
    Stage("bench_full", 75),
    Stage("bench_bigvocab", 75),
    Stage("bench_seed", 60),
    Stage("epoch", 60),
    Stage("bench_cells", 75),
    Stage("tests", 600),
]


class Log:
    """Writes `log.txt` line by line, and the JSON file of a check at every result."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.json_file = folder / f"{name}.json"
        self._log_file = folder / "log.txt"
        self._lock = threading.Lock()
        self.outcomes: list[Outcome] = []

    def line(self, text: str) -> None:
        """Append a line to the log."""
        with self._lock, self._log_file.open("a", encoding="utf-8") as log:
            log.write(text + "\n")

    def save(self) -> None:
        """Replace the JSON file by all results so far."""
        found = [
            {
                "stage": outcome.name,
                "status": outcome.status,
                "seconds": round(outcome.seconds, 1),
                "results": outcome.results,
                "end": [] if outcome.passed else outcome.output[-60:],
            }
            for outcome in self.outcomes
        ]
        temporary = self.json_file.with_suffix(".tmp")
        with self._lock:
            temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            temporary.replace(self.json_file)


def run_stage(stage: Stage, seconds: float, device: str, log: Log, blocking: bool) -> Outcome:
    """Run a stage in a process of its own and return how it ended."""
    outcome = Outcome(stage.name + (" (blocking)" if blocking else ""))
    log.outcomes.append(outcome)
    log.line(f"=== {outcome.name}, at most {seconds:.0f} s")
    command = stage.command or [
        sys.executable, str(Path(__file__).with_name("gpu_stages.py")), stage.name, device
    ]  # fmt: skip
    paths = [ROOT, ROOT / "tools", ROOT / "tests", ROOT / "tests" / "cuda"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "XPCAP_COMPILED": "0",
        "STAGE_SECONDS": str(seconds),
    }
    if blocking:
        environment["CUDA_LAUNCH_BLOCKING"] = "1"
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_PARENT, *command], cwd=ROOT, env=environment,
        text=True, errors="replace", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    reader = threading.Thread(target=_read, args=(process.stdout, outcome, log), daemon=True)
    reader.start()
    try:
        code = process.wait(seconds)
        outcome.status = "passed" if code == 0 else _ending(code)
    except subprocess.TimeoutExpired:
        outcome.status = f"stopped after {seconds:.0f} s"
    finally:
        _end(process)
    reader.join(GRACE)
    if process.stdout is not None and not reader.is_alive():
        process.stdout.close()
    outcome.seconds = time.monotonic() - start
    log.line(f"=== {outcome.name}: {outcome.status}, {outcome.seconds:.1f} s")
    log.save()
    return outcome


def _read(lines: IO[str], outcome: Outcome, log: Log) -> None:
    """Log what a stage prints, line by line, and save each result."""
    for line in lines:
        text = line.rstrip("\n")
        log.line(text)
        if text.startswith(MARK):
            try:
                outcome.results.update(json.loads(text.removeprefix(MARK)))
            except ValueError:  # cut short by a crash
                outcome.output.append(text)
            log.save()
        else:
            outcome.output.append(text)


def _ending(code: int) -> str:
    return f"exit status {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"


def _end(process: subprocess.Popen[str]) -> None:
    """End a stage's process and all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue


def check(stages: Sequence[Stage], minutes: float, device: str, log: Log) -> bool:
    """Run stages within a number of minutes; return whether all have passed."""
    deadline = time.monotonic() + 60 * minutes - GRACE
    for stage in stages:
        for blocking in (False, True):
            left = deadline - time.monotonic()
            if left < SHORTEST:
                log.outcomes.append(Outcome(stage.name, "not run: no time left"))
                break
            outcome = run_stage(stage, min(stage.seconds, left), device, log, blocking)
            print(f"{outcome.name:<24}{outcome.status:<22}{outcome.seconds:6.1f} s", flush=True)
            if outcome.passed or stage.name == "tests" or device == "cpu":
                break
    log.save()
    return all(outcome.passed for outcome in log.outcomes)


def summary(outcomes: Sequence[Outcome], limit: int = SUMMARY) -> str:
    """Return a table of all results and the output of failures, in at most `limit` characters."""
    failures = [outcome for outcome in outcomes if not outcome.passed and outcome.output]
    share = limit // 2 // max(1, len(failures))
    ends = []
    for outcome in failures:
        text = "\n".join(outcome.output)
        if len(text) > share:
            text = "[...]\n" + text[-share:]
        ends.append(f"--- {outcome.name}: {outcome.status}\n{text}")
    failed = "\n".join(ends)
    rows = []
    for outcome in outcomes:
        rows.append(f"{outcome.name}: {outcome.status} ({outcome.seconds:.0f} s)")
        rows += [f"  {key:<44} {_shown(value)}" for key, value in outcome.results.items()]
    table = "\n".join(rows)
    room = limit - len(failed) - 40
    if len(table) > room:
        table = table[:room].rsplit("\n", 1)[0] + "\n[... the rest is in log.txt]"
    return f"{table}\n{failed}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key} {_shown(part)}" for key, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; the exit status is 1 if a stage failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="gpu", help="gpu, gpu:K, or cpu for a rehearsal")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all stages together")
    names = [stage.name for stage in STAGES]
    parser.add_argument("--stage", action="append", choices=names, help="only this; repeatable")
    chosen = parser.parse_args(arguments)
    folder = Path(os.environ.get("OUT") or Path(__file__).with_name("results"))
    log = Log(folder, f"{time.strftime('%Y-%m-%d-%H%M', time.gmtime())}-{chosen.device}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    stages = [stage for stage in STAGES if not chosen.stage or stage.name in chosen.stage]
    passed = check(stages, chosen.minutes, chosen.device, log)
    print(summary(log.outcomes))
    print(log.json_file)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
