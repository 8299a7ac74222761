import re
from pathlib import Path

import numpy
import pytest
from captioners import (
    CELLS,
    GATES,
    SCORINGS,
    D,
    H,
    V,
    W,
    captioner,
    contents,
    images,
    random_attention_state,
    random_state,
    regions,
    scores_of,
    sentences,
    torch_attention_scores,
    torch_scores,
)

import xpcap.exchange
from xpcap.errors import DataError
from xpcap.exchange import from_torch, to_torch
from xpcap.exchange.tensors import write_safetensors

every_cell = pytest.mark.parametrize("cell", CELLS)
every_scoring = pytest.mark.parametrize("scoring", SCORINGS)
README = Path(xpcap.exchange.__file__).with_name("README.md")


def loaded(cell, params, dtype=numpy.float64, **family):
    model = captioner(cell, dtype=dtype, **family)
    assert {name: value.shape for name, value in params.items()} == {
        name: value.shape for name, value in model.params.items()
    }
    model.params = dict(params)
    return model


@every_cell
def test_exported_state_dict_has_the_scores_of_the_model(cell):
    model, features, captions = captioner(cell, dtype=numpy.float64), images(), sentences()
    expected = scores_of(model, features, captions)
    found = torch_scores(cell, to_torch(model.params), features, captions)
    numpy.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@every_cell
@pytest.mark.parametrize(("dtype", "atol"), [(numpy.float64, 1e-13), (numpy.float32, 1e-6)])
def test_imported_state_dict_has_the_scores_of_pytorch(cell, dtype, atol):
    state, captions = random_state(cell, dtype=dtype), sentences()
    features = images(dtype=dtype)
    expected = torch_scores(cell, state, features, captions)
    model = loaded(cell, from_torch(state, V), dtype)
    found = scores_of(model, features, captions)
    assert found.dtype == dtype
    numpy.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@every_scoring
@every_cell
def test_exported_attention_has_the_scores_of_the_model(cell, scoring):
    model = captioner(cell, dtype=numpy.float64, family="attention", scoring=scoring)
    features, captions, state = regions(), sentences(), to_torch(model.params)
    expected = scores_of(model, features, captions)
    found = torch_attention_scores(cell, state, features, captions)
    numpy.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in random_attention_state(cell, scoring).items()
    }


@every_scoring
@every_cell
def test_imported_attention_has_the_scores_of_pytorch(cell, scoring):
    state, features, captions = random_attention_state(cell, scoring), regions(), sentences()
    expected = torch_attention_scores(cell, state, features, captions)
    model = loaded(cell, from_torch(state, V), numpy.float32, family="attention", scoring=scoring)
    numpy.testing.assert_allclose(scores_of(model, features, captions), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate.weight": numpy.ones((2, H))}, "its layer gate has 'weight' .* with 1 outputs, and"),
        ({"query.weight": numpy.ones(H)}, f"its layer query .* with {H} outputs, and its bias"),
        ({"context.bias": numpy.ones(H)}, "its layer context .* without bias"),
        ({"grid.weight": None}, "its layer grid has 'bias'"),
        ({"grid.scale": numpy.ones(H)}, "besides its recurrent layer it has .*'grid.scale'"),
        ({"recurrent.weight_ih": numpy.ones((4 * H, W))}, "besides its recurrent layer"),
        ({"gate.weight": None, "gate.bias": None}, "besides its recurrent layer it has .*'grid"),
    ],
)
def test_attention_that_does_not_fit_is_refused_in_one_line(changes, message):
    state = without_none(random_attention_state("lstm", "additive") | changes)
    with pytest.raises(DataError, match=message) as caught:
        from_torch(state, V)
    assert str(caught.value).isprintable()


@every_cell
def test_exported_arrays_have_the_shapes_and_layout_of_pytorch(cell):
    state = to_torch(captioner(cell).params)
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in random_state(cell).items()
    }
    assert all(value.flags.c_contiguous for value in state.values())


@every_cell
def test_layers_are_found_under_any_name(cell):
    state = random_state(cell)
    names = {"projection": "module.img2h", "embedding": "emb", "vocabulary": "net.3"}
    expected = from_torch(state, V)
    for recurrent, ending in (("net.rnn", "_l0"), ("cell", "")):
        renamed = {}
        for name, value in reversed(state.items()):
            layer, part = name.split(".")
            part = part.replace("_l0", ending)
            renamed[f"{names.get(layer, recurrent)}.{part}"] = value
        found = from_torch(renamed, V)
        for name, value in expected.items():
            numpy.testing.assert_array_equal(found[name], value)


