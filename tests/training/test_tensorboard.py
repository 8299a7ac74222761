"""Events for TensorBoard, read back record by record."""

import errno
import json
import os
import signal
import struct
import sys
import time
from pathlib import Path

import numpy
import pytest
from tiny import make_tiny

from xpcap.backend import CPU
from xpcap.errors import ConfigurationError, DataError, DivergedError, Stopped, XpcapError
from xpcap.training import Schedule
from xpcap.training.options import RunOptions
from xpcap.training.run import RunContext, resume_run, train_run
from xpcap.training.tensorboard import EventFile

TAGS = {
    "loss": "loss/step",
    "lr": "learning_rate",
    "grad_norm": "gradient_norm",
    "train_loss": "loss/train",
    "train_perplexity": "perplexity/train",
    "val_loss": "loss/val",
    "val_perplexity": "perplexity/val",
    "val_CIDEr-D": "captions/CIDEr-D",
}


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "tiny")


@pytest.fixture
def event_pb2():
    return pytest.importorskip("tensorboardX.proto.event_pb2", reason="needs tensorboardX")


def run(tiny, out, logs, watch=None, clip_norm=5.0, **options):
    chosen = RunOptions(
        hidden=16, wordvec=8, batch_size=10, lr=0.02,
        schedule=Schedule(epochs=3, clip_norm=clip_norm), **options,
    )  # fmt: skip
    return train_run(tiny, out, chosen, CPU, RunContext(tensorboard=logs, watch=watch))


