"""A process in which files are loaded and watched, so that what crashes or hangs is only a fault.

    python -m fuzzing.child loaders|faults     reads lines of {"loader", "path"}, and answers each
                                               with an `Outcome`

Time is that of the processor, as others may be at work on it; a case that takes 30 s by the clock
hangs. Peak memory is the largest resident size of the whole process during a case, libraries
included, and the growth of its address space, which also counts what is asked for and never
touched. Linux only; elsewhere neither is known.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

from xpcap.errors import XpcapError, printable

SECONDS, MEGABYTES = 1.0, 500
HANGS = 30.0  # seconds by the clock, after which a case is given up
READY = b"ready\n"
_RESERVE = 2**31  # bytes of address space that a case may ask for, so that the machine survives it
_STATUS = Path("/proc/self/status")
_ROOM = ("memory allocation", "bad_alloc", "bad allocation", "out of memory", "unable to allocate")


class Outcome(NamedTuple):
    """How a case ended.

    Parameters
    ----------
    opened
        Whether the file was opened; it was refused, if not.
    fault
        What was wrong with that, or None.
    seconds
        Of processor time that it took.
    megabytes
        The peak of resident memory.
    """

    opened: bool
    fault: str | None
    seconds: float
    megabytes: float


class Child:
    """The process, seen from outside; it is started when needed, and anew after a fault.

    Parameters
    ----------
    what
        `"loaders"` or `"faults"`.
    seconds
        Of processor time that a case may take.
    hangs
        Seconds by the clock after which it is given up.
    """

    def __init__(self, what="loaders", seconds=SECONDS, hangs=HANGS):
        self.what = what
        self.seconds = seconds
        self.hangs = hangs
        self._process = None

    def load(self, loader, path):
        """Let it load a file.

        Returns
        -------
        Outcome
            Of one that took too long, the shorter time of two counts.
        """
        outcome = self._load(loader, path)
        if outcome.fault is None and outcome.seconds > self.seconds:
            again = self._load(loader, path)
            outcome = min(outcome, again, key=lambda one: one.seconds)
            if outcome.seconds > self.seconds:
                return outcome._replace(fault=f"takes {outcome.seconds:.1f} s")
        return outcome

    def _load(self, loader, path):
        if self._process is None:
            self._start()
        request = json.dumps({"loader": loader, "path": str(path)})
        self._process.stdin.write(f"{request}\n".encode())
        self._process.stdin.flush()
        begun = time.perf_counter()
        if not select.select([self._process.stdout], [], [], self.hangs)[0]:
            self.close()
            return Outcome(False, "hangs", time.perf_counter() - begun, 0)
        answer = self._process.stdout.readline()
        if not answer:
            status = self._process.wait()
            self.close()
            return Outcome(False, f"ends the process ({status})", time.perf_counter() - begun, 0)
        outcome = Outcome(*json.loads(answer))
        if outcome.fault:
            self.close()  # what went wrong shall not follow the next case
        return outcome

    def _start(self):
        folders = [str(Path(__file__).resolve().parents[1]), *filter(None, sys.path)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fuzzing.child", self.what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(folders),
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
                "MALLOC_ARENA_MAX": "1",
            },
        )
        if self._process.stdout.readline() != READY:
            raise RuntimeError("the process that loads files does not start")

    def close(self):
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait()
            self._process = None


def fault_of(error):
    """Say what is wrong with an exception that loading a file has raised, or None."""
    if not isinstance(error, XpcapError):
        return f"{type(error).__name__}: {error}"
    message = str(error)
    if not message or printable(message) != message:
        return f"not one plain line: {message!r}"
    cause = error
    while cause is not None:
        if isinstance(cause, MemoryError) or any(word in str(cause).lower() for word in _ROOM):
            return f"memory was asked for before sizes were checked: {cause}"
        cause = cause.__cause__ or cause.__context__
    return None


def _memory():
    """Return the present and the largest address space, and the largest resident size, in MB."""
    if not _STATUS.exists():
        return 0.0, 0.0, 0.0
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    size, most, resident = (int(fields[name].split()[0]) for name in ("VmSize", "VmPeak", "VmHWM"))
    return size / 1000, most / 1000, resident / 1000


def _watched(load, path, printed):
    before, peak_before, _ = _memory()
    if _STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")  # the largest resident size begins anew
    begun, fault, opened = time.process_time(), None, False
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            load(path)
            opened = True
        except Exception as error:
            fault = fault_of(error)
    seconds = time.process_time() - begun
    _, peak, resident = _memory()
    grown = peak - before if peak > peak_before else 0
    if fault is None and said:
        fault = f"warns: {said[0].message}"
    if fault is None and os.fstat(printed).st_size:
        fault = f"prints: {os.pread(printed, 200, 0)!r}"
    if fault is None and max(resident, grown) > MEGABYTES:
        fault = f"takes {resident:.0f} MB, and {grown:.0f} MB more of address space than before"
    os.ftruncate(printed, 0)
    return Outcome(opened, fault and fault[:500], seconds, resident)


def _limit():
    """Let a case that asks for too much fail before the machine does."""
    import resource

    size = int(_memory()[0] * 1000 * 1000)
    resource.setrlimit(resource.RLIMIT_AS, (size + _RESERVE, size + _RESERVE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main():
    """Answer requests until there are no more."""
    if sys.argv[1] == "faults":
        from fuzzing.faults import FAULTS

        loads = {fault.__name__: fault for fault in FAULTS}
    else:
        from fuzzing.loaders import LOADERS

        loads = {name: loader.load for name, loader in LOADERS.items()}
    answers = os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryFile() as file:
        printed = file.fileno()
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        if _STATUS.exists():
            _limit()
        answers.write(READY.decode())
        answers.flush()
        for line in sys.stdin:
            request = json.loads(line)
            outcome = _watched(loads[request["loader"]], Path(request["path"]), printed)
            answers.write(f"{json.dumps(outcome)}\n")
            answers.flush()


if __name__ == "__main__":
    main()
