"""Captions may be as long as those of the data set that a run was trained on."""

import json
from dataclasses import replace

import h5py
import numpy
import pytest
from click.testing import CliRunner
from commands import one_line
from oracle import END, NULL, START, UNK
from runs import TRANSFORMER, begin
from tiny import make_tiny

import xpcap
from xpcap.cli import main
from xpcap.data.dataset import open_dataset
from xpcap.decoding import Beam, Constraints, Sampling
from xpcap.errors import CheckpointError, ConfigurationError
from xpcap.exchange import export_run, import_run
from xpcap.report import gather
from xpcap.runs import Run
from xpcap.runs.checkpoint import read_checkpoint, write_checkpoint

WORDS = {"long": 40, "short": 5}
KNOWN = Constraints(banned=(NULL, START, UNK))
FEATURES = numpy.ones((3, 7), numpy.float32)


def make_set(path, words):
    """Write a data folder whose captions are one word, repeated so often."""
    make_tiny(path)
    with h5py.File(path / "coco2014_captions.h5", "r+") as file:
        for split in ("train", "val"):
            count = len(file[f"{split}_captions"])
            del file[f"{split}_captions"]
            file[f"{split}_captions"] = numpy.tile([1, *[5] * words, END], (count, 1))
    return path


def change(run, edit):
    path = run / "best.safetensors"
    write_checkpoint(path, edit(read_checkpoint(path)))


def endless(checkpoint):
    """Change the model so that no caption ends by itself."""
    checkpoint.state.parameters["b_vocab"][END] = -1e3
    return checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("length")
    for name, words in WORDS.items():
        begin(make_set(folder / f"{name}-set", words), folder / name, epochs=1)
        change(folder / name, endless)
    begin(folder / "short-set", folder / "limited", epochs=1, **TRANSFORMER)
    change(folder / "limited", endless)
    return folder


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("XPCAP_DEVICE", "cpu")


def call(*words):
    result = CliRunner().invoke(main, [*words, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def lengths(captions):
    return {len(caption.split()) for caption in captions}


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize(
    "how", [None, Beam(2), Sampling(constraints=Constraints(banned=(0, 1, 3)))]
)
def test_from_python(name, how):
    run = xpcap.open_run(name, device="cpu")
    assert lengths(run.caption(FEATURES, how)) == {WORDS[name]}


@pytest.mark.parametrize("name", WORDS)
def test_on_the_command_line(name):
    for options in ([], ["--beam", "2"], ["--sample"]):
        found = call("caption", name, *options)
        assert lengths(image["caption"] for image in found) == {WORDS[name]}
    assert call("evaluate", name)["decoding"]["max_words"] == WORDS[name]
    assert call("inspect", name)["config"]["data"]["max_words"] == WORDS[name]


def test_when_training_ends(tmp_path):
    words = ["--data", "long-set", "--out", str(tmp_path / "run"), "--hidden", "8", "--epochs", "2"]
    found = call("train", *words, "--lr", "0.05")
    assert lengths(image["caption"] for image in found["captions"]) == {WORDS["long"]}


def test_in_a_report():
    runs = [xpcap.open_run(name, device="cpu") for name in WORDS]
    entry = gather(runs, "val", Beam(2)).entries[0]
    assert [len(caption.words) - 1 for caption in entry.captions] == list(WORDS.values())


@pytest.mark.parametrize("names", [("long", "short"), ("short", "long")])
def test_of_an_ensemble_the_largest(names):
    assert lengths(xpcap.open_run(*names, device="cpu").caption(FEATURES)) == {WORDS["long"]}


def test_no_more_than_a_model_of_an_ensemble_can():
    run = xpcap.open_run("long", "limited", device="cpu")
    assert lengths(run.caption(FEATURES)) == {WORDS["short"]}
    for options in ({}, {"beam": 2}, {"sample": True}):
        with pytest.raises(ConfigurationError, match=r"at most 5 \(max_words=N\)"):
            run.caption(FEATURES, max_words=6, **options)
    result = CliRunner().invoke(main, ["caption", "limited", "--max-words", "6"])
    assert result.exit_code == 2
    assert "captions of 6 words are longer than the model can generate" in result.stderr
    assert "expected at most 5 (--max-words N)" in result.stderr


def test_longer_captions_have_no_perplexity(monkeypatch):
    """That is said before any image is captioned."""
    words = ["evaluate", "limited", "--data", "long-set"]
    assert call(*words, "--metrics", "BLEU-1")["images"] == 12
    monkeypatch.setattr(Run, "decode", None)
    message = "long-set has captions of 'val' longer than the 5 words that limited can read; expect"
    one_line(CliRunner().invoke(main, words), message)


def test_in_other_formats(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    run = xpcap.open_run("long", device="cpu")
    export_run(run, "onnx", tmp_path / "a.onnx")
    session = runtime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    assert session.run(["words"], {"features": FEATURES})[0].shape == (3, WORDS["long"])


@pytest.mark.parametrize("to", ["torch", "npz"])
def test_of_imported_weights(to, place, tmp_path):
    export_run(xpcap.open_run("long", device="cpu"), to, tmp_path / "weights")
    run = import_run(tmp_path / "weights", tmp_path / "run", place / "long-set")
    assert lengths(run.caption(FEATURES)) == {WORDS["long"]}


def test_another_one_may_be_given():
    run = xpcap.open_run("long", device="cpu")
    assert lengths(run.caption(FEATURES, max_words=7)) == {7}
    assert lengths(image["caption"] for image in call("caption", "long", "--max-words", "7")) == {7}
    with pytest.raises(ConfigurationError, match="captions of 41 to 40 words cannot be generated"):
        run.caption(["missing.jpg"], min_words=41)
    with pytest.raises(ConfigurationError, match="max_words is 'many'; expected a whole number"):
        run.caption(FEATURES, max_words="many")


def stored(value):
    def edit(checkpoint):
        data = {**checkpoint.config["data"], "max_words": value}
        if value is ...:
            del data["max_words"]
        return replace(checkpoint, config={**checkpoint.config, "data": data})

    return edit


def test_of_runs_that_do_not_record_it(tmp_path):
    begin(make_set(tmp_path / "set", 40), tmp_path / "run", epochs=1)
    change(tmp_path / "run", endless)
    change(tmp_path / "run", stored(...))
    assert lengths(xpcap.open_run(tmp_path / "run", device="cpu").caption(FEATURES)) == {30}


@pytest.mark.parametrize("value", [0, -1, 10**9, 2.5, "40", None, True, [40]])
def test_no_length_in_a_checkpoint(tmp_path, value):
    begin(make_set(tmp_path / "set", 5), tmp_path / "run", epochs=1)
    change(tmp_path / "run", stored(value))
    with pytest.raises(CheckpointError, match="'max_words' of 'data' to be a number from 1 to"):
        xpcap.open_run(tmp_path / "run", device="cpu")


@pytest.mark.parametrize(("width", "words"), [(2, 1), (3, 1), (17, 15), (5000, 1000)])
def test_the_captions_width_is_that_of_the_longest(tmp_path, width, words):
    make_tiny(tmp_path / "set")
    with h5py.File(tmp_path / "set" / "coco2014_captions.h5", "r+") as file:
        del file["train_captions"]
        captions = numpy.zeros((48, width), numpy.int32)
        captions[:, :2] = 1, END
        file["train_captions"] = captions
    assert open_dataset(tmp_path / "set").max_words == words
