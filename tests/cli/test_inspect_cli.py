"""The contents of a checkpoint, as JSON and as text."""

import json
import shutil
from dataclasses import replace

import numpy
import pytest
import safetensors
from commands import one_line
from runs import begin
from tiny import make_tiny

import xpcap
from xpcap.backend import CPU
from xpcap.runs.checkpoint import read_checkpoint, write_checkpoint


@pytest.fixture
def run(tmp_path):
    data = make_tiny(tmp_path / "tiny")
    return begin(data, tmp_path / "run", CPU, dtype="float64", cell="gru", rule="rmsprop")[0]


def test_json_has_the_metadata_and_arrays_of_the_file(call, run, tmp_path):
    found = json.loads(call("inspect", "run", "--json").stdout)
    path = tmp_path / "run" / "last.safetensors"
    assert found["file"] == "run/last.safetensors"
    assert found["bytes"] == path.stat().st_size
    assert found["format"] == 2
    assert found["words"] == 15
    with safetensors.safe_open(path, "numpy") as file:
        text = json.loads(file.metadata()["xpcap"])
        for name in ("written_by", "config", "optimizer", "progress"):
            assert found[name] == text[name]
        assert {array["name"] for array in found["arrays"]} == set(file.keys())
        for array in found["arrays"]:
            there = file.get_tensor(array["name"])
            assert array["dtype"] == "float64"
            assert array["shape"] == list(there.shape)
            assert array["bytes"] == there.nbytes == 8 * numpy.prod(there.shape)
    assert found["written_by"]["device"] == "cpu"
    assert found["written_by"]["xpcap"] == xpcap.__version__


def test_text_has_the_metadata_and_arrays_of_the_file(call, run):
    lines = call("inspect", "run").stdout.splitlines()
    shown = {line[:11].strip(): line[12:] for line in lines}
    assert shown["file"] == "run/last.safetensors"
    assert shown["format"] == "2"
    assert f"xpcap {xpcap.__version__}, python " in shown["written by"]
    assert shown["written by"].endswith(", device cpu")
    assert shown["progress"].startswith("step 10, epoch 2, best_loss ")
    assert "hidden_dim 8, cell_type gru" in shown["model"]
    assert "kind fc7, name tiny, " in shown["data"]
    assert "schedule.epochs 2, " in shown["training"]
    assert shown["words"] == "15"
    tables = [" ".join(line.split()) for line in lines]
    assert "parameters.Wh float64 8 × 24 1,536 bytes" in tables
    assert "memory.cache.Wh float64 8 × 24 1,536 bytes" in tables


def test_a_file_or_a_run_with_only_the_best_checkpoint(call, run, tmp_path):
    best = call("inspect", "run/best.safetensors", "--json").stdout
    names = {array["name"].split(".")[0] for array in json.loads(best)["arrays"]}
    assert names == {"parameters"}
    (tmp_path / "run" / "last.safetensors").unlink()
    assert call("inspect", "run", "--json").stdout == best


def test_anything_but_a_whole_checkpoint_is_refused(call, run, tmp_path):
    one_line(call("inspect", "tiny"), "tiny is not a run; expected a folder made by xpcap train")
    one_line(call("inspect", "none"), "cannot read none: No such file or directory")
    one_line(call("inspect", "run/history.jsonl"), "history.jsonl is not a whole checkpoint")
    assert call("export", "run", "--to", "torch", "--out", "weights").exit_code == 0
    one_line(call("inspect", "weights"), "weights is no checkpoint of a run; weights that")
    path = tmp_path / "run" / "last.safetensors"
    shutil.copy(path, tmp_path / "cut")
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-1])
    one_line(call("inspect", "cut"), "cut is not a whole checkpoint of xpcap")
    content = path.read_bytes()
    assert content.count(b'\\"format\\": 2') == 1
    path.write_bytes(content.replace(b'\\"format\\": 2', b'\\"format\\": 3'))
    one_line(call("inspect", "run", "--json"), "has format 3, written by xpcap 0.1.0; expected for")


def test_control_characters_in_the_configuration_are_escaped(call, run, tmp_path):
    path = tmp_path / "run" / "last.safetensors"
    last = read_checkpoint(path)
    config = {**last.config, "note": "\x1b[2Jgone", "\x1b[31m": [1, "\n\x07"]}
    write_checkpoint(path, replace(last, config=config))
    result = call("inspect", "run")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout
    assert "\\x1b[2Jgone" in result.stdout
