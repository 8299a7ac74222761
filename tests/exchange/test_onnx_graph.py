import json

import numpy
import oracle
import pytest

onnx = pytest.importorskip("onnx", reason="building networks needs onnx (the extra export)")
runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra onnx)")

from captioners import (
    CELLS,
    SCORINGS,
    WORDS,
    D,
    H,
    V,
    captioner,
    contents,
    images,
    regions,
    scores_of,
    transformer,
)
from onnx import TensorProto, helper

from xpcap.data.pca import PCA
from xpcap.errors import DataError
from xpcap.exchange import onnx_graph
from xpcap.exchange.onnx_graph import greedy_graph, write_onnx

every_cell = pytest.mark.parametrize("cell", CELLS)
NULL, START, END, UNK = range(4)


def run(model, features, **more):
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs = [output.name for output in session.get_outputs()]
    return dict(zip(outputs, session.run(None, {"features": features, **more}), strict=True))


def padded(words, length):
    return numpy.pad(words, ((0, 0), (0, length - words.shape[1])))


def test_a_graph_of_attention_is_opened_without_a_warning(capfd):
    graph = greedy_graph(contents(captioner("lstm", family="attention")), 3)
    runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    assert capfd.readouterr().err == ""


@every_cell
def test_graph_generates_the_captions_of_the_model(cell):
    """Captions of which some end before the last word and some do not."""
    ended = []
    for seed in range(4):
        model, features = captioner(cell, seed, scale=1.5), images(40)
        expected = model.sample(features, max_length=12)
        found = run(greedy_graph(contents(model), 12), features)
        assert found["words"].dtype == numpy.int64
        numpy.testing.assert_array_equal(padded(found["words"], 12), expected)
        ended.append((expected == END).any(axis=1))
    assert 0 < numpy.mean(ended) < 1


@pytest.mark.parametrize("L", [1, 5])
@pytest.mark.parametrize("scoring", SCORINGS)
@every_cell
def test_graph_looks_at_the_regions_that_are_present(cell, scoring, L):
    """Images of which regions are absent, all of them too."""
    for seed in range(4):
        model = captioner(cell, seed, scale=1.0, family="attention", scoring=scoring)
        features, graph = regions(40, L), greedy_graph(contents(model), 12)
        onnx.checker.check_model(graph, full_check=True)
        for part in (features, features[:1], features[:0]):
            found = run(graph, part)["words"]
            numpy.testing.assert_array_equal(padded(found, 12), model.sample(part, 12))
    dims = graph.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["N", "L", D]


@pytest.mark.parametrize("family", ["recurrent", "attention", "transformer"])
def test_absent_regions_stay_absent_in_a_graph_with_a_transform(family):
    draw = numpy.random.default_rng(3).standard_normal
    reduction = PCA(draw(9), draw((D, 9)), numpy.ones(D))
    model = (
        transformer("encoder and decoder")
        if family == "transformer"
        else captioner("lstm", scale=1.0, family=family)
    )
    features = regions(40, width=9)
    reduced = (features - reduction.mean) @ reduction.components.T
    reduced *= features.any(axis=2, keepdims=True)
    described = contents(model, reduction)
    described.config["data"]["shape"] = [5, D]
    found = run(greedy_graph(described, 12), features)["words"]
    expected = model.sample(reduced.astype(numpy.float32), 12)
    assert len(numpy.unique(expected, axis=0)) > 8
    numpy.testing.assert_array_equal(padded(found, 12), expected)


@every_cell
def test_scores_and_log_probabilities_are_those_of_the_model(cell):
    """The model is fed with the words of the graph."""
    model, features, T = captioner(cell, scale=0.6), images(5), 8
    graph = greedy_graph(contents(model), T, [END])  # so that no caption ends
    loop = next(node for node in graph.graph.node if node.op_type == "Loop")
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    body.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ("N", V)))
    loop.output.append("all_scores")
    kind = helper.make_tensor_value_info("all_scores", TensorProto.FLOAT, ("T", "N", V))
    graph.graph.output.append(kind)
    found = run(graph, features)
    words = found["words"]
    assert words.shape == (5, T)
    fed = numpy.concatenate([numpy.full((5, 1), START), words[:, :-1]], axis=1)
    expected = scores_of(model, features, fed)
    numpy.testing.assert_allclose(
        found["all_scores"].transpose(1, 0, 2), expected, rtol=0, atol=1e-5
    )
    logs = numpy.take_along_axis(oracle.log_softmax(expected), words[..., None], axis=2)[..., 0]
    assert found["log_probs"].dtype == numpy.float32
    numpy.testing.assert_allclose(found["log_probs"], logs, rtol=0, atol=1e-5)


