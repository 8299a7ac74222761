"""The Transformer in files of other programs."""

import json
import re
from pathlib import Path

import numpy
import oracle
import pytest
from captioners import (
    TRANSFORMERS,
    WORDS,
    D,
    H,
    V,
    contents,
    images,
    regions,
    scores_of,
    sentences,
    torch_transformer_scores,
    transformer,
)
from safetensors.numpy import save_file

import xpcap.exchange
from xpcap.data.vocabulary import END, NULL, START, UNK, Vocabulary
from xpcap.errors import XpcapError
from xpcap.exchange import export_run, from_torch, import_run, to_torch
from xpcap.exchange.contents import description, write_run
from xpcap.exchange.course import read_npz
from xpcap.runs import open_run

every_kind = pytest.mark.parametrize("kind", TRANSFORMERS)
README = Path(xpcap.exchange.__file__).with_name("README.md")
KEYS = slice(H, 2 * H)  # of the projections of cross attention
END_INDEX = WORDS.index(END)
BANNED = [WORDS.index(NULL), WORDS.index(UNK)]


@pytest.fixture
def vocab(tmp_path):
    Vocabulary(WORDS).write(tmp_path / "vocab.json")
    return tmp_path / "vocab.json"


def of_another_program(kind, dtype=numpy.float64):
    """Make a state dict in which keys have a bias, as they have in PyTorch."""
    state = to_torch(transformer(kind, 3, dtype).params)
    for k in range(2):
        state[f"decoder.layers.{k}.multihead_attn.in_proj_bias"][KEYS] = 0.5
    return state


def run_of(model, folder):
    described = contents(model)
    described.config["data"]["shape"] = [5, D]
    write_run(folder, described)
    return open_run(folder, "cpu")


@every_kind
def test_exported_state_dict_has_the_scores_of_the_model(kind):
    model, features, words = transformer(kind, dtype=numpy.float64), regions(), sentences()
    state = to_torch(model.params)
    found = torch_transformer_scores(state, 3, features, words)
    numpy.testing.assert_allclose(found, scores_of(model, features, words), rtol=0, atol=1e-10)
    assert all(value.flags.c_contiguous for value in state.values())


@every_kind
def test_state_dict_of_another_program_is_imported(kind, vocab, tmp_path):
    state, features, words = of_another_program(kind), regions(), sentences()
    save_file(state, tmp_path / "a.safetensors")
    run = import_run(tmp_path / "a.safetensors", tmp_path / "run", vocab=vocab, heads=3)
    expected = torch_transformer_scores(state, 3, features, words)
    found = scores_of(run.model, features, words)
    numpy.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    assert run.config["model"]["max_length"] == (13 if "positions.weight" in state else 31)
    run.model.params["b_vocab"][END_INDEX] = -1e9  # no caption ends before there is no position
    lengths = {len(caption.split()) for caption in run.caption(images())}
    assert lengths == {12 if "positions.weight" in state else 30}


def test_missing_biases_are_zeros():
    state = to_torch(transformer("encoder and decoder").params)
    without = {name: value for name, value in state.items() if "bias" not in name}
    zero = {name: value * ("bias" not in name) for name, value in state.items()}
    expected, found = from_torch(zero, V), from_torch(without, V)
    for name, value in expected.items():
        numpy.testing.assert_array_equal(found[name], value, strict=True)


@pytest.mark.parametrize("to", ["torch", "npz"])
@every_kind
def test_exported_files_are_imported_bit_for_bit(kind, to, vocab, tmp_path):
    run = run_of(transformer(kind), tmp_path / "run")
    export_run(run, to, tmp_path / "file")
    heads = None if to == "torch" else 3
    again = import_run(tmp_path / "file", tmp_path / "again", vocab=vocab, heads=heads)
    for name, value in run.model.params.items():
        numpy.testing.assert_array_equal(again.model.params[name], value, strict=True)
    if to == "torch":
        assert again.config["model"] == {**run.config["model"], "dtype": "float32"} | {
            name: again.config["model"][name] for name in ("dropout", "seed")
        }
    captions = (opened.model.sample(regions(), 12) for opened in (run, again))
    numpy.testing.assert_array_equal(*captions)


