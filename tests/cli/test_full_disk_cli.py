"""Every command that writes, on a disk that is really full."""

import importlib.util
import shutil

import pytest
from commands import one_line
from disks import fill, mounted
from own import own
from tiny import make_tiny

SMALL = ["--hidden", 8, "--wordvec", 4, "--batch-size", 10, "--epochs", 1, "--device", "cpu"]
CPU = ["--device", "cpu"]


@pytest.fixture
def disk(call, tmp_path):
    """A full disk, one file on it, a run and its data beside it."""
    make_tiny(tmp_path / "tiny")
    assert call("train", "--data", "tiny", "--out", "run", *SMALL).exit_code == 0
    assert call("export", "run", "--to", "torch", "--out", "weights").exit_code == 0
    own(tmp_path, 6)
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1M", "none") as folder:
        (folder / "old").write_bytes(b"as it was")
        shutil.copytree(tmp_path / "tiny", folder / "tiny")
        fill(folder, 0)
        yield folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("out", ["new", "old"])
@pytest.mark.parametrize(
    ("words", "needs"),
    [
        (["export", "run", "--to", "torch", "--out"], []),
        (["export", "run", "--to", "npz", "--out"], []),
        (["export", "run", "--to", "onnx", "--out"], ["onnx"]),
        (["evaluate", "run", *CPU, "--results"], []),
        (["evaluate", "run", *CPU, "--images"], []),
        (["report", "run", *CPU, "--out"], ["matplotlib", "jinja2"]),
    ],
    ids=lambda part: " ".join(map(str, part)),
)
def test_a_file_is_as_it_was_or_not_there(call, disk, words, needs, out):
    if not all(map(importlib.util.find_spec, needs)):
        pytest.skip(f"{', '.join(needs)} is not installed")
    before = contents(disk)
    result = call(*words, disk / out)
    one_line(result, rf"cannot write .*disk/{out}: no space left on the device$")
    assert contents(disk) == before


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--data", "tiny", *SMALL, "--out"],
        ["import", "weights", "--vocab", "tiny/coco2014_vocab.json", "--out"],
        ["data", "scenes", "--train", 10, "--val", 5, "--out"],
        ["data", "prepare", "captions.json", "--out"],
        ["data", "prepare", "captions.json", "--extractor", "filter-bank", "--out"],
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_a_folder_is_not_there(call, disk, words):
    before = contents(disk)
    result = call(*words, disk / "new")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("xpcap: cannot write "), result.stderr
    assert result.stderr.endswith(": no space left on the device\n"), result.stderr
    assert contents(disk) == before
    assert not (disk / "new").exists()


def test_principal_components(call, disk):
    before = contents(disk)
    result = call("data", "pca", disk / "tiny", "--dim", 3, *CPU)
    one_line(result, "cannot write .*: no space left on the device$")
    assert contents(disk) == before


def test_events_for_tensorboard(call, disk):
    before = contents(disk)
    result = call("train", "--data", "tiny", "--out", "other", *SMALL, "--tensorboard", disk / "e")
    one_line(result, "cannot write .*: no space left on the device$")
    found = {path: content for path, content in contents(disk).items() if content}
    assert found == {path: content for path, content in before.items() if content}
