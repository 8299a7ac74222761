"""When checkpoints are written, that one process at a time does, and what if they cannot be."""

import errno
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from commands import one_line
from processes import ended, starting, wait_for
from runs import STEPS, Killed, at, begin, content, resume, same, stopping
from tiny import make_tiny

import xpcap.training.saving
from xpcap.errors import ConfigurationError, DataError, Stopped
from xpcap.files import new_file
from xpcap.runs import BEST, HISTORY, LAST, open_run
from xpcap.runs.checkpoint import read_checkpoint
from xpcap.runs.folder import locked
from xpcap.training.history import read_history
from xpcap.training.saving import Saving
from xpcap.training.trainer import Priority


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "tiny")


def written(monkeypatch):
    """Return the list of all checkpoints that are written from now on: names and steps."""
    found, write = [], xpcap.training.saving.write_checkpoint

    def noted(path, checkpoint):
        found.append((path.name, checkpoint.state.progress.step))
        write(path, checkpoint)

    monkeypatch.setattr(xpcap.training.saving, "write_checkpoint", noted)
    return found


def test_each_epoch_the_best_is_written_before_the_last(tiny, tmp_path, monkeypatch):
    found = written(monkeypatch)
    begin(tiny, tmp_path / "run")
    assert found == [(BEST, 5), (LAST, 5), (BEST, 10), (LAST, 10)]


@pytest.mark.parametrize("every", [1, 2, 3, 5, 100])
def test_every_so_many_steps(tiny, tmp_path, monkeypatch, every):
    found = written(monkeypatch)
    begin(tiny, tmp_path / "run", saving=Saving(steps=every))
    expected = []
    for step in range(1, 2 * STEPS + 1):
        expected += [step] * (step % every == 0) + [step] * (step % STEPS == 0)
    assert [step for name, step in found if name == LAST] == expected


def test_every_so_many_minutes(tiny, tmp_path, monkeypatch):
    """A step takes a minute here, a validation none; what counts is the time since the last."""
    now = [1000.0]
    monkeypatch.setattr(xpcap.training.saving.time, "monotonic", lambda: now[0])

    def pass_time(trainer):
        now[0] += 60

    def watch(trainer):
        trainer.on("step", pass_time, Priority.CHECK)

    found = written(monkeypatch)
    begin(tiny, tmp_path / "run", saving=Saving(minutes=1.5), watch=watch)
    assert [step for name, step in found if name == LAST] == [2, 4, 5, 7, 9, 10]


def steps_kept(run):
    return sorted(int(path.name[5:13]) for path in run.glob("step-*.safetensors"))


@pytest.mark.parametrize(
    ("keep", "kept"), [(0, []), (1, [10]), (2, [9, 10]), (3, [6, 9, 10]), (9, [3, 5, 6, 9, 10])]
)
def test_earlier_checkpoints_are_kept(tiny, tmp_path, keep, kept):
    run = tmp_path / "run"
    begin(tiny, run, saving=Saving(steps=3, keep=keep))
    assert steps_kept(run) == kept
    for step in kept:
        path = run / f"step-{step:08d}.safetensors"
        assert read_checkpoint(path).state.progress.step == step
        assert open_run(path).folder == run
    if kept:
        last = (run / f"step-{kept[-1]:08d}.safetensors").read_bytes()
        assert last == (run / LAST).read_bytes()