@pytest.mark.parametrize("to", ["torch", "npz"])
def test_shared_word_vectors_are_exported_twice(to, vocab, tmp_path, monkeypatch):
    monkeypatch.setitem(TRANSFORMERS, "tied", {"tie_embeddings": True})
    run = run_of(transformer("tied"), tmp_path / "run")
    export_run(run, to, tmp_path / "file")
    heads = None if to == "torch" else 3
    again = import_run(tmp_path / "file", tmp_path / "again", vocab=vocab, heads=heads)
    numpy.testing.assert_array_equal(again.model.params["W_vocab"], run.model.params["W_embed"].T)
    captions = (opened.model.sample(regions(), 12) for opened in (run, again))
    numpy.testing.assert_array_equal(*captions)


def test_number_of_heads_is_asked_for_and_compared(vocab, tmp_path):
    run = run_of(transformer("decoder"), tmp_path / "run")
    for to in ("torch", "npz"):
        export_run(run, to, tmp_path / to)
    for file, heads, message in (
        (
            "npz",
            None,
            r"npz does not say how many heads .*; expected their number \(heads=NUMBER\)",
        ),
        ("npz", 4, "npz: expected heads that divide H = 6, got 4"),
        ("torch", 2, "torch has 3 heads, not 2"),
    ):
        with pytest.raises(XpcapError, match=message):
            import_run(tmp_path / file, tmp_path / "out", vocab=vocab, heads=heads)
        assert not (tmp_path / "out").exists()


LAYER = "decoder.layers.1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{LAYER}.norm3.weight": None}, f"'{LAYER}.norm3.weight' is missing; expected .6,"),
        (
            {f"{LAYER}.norm4.weight": numpy.ones(H)},
            r"norm4.weight' is of shape \(6,\); expected no such array",
        ),
        ({f"{LAYER}.linear1.weight": numpy.ones((20, H))}, r"\(20, 6\); expected \(24, 6\)"),
        ({"decoder.layers.3.linear1.bias": numpy.ones(H)}, "'decoder.layers.2.*is missing"),
        (
            {"positions.weight": numpy.ones(())},
            r"'positions.weight' is of shape \(1,\); expected \(1, 6\)",
        ),
        ({"embedding.weight": numpy.ones((V + 1, H))}, r"\(9, 6\); expected \(8, 6\)"),
        (
            {"projection.weight": None},
            "; expected a captioner's projection",
        ),
        (
            {"projection.weight": numpy.ones((0, D))},
            "; expected a captioner's projection",
        ),
    ],
)
def test_layers_that_do_not_fit_are_named(changes, message, vocab, tmp_path):
    state = to_torch(transformer("decoder").params) | changes
    save_file({k: v for k, v in state.items() if v is not None}, tmp_path / "a.safetensors")
    with pytest.raises(XpcapError, match=rf"a\.safetensors: .*{message}") as caught:
        import_run(tmp_path / "a.safetensors", tmp_path / "out", vocab=vocab, heads=3)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layer.1.cross.b_key": numpy.ones(H)},
            r"'layer.1.cross.b_key' is of shape \(6,\); expected no such",
        ),
        ({"regions.w_norm": None}, r"a\.npz: 'regions.w_norm' is missing; expected \(6,"),
        ({"W_vocab": None}, "expected W_proj, b_proj, W_embed, W_vocab, b_vocab too"),
        ({"a\n" * 99: numpy.ones(H, int)}, r"'a\\na\\n.{,60} is int64 of shape"),
        ({"W_proj": numpy.ones(H)}, r"expected W_proj \(D, H\)"),
        (
            {"W_position": numpy.ones((9, 5))},
            r"'W_position' is of shape \(9, 5\); expected \(9, 6\)",
        ),
    ],
)
def test_parameters_that_do_not_fit_are_named(changes, message, tmp_path):
    params = transformer("decoder").params | changes
    numpy.savez(tmp_path / "a.npz", **{k: v for k, v in params.items() if v is not None})
    with pytest.raises(XpcapError, match=message):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("pooled", [False, True])
