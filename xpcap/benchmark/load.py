"""Busy processes beside a measurement, and one program with several numbers of threads."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

from xpcap import threads

_SPIN = """
import os, sys
os.nice(int(sys.argv[2]))
while os.getppid() == int(sys.argv[1]):
    for _ in range(10**6):
        pass
"""


@contextlib.contextmanager
def busy_processes(count: int, nice: int = 0) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keep `count` processes of a lower priority by `nice` busy inside the context.

    They end with it, or if this process is killed, within a fraction of a second.
    """
    command = [sys.executable, "-S", "-c", _SPIN, str(os.getpid()), str(nice)]
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(count):
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def by_threads(call: Callable[[int], object]) -> dict[str, Callable[[int], object]]:
    """Return a call with each fixed number of threads that `auto` chooses from, by name."""

    def fixed(number: int) -> Callable[[int], object]:
        def run(k: int) -> None:
            with threads.use_threads(number):
                call(k)

        return run

    numbers = threads.candidates(threads.available())
    return {f"{number} thread{'s'[: number - 1]}": fixed(number) for number in numbers}
