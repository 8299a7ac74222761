import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import h5py
import numpy
import pytest
from commands import one_line
from PIL import Image
from tiny import make_tiny

import xpcap
from xpcap import threads
from xpcap.cli import main
from xpcap.models import FAMILIES

SMALL = ["--hidden", "16", "--wordvec", "8", "--batch-size", "10", "--epochs", "2", "--lr", "0.02"]


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "tiny")


def test_train_writes_a_run_and_prints_captions(call, tiny, tmp_path):
    result = call("train", "--data", tiny, "--device", "cpu", *SMALL)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len([line for line in lines if line.startswith("  xpcap   ")]) == 8
    assert len([line for line in lines if line.startswith("  people  ")]) == 16
    assert re.fullmatch(
        r"validation loss \d+\.\d{4} nats per word, perplexity \d+\.\d\d \(epoch 2\);"
        r" run: runs/tiny-lstm-1",
        lines[-1].replace(os.sep, "/"),
    )
    assert "epoch 2/2: nats per word: train" in result.stderr
    history = (tmp_path / "runs" / "tiny-lstm-1" / "history.jsonl").read_text().splitlines()
    assert len(history) == 2 * 5 + 2


def test_each_run_has_its_own_folder(call, tiny, tmp_path):
    for _ in range(2):
        assert call("train", "--data", tiny, "--cell", "gru", *SMALL).exit_code == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["tiny-gru-1", "tiny-gru-2"]


def test_train_as_json(call, tiny):
    result = call("train", "--data", tiny, "--json", "--out", "here", "--rule", "adamw", *SMALL)
    found = json.loads(result.stdout)
    assert found["run"] == "here"
    assert found["steps"] == 10
    assert found["val_perplexity"] == pytest.approx(numpy.exp(found["val_loss"]))
    assert set(found["captions"][0]) == {"image", "caption", "references", "captions"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cell", "mlp"], "cell 'mlp' is unknown; expected rnn, lstm, gru"),
        (["--heads", "8"], "--heads goes with --model transformer alone"),
        (["--rule", "adagrad"], "rule 'adagrad' is unknown; expected sgd"),
        (["--data", "nowhere"], "nowhere is not a folder; expected a data folder"),
        (["--lr", "nan"], r"--lr must be a number in \(0, inf\), got nan"),
        (["--lr", "0"], "--lr must be a number in"),
        (["--weight-decay", "0.01"], "--weight-decay goes with --rule adamw, not adam$"),
        (["--rule", "adamw", "--weight-decay", "-1"], "--weight-decay must be a number in"),
        (["--lr-decay", "0"], "--lr-decay must be a number in"),
        (["--lr-decay", "1e308"], r"--lr-decay 1e\+308, once per epoch, overflows"),
        (
            ["--warmup", "10"],
            "warm-up of 10 steps is not shorter than the run, 10 .*--warmup STEPS",
        ),
        (["--clip", "-1"], r"--clip must be a number in \(0, 1e30\], got -1.0"),
        (["--clip", "1e308"], "--clip must be a number in"),
        (["--save-every", "nanm"], "--save-every must be a number in"),
        (["--epochs", "9" * 30], "--epochs must be at most 2147483647"),
        (["--hidden", "2147483647"], "a model with .* cannot be made"),
        (["--out", "x" * 300], "File name too long"),
        (["--lr", "fast"], "'--lr': 'fast' is not a valid float"),
        (["--hidden", "0"], "'--hidden': 0 is not in the range x>=1"),
        (["--batch-size", "100"], r"batch size 100 is not in 1\.\.48"),
        (["--max-train", "1000"], r"max-train 1000 is not in 1\.\.48"),
        (["--dropout", "1"], "--dropout must be a number in"),
        (["--label-smoothing", "1"], r"--label-smoothing must be a number in \[0, 1\), got 1"),
        (["--features", "pca"], "has no pca features .*train2014_vgg16_fc7_pca.h5"),
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--device", "tpu"], "device 'tpu' is unknown; expected auto, cpu, gpu or gpu:K"),
        (["--frobnicate"], "No such option.*--frobnicate"),
    ],
)
def test_bad_options_of_train_are_one_line_and_exit_2(call, tiny, tmp_path, words, message):
    one_line(call("train", "--data", tiny, *SMALL, *words), message)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


def test_a_run_is_never_overwritten(call, tiny):
    assert call("train", "--data", tiny, "--out", "run", *SMALL).exit_code == 0
    one_line(call("train", "--data", tiny, "--out", "run", *SMALL), "run holds another run")


def test_damaged_features_are_one_line(call, tiny):
    path = tiny / "val2014_vgg16_fc7.h5"
    path.write_bytes(path.read_bytes()[:500])
    one_line(call("train", "--data", tiny, *SMALL), f"{path} is truncated")
    with h5py.File(path, "w") as file:
        file["features"] = numpy.full((12, 7), numpy.nan)
    one_line(call("train", "--data", tiny, *SMALL), "'features' holds NaN or infinite")


