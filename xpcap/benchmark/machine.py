"""The machine that is measured: its processor, processes that keep it busy, and threads."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from xpcap import threads

_WIDEST_FIRST = {
    "avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sse2": "SSE2", "sve": "SVE",
    "asimd": "NEON",
}  # fmt: skip
"""Vector instruction sets by their flags in Linux's /proc/cpuinfo."""
_SPIN = """
import os, sys
os.nice(int(sys.argv[2]))
while os.getppid() == int(sys.argv[1]):
    for _ in range(10**6):
        pass
"""


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name and, on Linux, its widest vector instruction set."""
    try:
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
    except OSError:
        lines = []
    found = {key.strip(): value.strip() for key, _, value in lines}
    name = found.get("model name") or platform.processor() or platform.machine()
    flags = (found.get("flags") or found.get("Features") or "").split()
    vectors = [title for flag, title in _WIDEST_FIRST.items() if flag in flags]
    return ", ".join([name, *vectors[:1]])


@contextlib.contextmanager
def busy_processes(count: int, nice: int = 0) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keep `count` processes of niceness `nice` busy inside the context.

    They are killed at its end; if this process is killed, they exit within a fraction of a second.
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


def by_threads(
    name: str,
    call: Callable[[int], object],
    use: Callable[[int], AbstractContextManager[object]] = threads.use_threads,
) -> dict[str, Callable[[int], object]]:
    """Return a call with 1, 2, 4, ... threads, fewer than this process can use.

    With N threads, `name` becomes `name, N`. `call` is called with the number of a batch; `use`
    returns a context in which a number of threads is used.
    """

    def fixed(number: int) -> Callable[[int], object]:
        def run(k: int) -> None:
            with use(number):
                call(k)

        return run

    numbers = [2**k for k in range((threads.available() - 1).bit_length())]
    return {f"{name}, {number}": fixed(number) for number in numbers}