def masked_crc32c(data):
    """CRC-32C bit by bit (RFC 3720), rotated and added to as TensorFlow does."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = (remainder >> 1) ^ (0x82F63B78 if remainder & 1 else 0)
    crc = remainder ^ 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(folder, event_pb2):
    """Return the events of the files in a folder, in their order; checksums are checked."""
    paths = folder.glob("events.out.tfevents.*")
    ordered = sorted(paths, key=lambda path: int(path.name.rpartition(".")[2]))
    return [event for path in ordered for event in events_of(path, event_pb2)]


def events_of(path, event_pb2):
    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        header, data = content[:8], content[12 : 12 + length]
        checksums = content[8:12] + content[12 + length : 16 + length]
        assert struct.unpack("<II", checksums) == (masked_crc32c(header), masked_crc32c(data))
        found.append(event_pb2.Event.FromString(data))
        content = content[16 + length :]
    assert found[0].file_version == "brain.Event:2"
    times = [event.wall_time for event in found]
    assert times == sorted(times)
    assert found[1].session_log.status == event_pb2.SessionLog.START
    assert found[1].step == int(path.name.rpartition(".")[2]) + 1
    return found[2:]


def scalars(folder, event_pb2):
    return [
        (event.step, value.tag, value.simple_value)
        for event in events(folder, event_pb2)
        for value in event.summary.value
    ]


def expected(run_folder):
    """Return the same from the history: scalars are float32, and nothing stands for null."""
    return [
        (line["step"], TAGS[name], numpy.float32(line[name]))
        for line in map(json.loads, (run_folder / "history.jsonl").read_text().splitlines())
        for name in TAGS
        if line.get(name) is not None
    ]


def test_the_checksum_of_this_test_is_that_of_the_rfc():
    assert masked_crc32c(bytes(32)) == ((0x8A9136AA >> 15 | 0x8A9136AA << 17) + 0xA282EAD8) % 2**32


def test_events_are_those_of_the_history(tiny, tmp_path, event_pb2):
    for name in ("a", "b"):
        run(tiny, tmp_path / "runs" / name, tmp_path / "logs", select="CIDEr-D")
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["a", "b"]
    found = scalars(tmp_path / "logs" / "a", event_pb2)
    assert sorted(found) == sorted(expected(tmp_path / "runs" / "a"))
    assert len(found) == 15 * 3 + 3 * 5
    assert sorted(step for step, tag, _ in found if tag == "perplexity/val") == [5, 10, 15]


def test_what_is_null_is_left_out(tmp_path, event_pb2):
    lines = [{"step": 1, "loss": None, "grad_norm": None}, {"step": 2, "loss": 2.5, "lr": None}]
    EventFile(tmp_path / "logs").write([(time.time(), line) for line in lines])
    assert scalars(tmp_path / "logs", event_pb2) == [(2, "loss/step", 2.5)]


def test_figures_of_self_critical_steps_are_events(tmp_path, event_pb2):
    line = {"step": 1, "loss": 2.5, "reward": 0.5, "bad_endings": 0.25}
    EventFile(tmp_path / "logs").write([(time.time(), line)])
    assert sorted(scalars(tmp_path / "logs", event_pb2)) == [
        (1, "loss/step", 2.5),
        (1, "self_critical/bad_endings", 0.25),
        (1, "self_critical/reward", 0.5),
    ]


def test_events_that_cannot_be_written_whole_leave_no_part(tmp_path, event_pb2, monkeypatch):
    def refused(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    line = {"step": 1, "loss": 2.5}
    file = EventFile(tmp_path / "logs")
    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"tfevents.*: Input"):
        patch.setattr("os.fsync", refused)
        file.write([(time.time(), line)])
    assert scalars(tmp_path / "logs", event_pb2) == []
    file.write([(time.time(), {**line, "step": 2})])
    assert scalars(tmp_path / "logs", event_pb2) == [(2, "loss/step", 2.5)]


def test_events_may_lie_in_the_run_itself(tiny, tmp_path, event_pb2):
    run(tiny, tmp_path / "runs" / "a", tmp_path / "runs")
    found = scalars(tmp_path / "runs" / "a", event_pb2)
    assert sorted(found) == sorted(expected(tmp_path / "runs" / "a"))


def interrupted_at(step):
    def watch(trainer):
        def interrupt(trainer):
            if trainer.step == step:
                os.kill(os.getpid(), signal.SIGINT)

        trainer.on("step", interrupt)

    return watch


def diverging_at(step):
    def watch(trainer):
        def spoil(trainer):
            if trainer.step == step:
                trainer.model.params["b_vocab"][0] = numpy.nan

        trainer.on("step", spoil)

    return watch


@pytest.mark.parametrize(
    ("watch", "error", "steps"),
    [(interrupted_at(8), Stopped, 9), (diverging_at(8), DivergedError, 9)],
)
def test_a_run_that_ends_early_has_all_its_steps(tiny, tmp_path, event_pb2, watch, error, steps):
    with pytest.raises(error):
        run(tiny, tmp_path / "run", tmp_path / "logs", watch)
    found = scalars(tmp_path / "logs" / "run", event_pb2)
    assert sorted(found) == sorted(expected(tmp_path / "run"))
    assert {step for step, *_ in found} == set(range(1, steps + 1))


@pytest.mark.parametrize("logs", ["logs", "."])
def test_a_resumed_run_goes_on_beside_its_first_events(tiny, tmp_path, event_pb2, logs):
    with pytest.raises(Stopped):
        run(tiny, tmp_path / "run", tmp_path / logs, interrupted_at(3))
    assert {step for step, *_ in scalars(tmp_path / logs / "run", event_pb2)} == {1, 2, 3, 4}
    resume_run(tmp_path / "run", CPU, context=RunContext(tensorboard=tmp_path / logs))
    found = scalars(tmp_path / logs / "run", event_pb2)
    assert sorted(found) == sorted(expected(tmp_path / "run"))


def test_other_events_are_not_mixed_with_new_ones(tiny, tmp_path, event_pb2):
    run(tiny, tmp_path / "a" / "run", tmp_path / "logs")
    before = scalars(tmp_path / "logs" / "run", event_pb2)
    with pytest.raises(DataError, match=r"logs/run exists and is not an empty folder"):
        run(tiny, tmp_path / "b" / "run", tmp_path / "logs")
    assert not (tmp_path / "b").exists()
    assert scalars(tmp_path / "logs" / "run", event_pb2) == before


def test_a_place_that_cannot_be_written_leaves_no_run(tiny, tmp_path, event_pb2):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write .*file/run"):
        run(tiny, tmp_path / "run", tmp_path / "file")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no full device")
def test_a_file_that_cannot_be_written_is_one_line(tmp_path, event_pb2):
    file = EventFile(tmp_path / "logs")
    (path,) = (tmp_path / "logs").iterdir()
    path.unlink()
    os.symlink("/dev/full", path)
    with pytest.raises(DataError, match=r"cannot write .*tfevents"):
        file.write([(0.0, {"step": 1, "loss": 2.0})])


def test_without_tensorboardx_nothing_is_begun(tiny, tmp_path, monkeypatch):
    for name in ("tensorboardX", "tensorboardX.proto.event_pb2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=r"need tensorboardX, .* its extra 'tensorboard'"):
        run(tiny, tmp_path / "run", tmp_path / "logs")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_mistake_elsewhere_leaves_no_events(tiny, tmp_path, event_pb2):
    context = RunContext(tensorboard=tmp_path / "logs")
    with pytest.raises(XpcapError, match="batch size"):
        train_run(tiny, tmp_path / "run", RunOptions(batch_size=99), CPU, context)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
