"""Every command that writes, on a full disk and on a read-only one."""

import importlib.util
import json
import shutil
import subprocess

import pytest
from commands import one_line
from disks import MOUNT, fill, mounted
from own import own
from runs import begin
from tiny import make_tiny

from xpcap.exchange import export_run
from xpcap.runs import open_run

SMALL = ["--hidden", 8, "--wordvec", 4, "--batch-size", 10, "--epochs", 1, "--device", "cpu"]
CPU = ["--device", "cpu"]


ANNOTATIONS = {
    "images": [{"id": k, "coco_url": "http://a/b", "width": 4, "height": 3} for k in range(9)],
    "annotations": [{"image_id": k, "caption": "a dog on a mat"} for k in range(9)],
}
BOXES = {
    "annotations": [
        {"image_id": k, "category_id": 1, "bbox": [1, 1, 2, 1], "area": 2} for k in range(9)
    ],
    "categories": [{"id": 1, "name": "dog"}],
}
REASONS = {"full": "no space left on the device", "read-only": "Read-only file system"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the inputs of the commands."""
    folder = tmp_path_factory.mktemp("made")
    begin(make_tiny(folder / "tiny"), folder / "run", epochs=1)
    export_run(open_run(folder / "run"), "torch", folder / "weights")
    own(folder, 6)
    (folder / "annotated.json").write_text(json.dumps(ANNOTATIONS))
    (folder / "boxes.json").write_text(json.dumps(BOXES))
    return folder


@pytest.fixture(params=REASONS)
def disk(made, tmp_path, request):
    """A disk that cannot be written to, with one file, and next to it the commands' inputs."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1M", "none") as folder:
        (folder / "old").write_bytes(b"as it was")
        shutil.copytree(tmp_path / "tiny", folder / "tiny")
        if request.param == "full":
            fill(folder, 0)
        else:
            subprocess.run([MOUNT, "-o", "remount,ro", folder], check=True)
        yield folder


@pytest.fixture
def reason(request):
    return REASONS[request.node.callspec.params["disk"]]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
def test_an_existing_file_is_unchanged(call, disk, reason, words, needs):
    if not all(map(importlib.util.find_spec, needs)):
        pytest.skip(f"{', '.join(needs)} is not installed")
    before = contents(disk)
    result = call(*words, disk / "old")
    one_line(result, rf"cannot write .*disk/old: {reason}$")
    assert contents(disk) == before


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--data", "tiny", *SMALL, "--out"],
        ["import", "weights", "--vocab", "tiny/coco2014_vocab.json", "--out"],
        ["data", "scenes", "--train", 10, "--val", 5, "--out"],
        ["data", "coco-json", "--captions", "annotated.json", "--instances", "boxes.json", "--out"],
        ["data", "prepare", "captions.json", "--out"],
        ["data", "prepare", "captions.json", "--extractor", "filter-bank", "--out"],
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_no_new_folder_is_left(call, disk, reason, words):
    before = contents(disk)
    result = call(*words, disk / "new")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("xpcap: cannot write "), result.stderr
    assert result.stderr.endswith(f": {reason}\n"), result.stderr
    assert contents(disk) == before
    assert not (disk / "new").exists()


def test_principal_components(call, disk, reason):
    before = contents(disk)
    result = call("data", "pca", disk / "tiny", "--dim", 3, *CPU)
    one_line(result, f"cannot write .*: {reason}$")
    assert contents(disk) == before


def test_events_for_tensorboard(call, disk, reason):
    pytest.importorskip("tensorboardX", reason="needs tensorboardX")
    before = contents(disk)
    result = call("train", "--data", "tiny", "--out", "other", *SMALL, "--tensorboard", disk / "e")
    one_line(
        result, rf"cannot write .*: ({reason}|.*/disk is not a folder that can be written to)$"
    )
    found = {path: content for path, content in contents(disk).items() if content}
    assert found == {path: content for path, content in before.items() if content}