@every_cell
def test_missing_biases_are_zeros(cell):
    state = random_state(cell)
    zero = {name: value * ("bias" not in name) for name, value in state.items()}
    without = {name: value for name, value in state.items() if "bias" not in name}
    expected, found = from_torch(zero, V), from_torch(without, V)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        numpy.testing.assert_array_equal(found[name], value)


def renamed(state, **names):
    """Rename layers."""
    return {
        f"{names.get(layer, layer)}.{part}": value
        for (layer, part), value in ((name.split("."), value) for name, value in state.items())
    }


def test_ambiguous_shapes_are_resolved_by_names():
    """As many words as hidden units: the two nn.Linear look alike."""
    state = random_state("lstm")
    state["projection.weight"] = numpy.ones((H, H), numpy.float32)
    state["vocabulary.weight"] = numpy.full((H, H), 2, numpy.float32)
    state["vocabulary.bias"] = state["vocabulary.bias"][:H]
    state["embedding.weight"] = state["embedding.weight"][:H]
    found = from_torch(state, H)
    assert (found["W_proj"] == 1).all()
    assert (found["W_vocab"] == 2).all()
    with pytest.raises(DataError, match="; as shapes are ambiguous, called projection, embedding"):
        from_torch(renamed(state, projection="a", vocabulary="b"), H)


def changed(state, **changes):
    """Change parts of the recurrent layer, given by their names; None takes one away."""
    new = {f"recurrent.{name}": value for name, value in changes.items()}
    return without_none(state | new)


def without_none(state):
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_ih_l1": numpy.ones((4 * H, H))},
        {"weight_ih_l0_reverse": numpy.ones((4 * H, W))},
        {"weight_hr_l0": numpy.ones((3, H))},
        {"bias_hh_l0": None},
        {"weight_hh_l0": None},
        {"weight_ih": numpy.ones((4 * H, W))},
        {"bias_hh_l0": None, "bias_hh_l1": numpy.ones(4 * H)},
        {"bias_hh_l0": None, "bias_hh_l0_reverse": numpy.ones(4 * H)},
    ],
)
def test_unsupported_recurrent_layers_are_refused(changes):
    message = r"its recurrent layer has '.*; expected one nn.LSTM, nn.GRU or nn.RNN of one layer"
    with pytest.raises(DataError, match=message):
        from_torch(changed(random_state("lstm"), **changes), V)


def test_exactly_one_recurrent_layer_is_required():
    state = random_state("gru")
    second = {name.replace("recurrent", "encoder"): value for name, value in state.items()}
    with pytest.raises(DataError, match=r"expected one nn\.LSTM"):
        from_torch(state | second, V)
    with pytest.raises(DataError, match="its recurrent layer has nothing; expected one"):
        from_torch({"a.weight": numpy.ones((2, 2))}, V)
    state["other.weight_hh_l0"] = state.pop("recurrent.weight_hh_l0")
    with pytest.raises(DataError, match=r"expected one nn\.LSTM"):
        from_torch(state, V)


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_hh_l0": numpy.ones((2 * H, H))},
        {
            "weight_hh_l0": numpy.ones((4 * H + 1, H)),
            "weight_ih_l0": numpy.ones((4 * H + 1, W)),
            "bias_ih_l0": numpy.ones(4 * H + 1),
            "bias_hh_l0": numpy.ones(4 * H + 1),
        },
        {"weight_hh_l0": numpy.ones((0, 0))},
        {"weight_hh_l0": numpy.ones(4 * H)},
        {"weight_hh_l0": numpy.ones(())},
        {"weight_ih_l0": numpy.ones((3 * H, W))},
        {"weight_ih_l0": numpy.ones(4 * H)},
        {"weight_ih_l0": numpy.ones((4 * H, W, 1))},
        {"bias_ih_l0": numpy.ones((4 * H, 1))},
        {"bias_hh_l0": numpy.ones(H)},
    ],
)
def test_inconsistent_recurrent_shapes_are_named(changes):
    with pytest.raises(DataError, match=r"expected \(G H, W\), \(G H, H\)") as caught:
        from_torch(changed(random_state("lstm"), **changes), V)
    for name, value in changes.items():
        assert f"'recurrent.{name}' {value.shape}" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"embedding.weight": numpy.ones((V - 1, W))},
        {"embedding.bias": numpy.ones(V)},
        {"embedding.weight": numpy.ones((V, W, 1))},
        {"projection.weight": numpy.ones((H + 1, D))},
        {"projection.weight": numpy.ones(H)},
        {"projection.bias": numpy.ones(D)},
        {"vocabulary.weight": numpy.ones((V, H + 1))},
        {"vocabulary.bias": numpy.ones(V + 1)},
        {"batchnorm.weight": numpy.ones(H)},
        {"projection.scale": numpy.ones(H)},
        {"projection": numpy.ones(H)},
        {"steps": numpy.ones(())},
        {"embedding.weight": None},
    ],
)
def test_missing_and_unexpected_layers_are_refused(changes):
    expected = rf"expected the weights of an nn.Embedding \({V}, {W}\) for {V} words, of an"
    with pytest.raises(DataError, match=expected) as caught:
        from_torch(without_none(random_state("gru") | changes), V)
    for name, value in without_none(changes).items():
        assert f"'{name}' {value.shape}" in str(caught.value)


