"""A disk that is really full, and folders that really cannot be written."""

import contextlib
import subprocess

import pytest
from commands import one_line
from disks import MOUNT, PAGE, fill, mounted
from runs import SMALL, STEPS, at, begin, content, resume, same
from tiny import make_tiny

from xpcap.backend import CPU
from xpcap.errors import DataError, DivergedError
from xpcap.runs import BEST, HISTORY, LAST, open_run
from xpcap.runs.checkpoint import read_checkpoint
from xpcap.training import Schedule
from xpcap.training.history import read_history
from xpcap.training.options import RunOptions
from xpcap.training.run import RunContext, train_run
from xpcap.training.saving import Saving

OFTEN = {"saving": Saving(steps=2, keep=2), "dropout": 0.2, "hidden": 32, "wordvec": 16}


@pytest.fixture
def disk(tmp_path):
    """A disk of 1 MiB."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1M", "none") as folder:
        yield folder


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "tiny")


@pytest.fixture
def whole(tiny, tmp_path):
    begin(tiny, tmp_path / "whole", **OFTEN)
    return tmp_path / "whole"


def readable(run):
    """Assert that every file of a run can be read, and that nothing is half-written."""
    for path in run.iterdir():
        if path.name.endswith(".safetensors"):
            read_checkpoint(path)
        else:
            assert path.name in (".lock", HISTORY)
    if (run / HISTORY).exists():
        assert (run / HISTORY).read_bytes()[-1:] in (b"", b"\n")
        read_history(run / HISTORY)


@pytest.mark.parametrize("step", [1, 3, STEPS, 2 * STEPS - 1])
@pytest.mark.parametrize("free", ["nothing", "a page", "the best", "both"])
def test_training_goes_on_and_can_be_resumed_with_more_room(tiny, whole, disk, step, free):
    """Room for nothing, for lines only, for the best checkpoint but not the last, for a while."""
    best, last = ((whole / name).stat().st_size for name in (BEST, LAST))
    assert best + 3 * PAGE < last
    room = {"nothing": 0, "a page": PAGE, "the best": best + 2 * PAGE, "both": 2 * last}[free]
    run, warned = disk / "run", []

    def watch(trainer):
        at("step", step, lambda t: fill(disk, room))(trainer)
        trainer.on("step", lambda t: readable(run))

    with contextlib.suppress(DataError):
        begin(tiny, run, watch=watch, warn=warned, **OFTEN)
        assert free == "both"
    assert all("no space left on the device; training continues" in line for line in warned)
    assert warned or free == "both"
    readable(run)
    (disk / "ballast").unlink()
    resume(run)
    found, expected = content(run), content(whole)
    assert found.keys() == expected.keys()
    for name in (HISTORY, BEST, LAST):
        assert found[name] == expected[name]


def test_where_there_is_room_again_nothing_is_lost(tiny, whole, disk):
    run, warned = disk / "run", []

    def watch(trainer):
        at("step", 1, lambda t: fill(disk, 0))(trainer)
        at("step", 8, lambda t: (disk / "ballast").unlink())(trainer)

    begin(tiny, run, watch=watch, warn=warned, **OFTEN)
    assert {line.split(":")[1].split("/")[-1] for line in warned} == {HISTORY, BEST, LAST}
    same(run, whole)


@pytest.mark.parametrize("room", [0, 2 * PAGE])
def test_a_run_that_cannot_be_begun_leaves_nothing(tiny, disk, call, room):
    fill(disk, room)
    sizes = ["--hidden", 16, "--wordvec", 8, "--batch-size", 10, "--device", "cpu"]
    result = call("train", "--data", tiny, "--out", disk / "run", *sizes)
    one_line(result, r"cannot write .*run.*: no space left on the device$")
    assert [path.name for path in disk.iterdir()] == ["ballast"]


def test_as_a_command_it_says_that_the_end_is_not_saved(tiny, disk, call):
    """Its exit status says so as well: what was printed last is on no disk."""
    sizes = ["--hidden", 16, "--wordvec", 8, "--batch-size", 10, "--device", "cpu"]
    command = ["train", "--data", tiny, "--out", disk / "run", "--epochs", 2, *sizes]
    assert call(*command).exit_code == 0
    before = content(disk / "run")
    fill(disk, 0)
    result = call("train", "--resume", disk / "run", "--epochs", 4, "--device", "cpu")
    assert (result.exit_code, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert any("warning: cannot write" in line for line in lines)
    assert lines[-1] == (
        "xpcap: the end of training could not be saved; the run can be resumed from the checkpoint"
        " before"
    )
    after = content(disk / "run")
    for name in (BEST, LAST):
        assert after[name] == before[name]
    assert call("caption", disk / "run", "--device", "cpu").exit_code == 0


def test_events_for_tensorboard_that_cannot_be_written_are_warnings(tiny, disk, tmp_path):
    pytest.importorskip("tensorboardX", reason="needs tensorboardX")
    warned, run = [], tmp_path / "run"
    context = RunContext(disk, at("step", 1, lambda t: fill(disk, 0)), warned.append)
    options = RunOptions(schedule=Schedule(12, cosine=True, clip_norm=5.0), **{**SMALL, **OFTEN})
    train_run(tiny, run, options, CPU, context)
    assert warned
    assert all(str(disk / "run") in line for line in warned)
    assert all("no space left on the device" in line for line in warned)
    begin(tiny, tmp_path / "whole", epochs=12, **OFTEN)
    same(run, tmp_path / "whole")


def test_a_report_that_cannot_be_written_is_a_warning(tiny, disk):
    warned = []
    watch = at("step", 1, lambda t: fill(disk, 0))
    with pytest.raises(DivergedError, match=r"step 2: the loss is nan; learning rate 9\.\d*e\+29"):
        begin(tiny, disk / "run", lr=1e30, rule="sgd", watch=watch, warn=warned)
    assert warned[0] == (
        f"warning: cannot write {disk / 'run' / 'diverged.json'}: no space left on the device"
    )
    readable(disk / "run")


@pytest.fixture
def stopped(tiny, tmp_path):
    """A folder of runs that cannot be written, though root asks; with a run in it."""
    begin(tiny, tmp_path / "runs" / "run", epochs=1)
    with mounted(tmp_path / "mounted", "--bind", str(tmp_path / "runs")) as folder:
        subprocess.run([MOUNT, "-o", "remount,ro,bind", folder], check=True)
        yield folder / "run"


def test_a_folder_that_cannot_be_written_is_one_line(tiny, stopped, call):
    before = content(stopped)
    result = call("train", "--resume", stopped, "--epochs", 3, "--device", "cpu")
    one_line(result, r"cannot write .*mounted/run: Read-only file system$")
    result = call("train", "--data", tiny, "--out", stopped.with_name("new"), "--device", "cpu")
    one_line(result, r"cannot write .*mounted/new.*: Read-only file system$")
    assert content(stopped) == before
    assert open_run(stopped).folder == stopped
