"""Several ranks in a test: processes that mpirun starts, and threads that stand in for them."""

import functools
import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 100  # in which whatever is tested has long ended

COMMANDS = """
import json, sys
from xpcap.cli import main
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as end:
        if end.code:
            raise
"""
"""A program that runs several commands of xpcap one after the other: MPI starts but once."""


@functools.cache
def mpirun() -> list[str]:
    """The command that starts ranks, more than there are cores if need be."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        return []
    version = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    return [found, *(["--allow-run-as-root", "--oversubscribe"] if "Open MPI" in version else [])]


def missing() -> str:
    if importlib.util.find_spec("mpi4py") is None:
        return "mpi4py is not installed"
    return "" if mpirun() else "there is no mpirun, of Open MPI, MPICH or another MPI"


needs_mpi = pytest.mark.skipif(bool(missing()), reason=missing() or "MPI is there")


def start(*parts, cwd) -> subprocess.CompletedProcess:
    """Start ranks and wait for them; each part is how many, and Python's arguments."""
    command = mpirun()
    for k, (count, words) in enumerate(parts):
        command = [*command, *":"[:k], "-n", str(count), sys.executable, *map(str, words)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=SECONDS,
        env={**os.environ, **threads, "PYTHONPATH": path, "XPCAP_DEVICE": "cpu"},
    )  # fmt: skip


def commands(count, *those, cwd) -> subprocess.CompletedProcess:
    """Run commands of xpcap, each a list of words, one after the other on `count` ranks."""
    words = [[str(word) for word in command] for command in those]
    return start((count, ["-c", COMMANDS, json.dumps(words)]), cwd=cwd)


class ThreadRanks:
    """Ranks that are threads of one process."""

    def __init__(self, rank, size, barrier, slots):
        self.rank, self.size = rank, size
        self._barrier, self._slots = barrier, slots

    def _exchange(self, value):
        self._slots[self.rank] = value
        self._barrier.wait()
        found = list(self._slots)
        self._barrier.wait()
        return found

    def sum(self, array):
        first, *others = self._exchange(array.copy())
        array[...] = sum(others, start=first)

    def any(self, value):
        return any(self._exchange(value))

    def gather(self, value):
        return [pickle.loads(text) for text in self._exchange(pickle.dumps(value))]


def together(count, work):
    """Call `work(ranks)` on so many ranks, and return what it returned; one may fail."""
    barrier, slots = threading.Barrier(count, timeout=SECONDS), [None] * count
    done, failed = [None] * count, []

    def run(rank):
        try:
            done[rank] = work(ThreadRanks(rank, count, barrier, slots))
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            failed.append(error)
            time.sleep(0.2)  # until those that it has met last have left the barrier
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return done