@every_kind
def test_graph_generates_the_captions_of_the_model(kind, pooled, tmp_path):
    """Images of which regions are absent, all of them too; captions that end and that do not."""
    onnx = pytest.importorskip("onnx", reason="an ONNX file needs onnx (the extra export)")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra onnx)")
    from xpcap.exchange.onnx_graph import greedy_graph

    model, features = transformer(kind), images(40) if pooled else regions(40)
    features[7] = 0
    model.params["b_vocab"][END_INDEX] += 1
    described = contents(model)
    described.config["data"]["shape"] = [D] if pooled else [5, D]
    graph = greedy_graph(described, 12, BANNED)
    onnx.checker.check_model(graph, full_check=True)
    session = runtime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    bias = model.params["b_vocab"]
    model.params["b_vocab"] = bias - 1e30 * numpy.isin(range(V), BANNED)
    parts = [features, features[:1], features[:0]]
    captions = [model.sample(part, 12) for part in parts]
    model.params["b_vocab"] = bias
    assert len(numpy.unique(captions[0], axis=0)) > 4
    assert 0 < (captions[0] == END_INDEX).any(axis=1).mean() < 1
    for part, expected in zip(parts, captions, strict=True):
        words, log_probs = session.run(None, {"features": part})
        padded = numpy.pad(words, ((0, 0), (0, 12 - words.shape[1])))
        numpy.testing.assert_array_equal(padded, expected)
        fed = numpy.insert(words[:, :-1], 0, WORDS.index(START), axis=1)
        logs = oracle.log_softmax(scores_of(model, part, fed))
        logs = numpy.take_along_axis(logs, words[..., None], axis=2)[..., 0] * (words > 0)
        numpy.testing.assert_allclose(log_probs, logs, rtol=0, atol=1e-4)


def test_exported_graph_captions_as_the_run(tmp_path, capfd):
    pytest.importorskip("onnx", reason="an ONNX file needs onnx (the extra export)")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra onnx)")
    run, features = run_of(transformer("decoder"), tmp_path / "run"), regions(9)
    export_run(run, "onnx", tmp_path / "a.onnx")
    session = runtime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    text = json.loads(session.get_modelmeta().custom_metadata_map["xpcap"])
    words = session.run(["words"], {"features": features})[0]
    assert Vocabulary(text["vocabulary"]).sentences(words) == run.caption(features)
    assert capfd.readouterr().err == ""  # no warnings of the runtime


@every_kind
def test_the_lines_of_the_readme_have_the_scores_of_the_model(kind, tmp_path, monkeypatch):
    """Also where PyTorch's keys have a bias, which the model does not."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    blocks = re.findall("```py\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    lines = next(block for block in blocks if "TransformerDecoder" in block)
    monkeypatch.chdir(tmp_path)
    model, features, words = transformer(kind, dtype=numpy.float64), regions(20), sentences(20, 12)
    given = {"features": torch.from_numpy(features).double(), "words": torch.from_numpy(words)}
    for state in (to_torch(model.params), of_another_program(kind)):
        save_file(state, "transformer.safetensors", {"xpcap": description(contents(model))})
        model.params = from_torch(state, V)
        expected = scores_of(model, features, words)
        torch.set_default_dtype(torch.float64)
        try:
            with torch.inference_mode():
                exec(lines, given)
        finally:
            torch.set_default_dtype(torch.float32)
        numpy.testing.assert_allclose(given["scores"].numpy(), expected, rtol=0, atol=1e-10)