def test_messages_are_short_and_printable():
    state = {f"{k}\x1b[2J\n.weight" * 9: numpy.ones(1) for k in range(10000)}
    with pytest.raises(DataError) as caught:
        from_torch(state | random_state("gru"), V)
    assert len(str(caught.value)) < 2000
    assert str(caught.value).isprintable()
    assert "more; expected" in str(caught.value)


@every_cell
def test_scores_equal_those_of_pytorch(cell):
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    nn, layer = torch.nn, {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}[cell]
    module = nn.ModuleDict(
        {
            "projection": nn.Linear(D, H),
            "embedding": nn.Embedding(V, W),
            "recurrent": getattr(nn, layer)(W, H, batch_first=True),
            "vocabulary": nn.Linear(H, V),
        }
    )
    features, captions = images(20), sentences(20, 12)

    def scores():
        with torch.inference_mode():
            h0 = module["projection"](torch.from_numpy(features))[None]
            first = (h0, torch.zeros_like(h0)) if cell == "lstm" else h0
            h, _ = module["recurrent"](module["embedding"](torch.from_numpy(captions)), first)
            return module["vocabulary"](h).numpy()

    module.load_state_dict(
        {name: torch.from_numpy(value) for name, value in random_state(cell, 3).items()}
    )
    theirs = {name: value.numpy() for name, value in module.state_dict().items()}
    model = loaded(cell, from_torch(theirs, V), numpy.float32)
    expected = scores()
    found = scores_of(model, features, captions)
    numpy.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)

    model = captioner(cell, seed=4)
    ours = {name: torch.from_numpy(value) for name, value in to_torch(model.params).items()}
    module.load_state_dict(ours)
    expected = scores_of(model, features, captions)
    numpy.testing.assert_allclose(scores(), expected, rtol=0, atol=1e-6)
    assert sum(p.numel() for p in module["recurrent"].parameters()) == GATES[cell] * H * (W + H + 2)


@every_scoring
@every_cell
def test_the_lines_of_the_readme_have_the_scores_of_attention(cell, scoring, tmp_path, monkeypatch):
    """As they stand there for an LSTM with the additive score; changed where it says so."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    lines = next(
        block for block in re.findall("```py\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
        if "LSTMCell" in block
    )  # fmt: skip
    if cell != "lstm":
        lines = lines.replace("LSTMCell", {"rnn": "RNNCell", "gru": "GRUCell"}[cell])
        lines = lines.replace("h, c = model", "h = model").replace(", (h, c))", ", h)")
    if scoring == "dot":
        lines = "\n".join(line for line in lines.split("\n") if "additive" not in line)
        lines = lines.replace("# dot: ", "")
    monkeypatch.chdir(tmp_path)
    model = captioner(cell, seed=4, family="attention", scoring=scoring)
    write_safetensors(Path("attention.safetensors"), contents(model))
    features, words = regions(20), sentences(20, 12)
    given = {"features": torch.from_numpy(features), "words": torch.from_numpy(words)}
    with torch.inference_mode():
        exec(lines, given)
    found = torch.stack(given["scores"], 1).numpy()
    numpy.testing.assert_allclose(found, scores_of(model, features, words), rtol=0, atol=2e-6)
