import json

import numpy
import pytest
from commands import one_line
from tiny import make_tiny

from xpcap.data.dataset import open_dataset
from xpcap.runs import open_run

SMALL = ["--hidden", "16", "--wordvec", "8", "--batch-size", "10", "--lr", "0.02"]


@pytest.fixture
def trained(call, tmp_path):
    make_tiny(tmp_path / "tiny")
    words = ["train", "--data", "tiny", "--out", "run", "--epochs", "12", "--device", "cpu"]
    assert call(*words, *SMALL).exit_code == 0
    return call


def captioned(call, run):
    found = call("caption", run, "--json", "--beam", "3", "--device", "cpu")
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def measured(call, run):
    found = call("evaluate", run, "--json", "--device", "cpu")
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


@pytest.mark.parametrize(
    ("to", "file", "more"),
    [("torch", "captioner.safetensors", []), ("npz", "captioner.npz", ["--data", "tiny"])],
)
def test_an_imported_run_captions_as_the_trained_one(trained, to, file, more, tmp_path):
    result = trained("export", "run", "--to", to)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"run/{file}\n"
    result = trained("import", f"run/{file}", "--out", "again", *more)
    assert result.exit_code == 0, result.output
    assert result.stdout == "again\n"
    expected = "input_dim=7, wordvec_dim=8, hidden_dim=16, cell_type='lstm'): 2,103 parameters"
    assert result.stderr == f"CaptioningRNN(15 words, {expected}, float32 on cpu\n"
    assert captioned(trained, "again") == captioned(trained, "run")
    assert measured(trained, "again") == measured(trained, "run")
    one_line(trained("curves", "again"), "again has no finite loss yet")
    both = trained("caption", "again", "run", "--json", "--device", "cpu")
    assert both.exit_code == 0, both.output
    assert trained("export", "again", "--to", to, "--out", "b").stdout == "b\n"
    expected = (tmp_path / "run" / file).read_bytes()
    if to == "npz":  # of the other, texts may stand in another order
        assert (tmp_path / "b").read_bytes() == expected


def test_an_onnx_file_captions_as_the_run(trained, tmp_path):
    pytest.importorskip("onnx", reason="an ONNX file needs onnx (the extra export)")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra onnx)")
    assert trained("export", "run", "--to", "onnx").stdout == "run/captioner.onnx\n"
    session = runtime.InferenceSession(
        tmp_path / "run" / "captioner.onnx", providers=["CPUExecutionProvider"]
    )
    features = open_dataset(tmp_path / "tiny").splits["val"].features[:]
    words, log_probs = session.run(None, {"features": features})
    vocabulary = json.loads(session.get_modelmeta().custom_metadata_map["xpcap"])["vocabulary"]
    captions = [
        " ".join(vocabulary[word] for word in row if vocabulary[word] not in ("<NULL>", "<END>"))
        for row in words
    ]
    run = open_run(tmp_path / "run", "cpu")
    assert captions == run.caption(features)
    expected = run.decode(features).log_probs[:, 0].sum(axis=1)
    numpy.testing.assert_allclose(log_probs.sum(axis=1), expected, rtol=0, atol=1e-4)


def test_export_replaces_an_existing_file(trained, tmp_path):
    (tmp_path / "a.npz").write_text("old")
    assert trained("export", "run", "--to", "npz", "--out", "a.npz").exit_code == 0
    with numpy.load(tmp_path / "a.npz") as file:
        assert len(file.files) == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "run"], "--to"),
        (["export", "run", "--to", "keras"], "'keras' is not one of 'torch', 'npz', 'onnx'"),
        (["export", "tiny", "--to", "npz"], "tiny is not a run"),
        (["export", "run", "--to", "npz", "--out", "run"], "cannot write run"),
        (["import", "none", "--out", "b"], "cannot read none: No such file"),
        (["import", "a.npz"], "--out"),
        (
            ["import", "run/best.safetensors", "--out", "b"],
            "run/best.safetensors is a checkpoint of a run, which needs no import: other commands",
        ),
        (["import", "tiny/coco2014_vocab.json", "--out", "b"], "is not a whole safetensors file"),
        (["import", "a.npz", "--out", "b"], "does not say which words it knows; expected the data"),
        (["import", "a.npz", "--out", "b", "--data", "none"], "cannot read none/coco2014_vocab"),
        (["import", "a.npz", "--out", "run", "--data", "tiny"], "run holds another run"),
        (
            ["import", "a.npz", "--out", "b", "--data", "tiny", "--heads", "2"],
            "a.npz has no attention with heads, not 2",
        ),
        (["import", "a.npz", "--out", "b", "--data", "tiny", "--features", "pca"], "no pca feat"),
    ],
)
def test_bad_arguments_are_one_line(call_beside_a_run, words, message, place_of_a_run):
    assert call_beside_a_run("export", "run", "--to", "npz", "--out", "a.npz").exit_code == 0
    one_line(call_beside_a_run(*words), message)
    assert not (place_of_a_run / "b").exists()