@every_cell
def test_banned_words_are_not_generated(cell):
    model, features = captioner(cell, scale=1.5), images(40)
    free = run(greedy_graph(contents(model), 12), features)["words"]
    assert numpy.isin(free, [START, UNK]).any()
    found = run(greedy_graph(contents(model), 12, [NULL, START, UNK]), features)["words"]
    assert not numpy.isin(found, [START, UNK]).any()
    model.params["b_vocab"][[NULL, START, UNK]] = -1e30
    numpy.testing.assert_array_equal(padded(found, 12), model.sample(features, 12))


def test_captions_are_padded_after_end():
    model = captioner("rnn")
    model.params = {name: numpy.zeros_like(value) for name, value in model.params.items()}
    model.params["b_vocab"][END] = 1
    found = run(greedy_graph(contents(model), 30), images(3))
    assert found["words"].tolist() == [[END]] * 3  # and the loop ends
    model = captioner("lstm", 1, scale=1.5)
    found = run(greedy_graph(contents(model), 12), images(40))
    ended = numpy.cumsum(found["words"] == END, axis=1) - (found["words"] == END) > 0
    assert ended.any()
    assert (found["words"][ended] == NULL).all()
    assert (found["log_probs"][ended] == 0).all()
    assert (found["log_probs"][~ended] < 0).all()


@every_cell
def test_number_of_images_is_dynamic(cell):
    graph = greedy_graph(contents(captioner(cell)), 30)
    onnx.checker.check_model(graph, full_check=True)
    for count in (0, 1, 7):
        found = run(graph, images(count))
        assert found["words"].shape == found["log_probs"].shape
        assert len(found["words"]) == count
    (features,) = graph.graph.input
    dims = features.type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["N", D]


def test_double_precision_is_converted():
    model = captioner("gru", dtype=numpy.float64, scale=1.5)
    found = run(greedy_graph(contents(model), 12), images(10))["words"]
    expected = model.sample(images(10).astype(numpy.float64), 12)
    numpy.testing.assert_array_equal(padded(found, 12), expected)


def test_graph_includes_the_pca_transform():
    draw = numpy.random.default_rng(3).standard_normal
    reduction = PCA(1e5 + draw(9), draw((D, 9)), numpy.ones(D))
    model, features = captioner("lstm", scale=1.5), (1e5 + draw((20, 9))).astype(numpy.float32)
    found = run(greedy_graph(contents(model, reduction), 12), features)["words"]
    reduced = (features.astype(float) - reduction.mean) @ reduction.components.T
    numpy.testing.assert_array_equal(padded(found, 12), model.sample(reduced, 12))


def test_metadata_hold_vocabulary_and_configuration(tmp_path):
    model = captioner("gru")
    write_onnx(tmp_path / "a.onnx", contents(model), 12, [NULL])
    session = runtime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    text = json.loads(session.get_modelmeta().custom_metadata_map["xpcap"])
    assert text["vocabulary"] == WORDS
    assert text["config"]["model"]["hidden_dim"] == H
    found = session.run(["words"], {"features": images(4)})[0]
    model.params["b_vocab"][NULL] = -1e30
    numpy.testing.assert_array_equal(padded(found, 12), model.sample(images(4), 12))
    assert onnx.load(tmp_path / "a.onnx").opset_import[0].version == 17


def test_models_beyond_the_onnx_size_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "_LARGEST", 400)
    with pytest.raises(DataError, match=r"the captioner has \d+ bytes; expected less than 400"):
        write_onnx(tmp_path / "a.onnx", contents(captioner("rnn")), 12)