def test_fewer_are_kept_when_fewer_are_asked_for(tiny, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        begin(tiny, run, saving=Saving(steps=1, keep=9), watch=stopping(count=7))
    assert steps_kept(run) == [1, 2, 3, 4, 5, 6, 7]
    resume(run, change=lambda options: replace(options, saving=Saving(steps=2, keep=2)))
    assert steps_kept(run) == [8, 10]


@pytest.mark.parametrize(
    ("saving", "message"),
    [
        ({"steps": 0}, "save_every must be at least 1, a whole number, got 0"),
        ({"minutes": float("inf")}, r"save_every must be a number in \(0, inf\), got inf"),
        ({"minutes": float("nan")}, "save_every must be a number in .*, got nan"),
        ({"keep": -1}, "keep must be at least 0, a whole number, got -1"),
    ],
)
def test_how_often_is_checked(saving, message):
    with pytest.raises(ConfigurationError, match=message):
        Saving(**saving)


# one process at a time


def test_a_folder_in_use_is_refused(tiny, tmp_path):
    run = tmp_path / "run"
    refused = []

    def again(trainer):
        with pytest.raises(DataError, match=r"run is in use: another xpcap is at work on it"):
            resume(run)
        refused.append(trainer.step)

    begin(tiny, tmp_path / "whole")
    begin(tiny, run, watch=at("step", 3, again))
    assert refused == [3]
    same(run, tmp_path / "whole")
    with locked(run):
        before = content(run)
        with pytest.raises(DataError, match="is in use"):
            resume(run)
        assert content(run) == before
    resume(run)


def test_two_processes_on_one_folder(tiny, tmp_path, call):
    sizes = ["--hidden", 8, "--wordvec", 4, "--batch-size", 10, "--epochs", 10**6]
    with starting() as start:
        first = start(tmp_path, "train", "--data", "tiny", "--out", "run", *sizes)
        wait_for(first, lambda: (tmp_path / "run" / BEST).exists())
        result = call("train", "--resume", "run", "--device", "cpu")
        one_line(result, "xpcap: run is in use: another xpcap is at work on it")
        first.terminate()
        status, _, err = ended(first)
        assert status == 143, err
    step = read_checkpoint(tmp_path / "run" / LAST).state.progress.step
    assert call("train", "--resume", "run", "--epochs", step // STEPS + 1).exit_code == 0


def test_where_there_are_no_locks_training_goes_on(tiny, tmp_path, monkeypatch):
    def unknown(*args):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", unknown)
    begin(tiny, tmp_path / "run")


# killed or failing at every single thing that is done to the disk


class Disk:
    """Counts what is done to the disk, and acts before each of it."""

    def __init__(self, monkeypatch):
        self.count = 0
        self.act = lambda count: None
        for owner, name in ((Path, "write_bytes"), (Path, "replace"), (Path, "write_text"),
                            (Path, "unlink"), (os, "fsync"), (os, "link")):  # fmt: skip
            self._watch(monkeypatch, owner, name)

    def _watch(self, monkeypatch, owner, name):
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            self.count += 1
            self.act(self.count)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)


OFTEN = {"saving": Saving(steps=2, keep=2), "dropout": 0.2}


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def moments(disk, tiny, tmp_path):
    """Train undisturbed; return how often something is done to the disk once training has begun."""
    begun = []
    begin(tiny, tmp_path / "whole", watch=lambda trainer: begun.append(disk.count), **OFTEN)
    assert disk.count - begun[0] > 60
    return range(begun[0] + 1, disk.count + 1)


def ends_as_if_undisturbed(run, whole):
    resume(run)
    same(run, whole)


def test_killed_at_any_moment_it_goes_on(tiny, tmp_path, disk):
    """Also where the name of the dead process is still there as that of a half-written file."""

    def kill(count):
        if count == moment:
            raise Killed

    for moment in moments(disk, tiny, tmp_path):
        run = tmp_path / f"run-{moment}"
        disk.count, disk.act = 0, kill
        with pytest.raises(Killed):
            begin(tiny, run, **OFTEN)
        disk.act = lambda count: None
        (run / f".{LAST}.{os.getpid()}.part").write_bytes(b"half of it")
        for path in run.glob("*.safetensors"):
            read_checkpoint(path)
        ends_as_if_undisturbed(run, tmp_path / "whole")


ERRORS = [errno.EIO, errno.ENOSPC, errno.EROFS]


def test_an_error_at_any_moment_is_a_warning(tiny, tmp_path, disk):
    """What could not be written is written the next time, and at the end all is there."""

    def fail(count):
        if count == moment:
            number = ERRORS[moment % len(ERRORS)]
            raise OSError(number, os.strerror(number))

    for moment in moments(disk, tiny, tmp_path):
        run, warned = tmp_path / f"run-{moment}", []
        disk.count, disk.act = 0, fail

        def whole(trainer, run=run):
            for path in run.glob("*.safetensors"):
                read_checkpoint(path)

        begin(tiny, run, watch=lambda trainer: trainer.on("step", whole), warn=warned, **OFTEN)
        disk.act = lambda count: None
        assert len(warned) == 1, (moment, warned)
        assert re.match(r"warning: cannot write .*; training continues$", warned[0])
        found, expected = content(run), content(tmp_path / "whole")
        for name in (HISTORY, LAST, BEST):
            assert found[name] == expected[name], (moment, name)
        assert not [name for name in found if name.endswith(".part")]


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
def test_errors_from_some_moment_on_lose_only_what_follows(tiny, tmp_path, disk, number):
    """Training goes on to its end, which says that it is lost; all that was written is whole."""

    def fail(count):
        if count >= moment:
            raise OSError(number, os.strerror(number))

    for moment in [*moments(disk, tiny, tmp_path)][5 * ERRORS.index(number) : -12 : 15]:
        run, warned = tmp_path / f"run-{moment}", []
        disk.count, disk.act = 0, fail
        message = "the end of training could not be saved; the run can be resumed from the"
        with pytest.raises(DataError, match=message):
            begin(tiny, run, warn=warned, **OFTEN)
        disk.act = lambda count: None
        assert 2 <= len(warned) <= 30
        for path in run.glob("*.safetensors"):
            read_checkpoint(path)
        ends_as_if_undisturbed(run, tmp_path / "whole")


def test_a_signal_that_cannot_be_obeyed_with_a_checkpoint_says_so(tiny, tmp_path, monkeypatch):
    def refused(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    run, warned = tmp_path / "run", []

    def watch(trainer):
        at("step", 7, lambda t: monkeypatch.setattr(Path, "write_bytes", refused))(trainer)
        stopping(count=7)(trainer)

    message = "stopped after step 7; it could not be saved; the run can be resumed from the check"
    with monkeypatch.context(), pytest.raises(Stopped, match=message):
        begin(tiny, run, watch=watch, warn=warned)
    assert len(warned) == 1
    assert read_checkpoint(run / LAST).state.progress.step == 5


def test_lines_that_cannot_be_written_wait_and_are_not_tried_at_every_step(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr("xpcap.training.history.FLUSH_EVERY", 3)
    begin(tiny, tmp_path / "whole", epochs=4)
    fsync, warned = os.fsync, []

    def refused(descriptor):
        if os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")) == HISTORY:
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("names of open files are unknown")

    def watch(trainer):
        at("step", 1, lambda t: monkeypatch.setattr(os, "fsync", refused))(trainer)
        at("step", 16, lambda t: monkeypatch.setattr(os, "fsync", fsync))(trainer)

    begin(tiny, tmp_path / "run", epochs=4, watch=watch, warn=warned)
    assert len(warned) == 3 * (1 + 2)  # an epoch: once at its third line in three, twice at its end
    where = tmp_path / "run" / HISTORY
    assert set(warned) == {f"warning: cannot write {where}: Input/output error; training continues"}
    path = Path("run") / HISTORY
    assert (tmp_path / path).read_bytes() == (tmp_path / "whole" / HISTORY).read_bytes()


def test_other_processes_files_are_left_alone(tiny, tmp_path):
    """Two processes may write one name at once, as two exports do: each has its own part."""
    path = tmp_path / "file"
    with new_file(path) as part:
        part.write_text("mine")
        (tmp_path / f".file.{os.getpid() + 1}.part").write_text("theirs")
    assert path.read_text() == "mine"
    assert len(list(tmp_path.glob(".*.part"))) == 1


def test_history_on_the_disk_is_never_behind_the_checkpoint(tiny, tmp_path, disk):
    """Whatever is killed, the lines of all steps that the checkpoint knows are there."""
    run = tmp_path / "run"

    def look(count):
        if (run / HISTORY).exists() and (run / LAST).exists():
            last = read_checkpoint(run / LAST).state.progress
            steps = read_history(run / HISTORY).step.tolist()
            assert steps[: last.step] == list(range(1, last.step + 1))

    disk.act = look
    begin(tiny, run, **OFTEN)
    assert disk.count > 60
