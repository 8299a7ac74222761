"""xpcap as a process of its own, which can be sent signals."""

import contextlib
import os
import signal
import subprocess
import sys
import time

WITHIN = 60  # seconds, after which a test gives up


@contextlib.contextmanager
def starting():
    """Yield `start(folder, *words)`; what is still running at the end is killed."""
    started = []

    def start(folder, *words):
        started.append(_start(folder, words))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _start(folder, words):
    """Start xpcap in a folder; one thread, the CPU, and Ctrl-C not ignored as in background."""
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return subprocess.Popen(
        [sys.executable, "-m", "xpcap", *map(str, words)],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={
            **os.environ, **threads, "PYTHONPATH": os.pathsep.join(sys.path),
            "XPCAP_DEVICE": "cpu", "XPCAP_COMPILED": "0",
        },
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def wait_for(process, happened):
    """Wait until something has happened, while a process runs."""
    end = time.monotonic() + WITHIN
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def ended(process):
    """Wait for the end of a process; return its status, and the lines it printed to each stream."""
    out, err = process.communicate(timeout=WITHIN)
    return process.returncode, out.splitlines(), err.splitlines()
