"""A checkpoint comes back as it was, or is refused in one line."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import safetensors.numpy

from xpcap.backend import to_host
from xpcap.data.vocabulary import Vocabulary
from xpcap.errors import CheckpointError, DataError
from xpcap.runs.checkpoint import (
    Checkpoint,
    TrainingProgress,
    TrainingState,
    read_checkpoint,
    write_checkpoint,
    written_by,
)

WORDS = ["<NULL>", "<START>", "<END>", "<UNK>", "chat", "été", "犬", "a.b"]
SHAPES = {"W": (3, 4), "b": (4,), "blocks.0.Wh": (2, 1, 2)}
PROGRESS = TrainingProgress(7, 2, 1.25, 1, 0.5, 3, 812, 0.75)
CONFIG = {"model": {"hidden_dim": 4}, "data": {"name": "x"}, "training": {"patience": None}}
OPTIMIZER = {"t": 7, "learning_rate": 1 / 3, "beta1": 0.9}


def arrays(dtype, seed):
    draw = numpy.random.default_rng(seed).standard_normal
    found = {name: draw(shape).astype(dtype) for name, shape in SHAPES.items()}
    tiny = numpy.finfo(dtype)
    found["b"] = numpy.array([tiny.smallest_subnormal, -0.0, tiny.max, -tiny.tiny], dtype)
    return found


def checkpoint(dtype="float32", **state):
    memory = {"m": arrays(dtype, 1), "v": arrays(dtype, 2)}
    whole = TrainingState(arrays(dtype, 0), memory, OPTIMIZER, PROGRESS)
    return Checkpoint(CONFIG, Vocabulary(WORDS), replace(whole, **state), written_by("cpu"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_field_comes_back_from_every_device(backend, tmp_path, dtype):
    given = checkpoint(dtype)
    there = [
        {name: backend.to_device(value) for name, value in values.items()}
        for values in (given.state.parameters, *given.state.memory.values())
    ]
    memory = dict(zip(given.state.memory, there[1:], strict=True))
    moved = replace(given, state=replace(given.state, parameters=there[0], memory=memory))
    write_checkpoint(tmp_path / "a", moved)
    found = read_checkpoint(tmp_path / "a")
    assert found.config == CONFIG
    assert list(found.vocabulary.idx_to_word) == WORDS
    assert found.state.optimizer == OPTIMIZER
    assert found.state.progress == PROGRESS
    assert found.written_by == given.written_by
    assert {"xpcap", "python", "numpy", "device"} <= found.written_by.keys()
    pairs = [(found.state.parameters, given.state.parameters)]
    assert found.state.memory.keys() == given.state.memory.keys()
    pairs += [(found.state.memory[key], given.state.memory[key]) for key in given.state.memory]
    for read, wrote in pairs:
        assert read.keys() == wrote.keys()
        for name, value in wrote.items():
            assert read[name].dtype == dtype
            assert read[name].tobytes() == to_host(value).tobytes()


def test_arrays_that_are_views_and_transposed_are_written_as_they_read(tmp_path):
    flat = numpy.arange(24, dtype="f4")
    values = {"W": flat[4:16].reshape(4, 3).T, "b": flat[::6], "c": flat[:4].reshape(2, 1, 2)}
    write_checkpoint(tmp_path / "a", checkpoint(parameters=values, memory={}))
    found = read_checkpoint(tmp_path / "a").state.parameters
    for name, value in values.items():
        numpy.testing.assert_array_equal(found[name], value)


def test_what_is_not_known_yet_comes_back_too(tmp_path):
    begun = TrainingState(arrays("float32", 0))
    write_checkpoint(tmp_path / "a", replace(checkpoint(), state=begun))
    found = read_checkpoint(tmp_path / "a").state
    assert found.progress == TrainingProgress()
    assert (found.memory, found.optimizer) == ({}, {})


def test_it_is_in_safetensors_format_as_its_module_says(tmp_path):
    write_checkpoint(tmp_path / "a", checkpoint())
    with safetensors.safe_open(tmp_path / "a", "numpy") as file:
        kinds = ("parameters", "memory.m", "memory.v")
        assert set(file.keys()) == {f"{kind}.{name}" for kind in kinds for name in SHAPES}
        text = json.loads(file.metadata()["xpcap"])
    assert text["format"] == 2
    assert text["vocabulary"] == WORDS
    assert text["progress"] == {
        "step": 7, "epoch": 2, "best_loss": 1.25, "best_epoch": 1, "rate_scale": 0.5,
        "recoveries": 3, "history": 812, "best_value": 0.75,
    }  # fmt: skip


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "last.safetensors"
    write_checkpoint(path, checkpoint())
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"last.safetensors is not a whole checkpoint"):
            read_checkpoint(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match=r"last.safetensors is not a whole checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "other",
    [
        b"",
        b"hello",
        b"\xff" * 8,
        (2**60).to_bytes(8, "little") + b"{}",
        pickle.dumps({"a": 1}),
        safetensors.numpy.save({"W": numpy.zeros(3, "f4")}),
        safetensors.numpy.save({"W": numpy.zeros(3, "f4")}, {"xpcap": "no JSON"}),
        safetensors.numpy.save({"W": numpy.zeros(3, "f4")}, {"xpcap": "[" * 100_000}),
        safetensors.numpy.save({"W": numpy.zeros(3, "f4")}, {"xpcap": "9" * 5000}),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, other):
    (tmp_path / "a").write_bytes(other)
    with pytest.raises(CheckpointError, match="a is not a whole checkpoint of xpcap") as caught:
        read_checkpoint(tmp_path / "a")
    assert len(str(caught.value).splitlines()) == 1


def test_reading_runs_no_code(tmp_path):
    """What would be code in a pickle is not even looked at."""

    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    for content in (pickle.dumps(Trap()), b"\x80\x04" + pickle.dumps(Trap())):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / "a")
    numpy.savez(tmp_path / "b.npz", W=numpy.array(Trap(), dtype=object))
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "b.npz")
    assert not (tmp_path / "sprung").exists()


def test_what_is_no_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none: No such file"):
        read_checkpoint(tmp_path / "none")
    with pytest.raises(DataError, match=r"is not a plain file"):
        read_checkpoint(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DataError, match=r"pipe is not a plain file"):
            read_checkpoint(tmp_path / "pipe")


def rewritten(path, change, **more):
    """Write the checkpoint again with its text changed, and arrays added or taken away."""
    with safetensors.safe_open(path, "numpy") as file:
        text = json.loads(file.metadata()["xpcap"])
        there = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(text)
    there = {name: value for name, value in {**there, **more}.items() if value is not None}
    path.write_bytes(safetensors.numpy.save(there, {"xpcap": json.dumps(text)}))


def setting(*path, to):
    def change(text):
        for key in path[:-1]:
            text = text[key]
        text[path[-1]] = to

    return change


def leaving_out(name):
    return lambda text: text.pop(name)


HUGE = 10**400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("format", to=3), "has format 3, written by xpcap 0.1.0; expected format 2"),
        (setting("format", to="2"), "has format '2', written by xpcap 0.1.0; expected format 2"),
        (leaving_out("format"), "has format None, written by xpcap 0.1.0; expected format 2"),
        (lambda text: text.update(format=1, written_by={}), "format 1, written by xpcap None"),
        (leaving_out("written_by"), "is no checkpoint of a run; weights that were exported become"),
        (leaving_out("vocabulary"), "expected 'vocabulary'"),
        (setting("vocabulary", to=["a"]), "'vocabulary' does not begin with <NULL>"),
        (setting("vocabulary", to=[1]), "'vocabulary': expected a list of words"),
        (setting("config", to=[]), "expected 'config', an object"),
        (setting("written_by", to="me"), "is no checkpoint of a run"),
        (leaving_out("progress"), "expected 'progress', an object"),
        (setting("progress", to={"step": 1}), "progress: expected best_epoch, best_loss, "),
        (setting("progress", "step", to=-1), "expected 'step' to be a number from 0 on"),
        (setting("progress", "step", to=1.5), "expected 'step' to be a number from 0 on"),
        (setting("progress", "step", to=True), "expected 'step' to be a number from 0 on"),
        (setting("progress", "history", to=HUGE), "expected 'history' to be a number from 0 on"),
        (setting("progress", "rate_scale", to=None), "expected 'rate_scale' to be a number"),
        (setting("progress", "best_loss", to="1"), "expected 'best_loss' to be a number"),
        (setting("progress", "best_loss", to=float("nan")), "expected 'best_loss' to be a number"),
        (setting("optimizer", to=None), "expected 'optimizer', an object"),
        (setting("optimizer", "t", to="7"), "optimizer: expected 't' to be a number"),
        (setting("optimizer", "t", to=float("inf")), "optimizer: expected 't' to be a number"),
        (setting("optimizer", "t", to=HUGE), "int too large"),
    ],
)
def test_a_text_that_makes_no_sense_is_named(tmp_path, change, message):
    path = tmp_path / "last.safetensors"
    write_checkpoint(path, checkpoint())
    rewritten(path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).splitlines()) == 1


W = numpy.zeros(SHAPES["W"], "f4")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"parameters.W": W.astype("f2")}, "'parameters.W' is not of float32 or float64"),
        ({"parameters.W": W.astype("i8")}, "'parameters.W' is not of float32 or float64"),
        ({"parameters.W": W + numpy.float32("nan")}, "'parameters.W' holds NaN or infinite"),
        ({"memory.v.W": W + numpy.float32("inf")}, "'memory.v.W' holds NaN or infinite"),
        ({"memory.v.W": None}, r"'memory.v' does not have the shapes and dtypes of"),
        ({"memory.v.W": W.T.copy()}, r"'memory.v' does not have the shapes and dtypes of"),
        ({"memory.v.W": W.astype("f8")}, r"'memory.v' does not have the shapes and dtypes of"),
        ({"memory.v.X": W}, r"'memory.v' does not have the shapes and dtypes of"),
        ({"memory.v": W}, "'memory.v' is no array of a checkpoint"),
        ({"W": W}, "'W' is no array of a checkpoint"),
        ({"parameters": W}, "'parameters' is no array of a checkpoint"),
    ],
)
def test_an_array_that_makes_no_sense_is_named(tmp_path, more, message):
    path = tmp_path / "last.safetensors"
    write_checkpoint(path, checkpoint())
    rewritten(path, lambda text: None, **more)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "last.safetensors"
    write_checkpoint(path, checkpoint())
    before = path.read_bytes()

    def refused(*args):
        raise OSError(5, "Input/output error")

    for where in ("os.fsync", "pathlib.Path.replace", "pathlib.Path.write_bytes"):
        with monkeypatch.context() as patch:
            patch.setattr(where, refused)
            with pytest.raises(DataError, match=r"cannot write .*last.safetensors: Input/output"):
                write_checkpoint(path, checkpoint(parameters=arrays("float32", 9)))
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are unknown")
def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Written, synchronized, renamed, and then the folder synchronized."""
    happened = []
    fsync, move = os.fsync, Path.replace

    def name(descriptor):
        return os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))

    def synced(descriptor):
        whole = (tmp_path / name(descriptor)).stat().st_size if "part" in name(descriptor) else None
        happened.append(("synced", name(descriptor), whole))
        fsync(descriptor)

    def moved(self, target):
        happened.append(("renamed", self.name, target.name))
        return move(self, target)

    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr(Path, "replace", moved)
    write_checkpoint(tmp_path / "last", checkpoint())
    part = f".last.{os.getpid()}.part"
    assert happened == [
        ("synced", part, (tmp_path / "last").stat().st_size),
        ("renamed", part, "last"),
        ("synced", tmp_path.name, None),
    ]
