"""SIGINT and SIGTERM during training, in a process of its own and in this one."""

import os
import re
import shutil
import signal
import sys
import threading

import pytest
from processes import ended, starting, wait_for
from runs import begin, content, resume, same, stopping
from tiny import make_tiny

from xpcap.errors import Stopped
from xpcap.runs.checkpoint import read_checkpoint
from xpcap.signals import noted_signals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are those of POSIX")

SMALL = ["--hidden", 8, "--wordvec", 4, "--batch-size", 10, "--lr", 0.02]
ENDLESS = [*SMALL, "--schedule", "constant", "--epochs", 10**6]


@pytest.fixture
def place(tmp_path):
    make_tiny(tmp_path / "tiny")
    return tmp_path


@pytest.fixture
def start():
    with starting() as start:
        yield start


def step_of(run):
    return read_checkpoint(run / "last.safetensors").state.progress.step


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_a_step_and_names_the_resume_command(start, place, number, status):
    run = place / "my run"
    process = start(place, "train", "--data", "tiny", "--out", "my run", *ENDLESS)
    wait_for(process, lambda: (run / "best.safetensors").exists())
    process.send_signal(number)
    found, out, err = ended(process)
    assert (found, out) == (status, []), err
    stopped = re.fullmatch(
        r"xpcap: stopped after step (\d+); the run can be resumed: xpcap train --resume 'my run'",
        err[-1],
    )
    assert stopped, err
    step = int(stopped[1])
    assert step_of(run) == step
    assert not [path for path in run.iterdir() if path.suffix == ".part"]

    epochs = step // 5 + 2
    again = start(place, "train", "--resume", "my run", "--epochs", epochs, "--json")
    found, out, err = ended(again)
    assert found == 0, err
    whole = ["--out", "whole", *SMALL, "--schedule", "constant", "--epochs", epochs]
    assert ended(start(place, "train", "--data", "tiny", *whole))[0] == 0
    same(run, place / "whole")


def test_sigterm_while_data_are_opened(start, place):
    begin(place / "tiny", place / "whole", epochs=3)
    with pytest.raises(Stopped):
        begin(place / "tiny", place / "run", epochs=3, watch=stopping(count=3))
    before = content(place / "run")
    process = start(place, "train", "--resume", "run")
    assert process.stderr.readline() == "device: cpu\n"
    process.send_signal(signal.SIGTERM)
    found, out, err = ended(process)
    assert (found, out) == (143, []), err
    if err[-1] == "xpcap: terminated":
        assert content(place / "run") == before
    else:
        assert "xpcap: stopped after step" in err[-1]
    resume(place / "run")
    same(place / "run", place / "whole")


def test_a_second_signal_during_saving_keeps_the_previous_checkpoint(place, monkeypatch):
    """Both come while a checkpoint is written."""
    run, fsync, seen = place / "run", os.fsync, []

    def interrupted(descriptor):
        seen.append(descriptor)
        if len(seen) == 8:
            shutil.copytree(run, place / "before")
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        fsync(descriptor)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", interrupted)
        begin(place / "tiny", run)
    parts = [path for path in (place / "before").iterdir() if path.suffix == ".part"]
    assert len(parts) == 1  # a file was being written
    parts[0].unlink()
    same(run, place / "before")
    resume(run)
    begin(place / "tiny", place / "whole")
    same(run, place / "whole")


def test_a_second_signal_goes_to_the_previous_handler():
    called = []

    def outside(number, frame):
        called.append(number)
        raise Stopped("now", number)

    before = signal.signal(signal.SIGTERM, outside)
    try:
        with pytest.raises(Stopped, match="now"), noted_signals() as received:
            signal.raise_signal(signal.SIGINT)
            assert (received, called) == ([signal.SIGINT], [])
            signal.raise_signal(signal.SIGTERM)
        assert called == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is outside
    finally:
        signal.signal(signal.SIGTERM, before)


def test_handlers_are_restored_after_training(place):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped):
        begin(place / "tiny", place / "run", watch=stopping())
    begin(place / "tiny", place / "other")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_training_in_another_thread_installs_no_handlers(place):
    thread = threading.Thread(target=begin, args=(place / "tiny", place / "run"))
    thread.start()
    thread.join()
    begin(place / "tiny", place / "whole")
    same(place / "run", place / "whole")
