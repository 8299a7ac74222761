"""Signals that arrive while a command runs, and while its process exits."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from processes import WITHIN, ended, starting, wait_for
from tiny import make_tiny

from xpcap.data.scenes.build import cache_folder
from xpcap.errors import Stopped
from xpcap.signals import Signalled, ended_by_signals, noted_signals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are those of POSIX")

BOTH = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
LONG = 20  # seconds in which an exception that was lost is raised again


@pytest.fixture
def start():
    with starting() as start:
        yield start


@pytest.mark.parametrize(("number", "status", "message"), BOTH)
def test_a_signal_while_scenes_are_drawn_leaves_no_files(start, tmp_path, number, status, message):
    process = start(tmp_path, "train", "--data", "scenes", "--out", "run")
    cache = cache_folder()
    wait_for(process, lambda: any(cache.glob(".*.part")))
    process.send_signal(number)
    found, out, err = ended(process)
    assert (found, out, err[-1]) == (status, [], f"xpcap: {message}")
    assert list(cache.iterdir()) == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_exception_that_c_code_drops_is_raised_again(number):
    """Cython drops errors in what it does first in a module, as in `numpy.random`."""
    lost = []
    with pytest.raises(Signalled) as caught, ended_by_signals():
        try:
            signal.raise_signal(number)
        except Signalled as error:
            lost.append(error.number)
        time.sleep(LONG)
    assert lost == [number]
    assert caught.value.number == number
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cleanup_is_not_interrupted_again(number):
    done = []
    with pytest.raises(Signalled), ended_by_signals():
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.5)
            try:
                raise ValueError
            except ValueError:
                time.sleep(0.3)
            done.append(True)
    assert done == [True]


def test_later_signals_do_not_replace_stopped():
    with pytest.raises(Stopped, match="as it was") as caught, ended_by_signals():
        try:
            raise Stopped("as it was", signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
    assert caught.value.signal == signal.SIGTERM


@pytest.mark.parametrize(("number", "status"), [row[:2] for row in BOTH])
def test_a_signal_after_the_command_ends_the_process_at_once(number, status):
    code = (
        "import os, time\nfrom xpcap.signals import ended_by_signals\n"
        f"with ended_by_signals(): pass\nos.kill(os.getpid(), {number:d})\ntime.sleep({WITHIN})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=WITHIN, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_a_flood_of_signals_leaves_one_line_and_exit_status(start, tmp_path):
    """Signals arrive before, while and after the run is stopped, and while the process exits."""
    make_tiny(tmp_path / "tiny")
    sizes = ["--hidden", 8, "--wordvec", 4, "--batch-size", 10, "--epochs", 10**6]
    process = start(tmp_path, "train", "--data", "tiny", "--out", "run", *sizes)
    wait_for(process, lambda: (tmp_path / "run" / "best.safetensors").exists())
    end = time.monotonic() + WITHIN
    while process.poll() is None and time.monotonic() < end:
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    found, out, err = ended(process)
    assert (found, out) == (130, [])
    assert not any("Traceback" in line for line in err), err
    assert sum(line.startswith("xpcap: ") for line in err) <= 1
    again = start(tmp_path, "inspect", "run")
    assert ended(again)[0] == 0


@pytest.mark.parametrize("handling", [ended_by_signals, noted_signals])
def test_an_ignored_signal_stays_ignored(handling):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with handling() as received:
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.raise_signal(signal.SIGINT)
    assert not received
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_threads_leave_handlers_alone():
    before, found = signal.getsignal(signal.SIGTERM), []

    def run():
        with ended_by_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]
    assert signal.getsignal(signal.SIGTERM) == before
