"""The mean of a run's last checkpoints, as a checkpoint."""

import os
from dataclasses import replace

import numpy
import pytest
from commands import one_line
from runs import begin, content, resume
from tiny import make_tiny

from xpcap.errors import CheckpointError
from xpcap.runs import BEST, LAST, average_checkpoints, open_run
from xpcap.runs.checkpoint import read_checkpoint, write_checkpoint
from xpcap.training.saving import Saving


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "tiny", regions=True)


@pytest.fixture
def run(tiny, tmp_path):
    begin(tiny, tmp_path / "run", epochs=4, lr=0.1, saving=Saving(keep=3))
    return tmp_path / "run"


def kept(run):
    return sorted(run.glob("step-*.safetensors"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_parameters_are_means_in_float64(tiny, tmp_path, dtype):
    run = tmp_path / "run"
    begin(tiny, run, epochs=4, lr=0.1, dtype=dtype, saving=Saving(keep=3))
    before = content(run)
    path = average_checkpoints(run)
    assert path == run / "average.safetensors"
    assert {**before, path.name: path.read_bytes()} == content(run)
    found = read_checkpoint(path)
    every = [read_checkpoint(one).state.parameters for one in kept(run)]
    for name, value in found.state.parameters.items():
        assert value.dtype == dtype
        assert not numpy.array_equal(value, every[-1][name])
        exact = numpy.mean([one[name].astype(numpy.longdouble) for one in every], axis=0)
        if dtype == "float32":
            numpy.testing.assert_array_equal(value, exact.astype(dtype))
        numpy.testing.assert_allclose(value, exact.astype(dtype), rtol=1e-15)
    assert found.config["averaged"] == {"steps": [10, 15, 20]}
    assert found.state.progress.step == 20


def test_the_last_of_them(run, tmp_path):
    path = average_checkpoints(run, tmp_path / "elsewhere.safetensors", last=2)
    assert read_checkpoint(path).config["averaged"] == {"steps": [15, 20]}


@pytest.mark.parametrize("model", ["recurrent", "attention"])
def test_other_commands_take_it_for_a_run(tiny, tmp_path, call, model):
    begin(tiny, tmp_path / "run", model=model, saving=Saving(keep=2))
    result = call("average", "run")
    assert (result.exit_code, result.stdout) == (0, "run/average.safetensors\n"), result.output
    file = result.stdout.strip()
    assert result.stderr == f"next: xpcap evaluate {file}\n"
    for words in (
        ["evaluate", file],
        ["evaluate", "run", file, "--metrics", "perplexity"],
        ["caption", file, "--count", 2],
        ["export", file, "--to", "torch"],
        ["inspect", file],
    ):
        cpu = [] if words[0] in ("export", "inspect") else ["--device", "cpu"]
        shown = call(*words, *cpu)
        assert shown.exit_code == 0, shown.output
    assert "averaged    steps [5, 10]" in shown.stdout
    exported = call("import", "run/captioner.safetensors", "--out", "imported")
    assert exported.exit_code == 0, exported.output
    mean = open_run(tmp_path / file).model.params
    for name, value in open_run(tmp_path / "imported").model.params.items():
        numpy.testing.assert_allclose(value, mean[name], rtol=1e-6, atol=1e-7)


def test_a_report_of_it(run, call):
    pytest.importorskip("matplotlib", reason="reports need the extra 'report'")
    pytest.importorskip("jinja2", reason="reports need the extra 'report'")
    average_checkpoints(run)
    result = call("report", "run/average.safetensors", "--device", "cpu")
    assert (result.exit_code, result.stdout) == (0, "run/report.html\n"), result.output


def test_training_does_not_resume_from_it(run, tmp_path):
    os.replace(average_checkpoints(run), run / LAST)
    with pytest.raises(CheckpointError, match=r"last.safetensors lacks optimizer state of adam"):
        resume(run, change=lambda options: options)


def test_too_few_are_one_line_that_says_how_to_keep_more(tiny, tmp_path, call):
    begin(tiny, tmp_path / "run", saving=Saving(keep=1))
    how = "expected {} or more: --keep N keeps those of the last N epochs, and with --save-every N"
    one_line(call("average", "run"), r"run has 1 of the checkpoints that .*" + how.format(2))
    one_line(call("average", "run", "--last", 3), how.format(3))
    one_line(call("average", "run", "--last", 1), "--last.*1 is not in the range")
    one_line(call("average", "run/best.safetensors"), "is not a run; .* such as run$")
    one_line(call("average", "nowhere"), "nowhere is not a run; expected a folder made by xpcap")


def test_no_file_is_replaced(run, call):
    for file in (BEST, kept(run)[0].name):
        before = content(run)
        result = call("average", "run", "--out", run / file)
        one_line(result, rf"{file} exists; expected a new name \(--out FILE\)")
        assert content(run) == before
    result = call("average", "run", "--out", "run/step-5.safetensors")
    one_line(
        result, r"step-5.safetensors has a name of training's .*; expected another \(--out FILE"
    )
    assert content(run) == before
    assert call("average", "run").exit_code == 0
    one_line(call("average", "run"), r"average.safetensors exists; expected a new name")


def of_another_model(checkpoint):
    model = {**checkpoint.config["model"], "cell_type": "gru"}
    return replace(checkpoint, config={**checkpoint.config, "model": model})


def of_other_shapes(checkpoint):
    wider = {name: numpy.hstack([value] * 2) for name, value in checkpoint.state.parameters.items()}
    return replace(checkpoint, state=replace(checkpoint.state, parameters=wider, memory={}))


@pytest.mark.parametrize(
    ("change", "what"), [(of_another_model, "model"), (of_other_shapes, "parameters")]
)
def test_a_checkpoint_of_another_model_is_named(run, call, change, what):
    path = kept(run)[1]
    write_checkpoint(path, change(read_checkpoint(path)))
    result = call("average", "run")
    one_line(result, f"{path.name} has another {what} than run/{kept(run)[2].name}; expected")
    assert not (run / "average.safetensors").exists()


def test_a_damaged_checkpoint_is_named(run, call):
    path = kept(run)[0]
    path.unlink()  # it may be a second name of another file
    path.write_bytes((run / LAST).read_bytes()[:-1])
    one_line(call("average", "run"), f"{path.name} is not a whole checkpoint of xpcap")
    assert not (run / "average.safetensors").exists()
