"""Messages about what is missing or elsewhere name the command or option that helps."""

import json
import shutil

import pytest
from commands import one_line
from own import own
from runs import begin
from tiny import make_tiny

from xpcap.cli._options import with_options

SMALL = ["--hidden", 8, "--wordvec", 4, "--batch-size", 10, "--epochs", 1, "--device", "cpu"]
CPU = ["--device", "cpu"]
PREPARE = ["data", "prepare", "captions.json", "--extractor", "filter-bank", "--out"]


def fine(result):
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    begin(make_tiny(folder / "tiny"), folder / "run", epochs=1)
    return folder


@pytest.fixture
def place(made, call, tmp_path):
    """A data folder and a run of it, at another place than it was trained at."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def reduced(call, tmp_path):
    """A run of reduced features, whose extractor is known."""
    own(tmp_path, 30)
    fine(call(*PREPARE, "own"))
    fine(call("data", "pca", "own", "--dim", 3, *CPU))
    fine(call("train", "--data", "own", "--out", "run", *SMALL))
    return tmp_path


@pytest.mark.parametrize(
    "words", [["caption"], ["evaluate"], ["report"], ["train", "--epochs", 2, "--resume"]]
)
def test_a_moved_data_folder(call, made, tmp_path, words):
    if words == ["report"]:
        pytest.importorskip("jinja2")
        pytest.importorskip("matplotlib")
    data = tmp_path / "data"
    begin(shutil.copytree(made / "tiny", data), tmp_path / "run", epochs=1)
    data.rename(tmp_path / "moved")
    message = "data, on which run was trained, does not exist; .* where it is now"
    one_line(call(*words, "run", *CPU), rf"{message} \(--data FOLDER\)$")
    fine(call(*words, "run", *CPU, "--data", "moved"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--resume"], r"\.safetensors is not a run; expected a folder .*, such as run$"),
        (["curves"], r"\.safetensors is not a run; expected a folder .*, such as run$"),
    ],
)
@pytest.mark.parametrize("name", ["best", "last"])
def test_a_checkpoint_file_for_its_run(call, place, words, message, name):
    one_line(call(*words, f"run/{name}.safetensors"), message)


def test_a_report_of_a_checkpoint_file_is_in_its_run(call, place):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    assert "run/report.html" in fine(call("report", "run/last.safetensors", *CPU)).stdout


def test_training_before_there_are_features(call, tmp_path):
    own(tmp_path, 12)
    fine(call(*PREPARE[:3], "--extractor", "none", "--out", "own"))
    message = (
        r"own has no features of 'train' \(train2014_vgg16_fc7\.h5\): xpcap data prepare --ext"
    )
    one_line(call("train", "--data", "own", *SMALL), message)
    one_line(call("data", "pca", "own", *CPU), message)
    shown = call("data", "info", "own")
    assert "train: 11 images, 22 captions" in shown.stdout
    assert (
        "problem: no features for 'train'; expected train2014_vgg16_fc7.h5, which" in shown.stdout
    )
    (tmp_path / "own" / "coco2014_vocab.json").unlink()
    (tmp_path / "own" / "train2014_urls.txt").unlink()
    shown = call("data", "info", "own")
    assert "train: unknown images, unknown captions" in shown.stdout
    assert "None" not in shown.stdout


def test_features_of_one_split_only(call, place):
    fine(call("data", "pca", "tiny", "--dim", 3, *CPU))
    (place / "tiny" / "val2014_vgg16_fc7_pca.h5").unlink()
    message = r"no features of 'val' \(val2014_vgg16_fc7_pca\.h5\): xpcap data pca tiny --replace"
    one_line(call("train", "--data", "tiny", *SMALL), message)


def test_a_checkpoint_without_its_transform(call, reduced):
    (reduced / "alone").mkdir()
    shutil.copy(reduced / "run" / "best.safetensors", reduced / "alone")
    for run in ("alone", "alone/best.safetensors"):
        result = call("caption", run, "photos/1.png", *CPU)
        one_line(result, r"alone has no pca\.h5, .* copy that of its run, or .* folder /.*own$")
    shutil.copy(reduced / "run" / "pca.h5", reduced / "alone")
    fine(call("caption", "alone", "photos/1.png", *CPU))


def test_a_data_folder_without_its_transform(call, reduced):
    (reduced / "own" / "pca.h5").unlink()
    message = r"own has pca features, but no pca\.h5 .*xpcap data pca .*own --replace makes both"
    one_line(call("train", "--data", "own", *SMALL), message)
    one_line(call("train", "--resume", "run", "--epochs", 2, *CPU), message)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["test"], r"no image .* for 'train'; .*; all are in test \(--splits test=train\)"),
        (["val", "test"], r"'train'; .*; all are in val and test \(--splits val=train\)"),
        (["val", None], r"'train'; .*; 5 have no split \(--splits none=train\)"),
        (["train", "learn"], r"split is 'learn'; .* means one of them \(--splits learn=train\)"),
    ],
)
def test_splits_that_are_missing_or_unknown(call, tmp_path, splits, message):
    own(tmp_path, 10, splits)
    one_line(call(*PREPARE, "own"), message)


def test_a_data_folder_without_val(call, place):
    import h5py

    with h5py.File(place / "tiny" / "coco2014_captions.h5", "a") as file:
        del file["val_captions"]
    message = r"no 'val_captions' in it, only .*; xpcap data prepare makes a split 'val'"
    one_line(call("train", "--data", "tiny", *SMALL), message)


def test_a_run_that_has_ended(call, place):
    result = fine(call("train", "--resume", "run", "--data", "tiny", *CPU))
    assert "training has ended, after epoch 1 of 1; more epochs would continue it (--epochs N)" in (
        result.stderr
    )
    assert result.stdout.startswith("validation loss ")  # no captions again
    result = fine(call("train", "--resume", "run", "--data", "tiny", "--json", *CPU))
    assert json.loads(result.stdout)["captions"] == []
    words = ["train", "--resume", "run", "--data", "tiny", "--epochs", 2]
    result = fine(call(*words, "--patience", 1, *CPU))
    assert "has ended" not in result.stderr
    assert "people" in result.stdout


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("left out (skip_broken=True does)", "left out (--skip-broken does)"),
        ("where it is (data=FOLDER)", "where it is (--data FOLDER)"),
        ("map it (splits={'my own': 'val'})", "map it (--splits my own=val)"),
        ("more epochs=N.", "more --epochs N."),
        ("a/data=A.png, 'epochs=3', my-data=FOLDER", "a/data=A.png, 'epochs=3', my-data=FOLDER"),
        ("{'lr': 'data'} and seed=N", "{'lr': 'data'} and seed=N"),
    ],
)
def test_the_library_names_options_as_python_does(message, shown):
    assert with_options(message) == shown