def test_a_missing_gpu_is_one_line(call, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    one_line(call("train", "--data", tiny, "--device", "gpu"), "'gpu' needs CuPy")
    result = call("train", "--data", tiny, "--device", "auto", *SMALL)
    assert result.exit_code == 0
    assert "device: cpu (device 'gpu' needs CuPy" in result.stderr
    if importlib.util.find_spec("cupy") is None:
        assert "device: cpu\n" in call("train", "--data", tiny, *SMALL).stderr


def test_caption_a_split_or_explain_why_not(call, tiny):
    call("train", "--data", tiny, "--out", "run", *SMALL)
    result = call("caption", "run", "--split", "train", "--count", 3)
    assert result.exit_code == 0
    assert [line for line in result.stdout.splitlines() if line.startswith("http")] == [
        f"http://localhost/train/{k}.png" for k in (0, 11, 23)
    ]
    found = json.loads(call("caption", "run", "--count", 2, "--json").stdout)
    assert [entry["image"] for entry in found] == [f"http://localhost/val/{k}.png" for k in (0, 11)]
    one_line(call("caption", "nowhere"), "nowhere is not a run")
    one_line(call("caption", "run", "--image", "a.png"), "cannot compute from an image")
    one_line(
        call("caption", "run", "--split", "test"), "has no split 'test'; expected train or val"
    )
    shutil.move(tiny, tiny.with_name("moved"))
    one_line(
        call("caption", "run"), "tiny, on which run was trained, does not exist; .*--data FOLDER"
    )
    assert call("caption", "run", "--data", "moved").exit_code == 0


def test_scenes_from_drawing_to_captioning_an_image_file(call, tmp_path):
    drawn = call("data", "scenes", "--out", "scenes", "--train", 40, "--val", 10)
    assert drawn.exit_code == 0, drawn.output
    assert drawn.stdout.strip() == "scenes"
    assert call("train", "--data", tmp_path / "scenes", "--out", "run", *SMALL).exit_code == 0
    pixels = numpy.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=numpy.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    shutil.rmtree(tmp_path / "scenes")
    result = call("caption", "run", "--image", "a.png", "--image", "a.png", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [entry["image"] for entry in found] == ["a.png", "a.png"]
    assert found[0]["caption"] == found[1]["caption"]
    (tmp_path / "b.png").write_text("no picture")
    one_line(call("caption", "run", "--image", "b.png"), "b.png")
    one_line(call("caption", "run", "--image", "none.png"), "none.png")
    one_line(call("data", "scenes", "--out", "run"), "run exists and is not an empty folder")


@pytest.mark.parametrize("model", FAMILIES)
def test_models_that_attend_to_regions_take_the_grid_of_scenes(model, call, monkeypatch, tmp_path):
    """In Python, too."""
    found = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for module in ("xpcap.data.scenes", "xpcap.api"):
        monkeypatch.setattr(f"{module}.make_scenes", lambda folder, **more: found.append(folder))
    assert call("train", "--model", model).exit_code == 2  # there is no data folder
    with pytest.raises(xpcap.XpcapError):
        xpcap.train(model=model)
    assert [folder.name for folder in found] == ["scenes" + "-grid" * (model != "recurrent")] * 2


def test_missing_coco_files_leave_nothing(call, tmp_path):
    one_line(call("data", "coco-json", "--captions", "c.json"), "Missing option '--instances'")
    one_line(
        call("data", "coco-json", "--captions", "c", "--instances", "i", "--out", "o"),
        "cannot read c: No such file",
    )
    assert list(tmp_path.iterdir()) == []


def test_selfcheck_passes_and_fails(call, monkeypatch):
    result = call("selfcheck", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "lstm_forward" in result.stdout
    assert ", 0 failed" in result.stderr
    checks = json.loads(call("selfcheck", "--device", "cpu", "--json").stdout)
    assert all(check["passed"] and check["error"] <= check["limit"] for check in checks)
    from xpcap import selfcheck

    bad = selfcheck.Check("broken", float("nan"), 1e-7)
    monkeypatch.setattr(selfcheck, "run", lambda backend: [bad])
    result = call("selfcheck", "--device", "cpu")
    assert result.exit_code == 1
    assert "FAILED" in result.stdout


def test_info_shows_versions_and_devices(call):
    found = json.loads(call("info", "--json").stdout)
    assert found["numpy"] == numpy.__version__
    assert {"python", "blas", "memory", "cpu"} <= set(found)
    assert "numpy" in call("info").stdout


def test_every_command_prints_help(call):
    def commands(group, words):
        yield words
        for name, command in getattr(group, "commands", {}).items():
            yield from commands(command, [*words, name])

    for words in commands(main, []):
        result = call(*words, "--help")
        assert result.exit_code == 0
        assert "Usage:" in result.stdout
    assert call("--version").stdout.startswith("xpcap, version")


def test_exit_status_and_streams_of_a_process(tiny, tmp_path):
    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", "xpcap", *map(str, words)],
            capture_output=True, text=True, cwd=tmp_path, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip

    done = run("train", "--data", tiny, "--out", "run", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "validation loss" in done.stdout
    failed = run("train", "--data", tiny, "--out", "run", *SMALL)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == "xpcap: run holds another run; expected a new name\n"


def test_bench_as_json(call):
    result = call("bench", "--rounds", "1", "--task", "decode", "--cell", "rnn", "--json")
    assert result.exit_code == 0
    programs = {entry["program"]: entry for entry in json.loads(result.stdout)}
    assert programs["xpcap"]["ms"] > 0
    assert programs["xpcap"]["times_xpcap"] == 1.0
    assert programs["products"]["config"] == "seed"


def test_bench_under_load_compares_numbers_of_threads(call, monkeypatch):
    monkeypatch.setattr(threads, "available", lambda: 2)
    result = call("bench", "--rounds", "1", "--cell", "rnn", "--load", "1", "--json")
    assert result.exit_code == 0
    programs = [entry["program"] for entry in json.loads(result.stdout)]
    assert programs == ["xpcap", "products", "xpcap, 1"]
