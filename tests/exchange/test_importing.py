import io
import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from captioners import (
    CELLS,
    SCORINGS,
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
from safetensors.numpy import save_file
from test_tensors import laid_out
from tiny import COLOURS, SHAPES, make_tiny

from xpcap.data import folder as layout
from xpcap.data.pca import PCA
from xpcap.data.vocabulary import Vocabulary
from xpcap.errors import CheckpointError, ConfigurationError, DataError, XpcapError
from xpcap.exchange import FORMATS, export_run, import_run, to_torch
from xpcap.exchange.contents import Contents, write_run
from xpcap.models import AttentionRNN, CaptioningRNN
from xpcap.runs import open_run

every_cell = pytest.mark.parametrize("cell", CELLS)
D, K = len(COLOURS) + len(SHAPES), 3


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "tiny")


def words_of(folder):
    return Vocabulary.read(folder / layout.VOCABULARY)


def model_for(folder, cell="lstm", dim=D, dtype=numpy.float32):
    """Build a captioner of random weights for a data folder."""
    vocabulary = words_of(folder)
    sizes = {"input_dim": dim, "wordvec_dim": 4, "hidden_dim": 6, "cell_type": cell}
    model = CaptioningRNN(vocabulary.word_to_idx, **sizes, dtype=dtype, seed=0, backend="cpu")
    rng = numpy.random.default_rng(7)
    model.params = {
        name: rng.standard_normal(value.shape).astype(dtype) for name, value in model.params.items()
    }
    return model, {**sizes, "dropout": 0.3, "dtype": numpy.dtype(dtype).name, "seed": 5}


def run_for(folder, out, cell="lstm", dtype=numpy.float32, **data):
    model, sizes = model_for(folder, cell, K if data.get("kind") == "pca" else D, dtype)
    origin = {
        "folder": str(folder), "kind": "fc7", "name": "tiny", "features": "given away",
        "max_words": 6,
        "extractor": None, **data,
    }  # fmt: skip
    transform = reduction() if origin["extractor"] else None
    config = {"model": sizes, "data": origin, "training": {"lr": 1}}
    write_run(out, Contents(model.params, words_of(folder), config, transform))
    return open_run(out, "cpu")


def reduction(scale=1.0):
    rng = numpy.random.default_rng(8)
    mean, components = rng.standard_normal(D), scale * rng.standard_normal((K, D))
    return PCA(mean, components, numpy.ones(K))


def same(run, other):
    assert run.model.params.keys() == other.model.params.keys()
    for name, value in run.model.params.items():
        numpy.testing.assert_array_equal(other.model.params[name], value, strict=True)
    assert run.vocabulary.idx_to_word == other.vocabulary.idx_to_word


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
@every_cell
def test_exported_state_dicts_are_imported_bit_for_bit(cell, dtype, tiny, tmp_path):
    run = run_for(tiny, tmp_path / "run", cell, dtype)
    export_run(run, "torch", tmp_path / "a.safetensors")
    again = import_run(tmp_path / "a.safetensors", tmp_path / "again")
    same(run, again)
    same(run, open_run(tmp_path / "again", "cpu"))
    assert again.folder == tmp_path / "again"
    assert again.config["model"] == run.config["model"]
    assert again.config["data"] == run.config["data"]
    assert again.config["imported"] == "a.safetensors"
    features = numpy.eye(D, dtype=numpy.float32)
    assert again.caption(features) == run.caption(features)


@every_cell
def test_exported_npz_is_imported_bit_for_bit(cell, tiny, tmp_path):
    run = run_for(tiny, tmp_path / "run", cell)
    export_run(run, "npz", tmp_path / "a.npz")
    again = import_run(tmp_path / "a.npz", tmp_path / "again", tiny)
    same(run, again)
    assert again.config["data"] == {**run.config["data"], "shape": [D]}


@pytest.mark.parametrize("to", ["torch", "npz"])
@pytest.mark.parametrize("scoring", SCORINGS)
@every_cell
def test_exported_attention_is_imported_bit_for_bit(cell, scoring, to, tmp_path):
    options = {"family": "attention", "scoring": scoring}
    described = contents(captioner(cell, doubly_stochastic=0.5, **options))
    write_run(tmp_path / "run", described)
    described.vocabulary.write(tmp_path / "vocab.json")
    run, path = open_run(tmp_path / "run", "cpu"), tmp_path / "file"
    export_run(run, to, path)
    again = import_run(path, tmp_path / "again", vocab=tmp_path / "vocab.json")
    same(run, again)
    assert again.config["model"].items() >= options.items()
    assert again.model.doubly_stochastic == (0.5 if to == "torch" else 0)
    numpy.testing.assert_array_equal(again.decode(regions()).words, run.decode(regions()).words)


@pytest.mark.parametrize("scoring", SCORINGS)
@every_cell
def test_attention_of_another_program_is_imported(cell, scoring, tmp_path):
    state, features, captions = random_attention_state(cell, scoring), regions(), sentences()
    save_file(state, tmp_path / "a.safetensors")
    Vocabulary(captioner(cell).idx_to_word.values()).write(tmp_path / "vocab.json")
    run = import_run(tmp_path / "a.safetensors", tmp_path / "run", vocab=tmp_path / "vocab.json")
    expected = torch_attention_scores(cell, state, features, captions)
    found = scores_of(run.model, features, captions)
    numpy.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert len(run.caption(features)) == len(features)
    with pytest.raises(DataError, match=r"expected \(N, L, "):
        run.caption(features[:, 0])


def test_attention_is_not_imported_with_plain_vectors(tiny, tmp_path):
    vocabulary = words_of(tiny)
    model = AttentionRNN(vocabulary.word_to_idx, D, 4, 6, "gru", seed=0, backend="cpu")
    numpy.savez(tmp_path / "a.npz", **model.params)
    with pytest.raises(ConfigurationError, match=r"looks at regions, but .*tiny has one vector"):
        import_run(tmp_path / "a.npz", tmp_path / "out", tiny)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Wz": None}, r"a\.npz: 'Wz' is missing; expected \(6, 24\)"),
        (
            {"w_score": numpy.ones(7, "f4")},
            r"a\.npz: 'w_score' is of shape \(7,\); expected \(6,\)",
        ),
        ({"W_gate": numpy.ones((6, 2), "f4"), "b_gate": numpy.ones(2, "f4")}, "'W_gate' is of sh"),
        ({"W_extra": numpy.ones(2, "f4")}, r"a\.npz: 'W_extra' is of .*; expected no such"),
    ],
)
def test_parameters_of_attention_that_do_not_fit_are_refused_in_one_line(
    changes, message, tmp_path
):
    params = captioner("lstm", family="attention").params | changes
    numpy.savez(tmp_path / "a.npz", **{k: v for k, v in params.items() if v is not None})
    Vocabulary(captioner("lstm").idx_to_word.values()).write(tmp_path / "vocab.json")
    with pytest.raises(XpcapError, match=message) as caught:
        import_run(tmp_path / "a.npz", tmp_path / "out", vocab=tmp_path / "vocab.json")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@every_cell
def test_state_dict_of_another_program_is_imported(cell, tmp_path):
    state, features, captions = random_state(cell), images(), sentences()
    save_file(state, tmp_path / "a.safetensors")
    model = captioner(cell)
    Vocabulary(model.idx_to_word.values()).write(tmp_path / "vocab.json")
    run = import_run(tmp_path / "a.safetensors", tmp_path / "run", vocab=tmp_path / "vocab.json")
    found = scores_of(run.model, features, captions)
    expected = torch_scores(cell, state, features, captions)
    numpy.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert run.config["model"]["cell_type"] == cell
    assert len(run.caption(features)) == 3


def test_half_precision_is_converted_before_biases_are_added(tmp_path):
    state = random_state("lstm", dtype=numpy.float16)
    save_file(state, tmp_path / "a.safetensors")
    Vocabulary(captioner("lstm").idx_to_word.values()).write(tmp_path / "vocab.json")
    run = import_run(tmp_path / "a.safetensors", tmp_path / "run", vocab=tmp_path / "vocab.json")
    assert {value.dtype for value in run.model.params.values()} == {numpy.dtype("f4")}
    b_ih, b_hh = (state[f"recurrent.bias_{part}_l0"].astype("f4") for part in ("ih", "hh"))
    numpy.testing.assert_array_equal(run.model.params["b"][:12], (b_ih + b_hh)[:12])
    assert run.config["model"]["dtype"] == "float32"


def reduced(tiny, scale=1.0):
    """Add PCA features and their transform to a data folder."""
    description = json.loads((tiny / layout.DESCRIPTION).read_text())
    description["extractor"] = {"name": "filter-bank", "version": 1}
    (tiny / layout.DESCRIPTION).write_text(json.dumps(description))
    reduction(scale).write(tiny / layout.PCA)
    for split in layout.SPLITS:
        full = numpy.zeros((24 if split == "train" else 12, D), numpy.float32)
        content = reduction(scale).transform(full)
        layout.write_features(tiny / layout.features_file(split, "pca"), (len(full), K), [content])
    return {"kind": "pca", "extractor": description["extractor"]}


def test_pca_transform_is_exported_and_imported(tiny, tmp_path):
    run = run_for(tiny, tmp_path / "run", **reduced(tiny))
    export_run(run, "torch", tmp_path / "a.safetensors")
    again = import_run(tmp_path / "a.safetensors", tmp_path / "again")
    assert again.transform.equals(run.transform)
    same(run, again)
    moved = tiny.rename(tmp_path / "moved")
    again = import_run(tmp_path / "a.safetensors", tmp_path / "there", moved)
    assert again.config["data"] == {**run.config["data"], "folder": str(moved)}
    export_run(run, "npz", tmp_path / "a.npz")
    again = import_run(tmp_path / "a.npz", tmp_path / "third", moved)
    assert again.transform.equals(run.transform)
    assert again.config["data"]["kind"] == "pca"

    reduced(moved, 2.0)
    with pytest.raises(DataError, match=r"moved has other principal components than .*a\.safe"):
        import_run(tmp_path / "a.safetensors", tmp_path / "fourth", moved)
    assert not (tmp_path / "fourth").exists()


def test_choice_of_features_of_a_data_folder(tiny, tmp_path):
    reduced(tiny)
    for dim, features, kind in ((D, "auto", "fc7"), (K, "auto", "pca"), (D, "fc7", "fc7")):
        model, _ = model_for(tiny, dim=dim)
        save_file(to_torch(model.params), tmp_path / "a.safetensors")
        out = tmp_path / f"{dim}-{features}"
        run = import_run(tmp_path / "a.safetensors", out, tiny, features=features)
        assert run.config["data"]["kind"] == kind
        assert run.config["data"]["extractor"] == {"name": "filter-bank", "version": 1}
        assert (out / "pca.h5").exists() == (kind == "pca")
    message = r"tiny has 3 features per image; expected 7, as .*a\.safetensors was trained with"
    model, _ = model_for(tiny)
    save_file(to_torch(model.params), tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=message):
        import_run(tmp_path / "a.safetensors", tmp_path / "x", tiny, features="pca")
    assert not (tmp_path / "x").exists()


def test_vocabularies_of_all_sources_must_agree(tiny, tmp_path):
    run = run_for(tiny, tmp_path / "run")
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    export_run(run, "torch", ours)
    save_file(to_torch(run.model.params), theirs)
    words = list(words_of(tiny).idx_to_word)
    others = tmp_path / "others.json"
    Vocabulary([*words[:-1], "another"]).write(others)
    more = tmp_path / "more.json"
    Vocabulary([*words, "another"]).write(more)
    out = tmp_path / "out"
    with pytest.raises(ConfigurationError, match=r"theirs.* which words it knows; .*vocab=FILE\)"):
        import_run(theirs, out)
    with pytest.raises(DataError, match=r"others\.json has other words than .*ours\.safetensors"):
        import_run(ours, out, vocab=others)
    with pytest.raises(
        DataError, match=r"coco2014_vocab\.json has other words than .*others\.json"
    ):
        import_run(theirs, out, tiny, vocab=others)
    with pytest.raises(DataError, match=r"theirs\.safetensors: besides .* for 16 words"):
        import_run(theirs, out, vocab=more)
    export_run(run, "npz", tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"a\.npz has weights of 15 words; expected 16 as the voc"):
        import_run(tmp_path / "a.npz", out, vocab=more)
    with pytest.raises(DataError, match=r"cannot read .*none\.json"):
        import_run(theirs, out, vocab=tmp_path / "none.json")
    with pytest.raises(ConfigurationError, match="takes features of the kind fc7, not pca"):
        import_run(ours, out, features="pca")
    assert not out.exists()
    equal = tmp_path / "equal.json"
    Vocabulary(words).write(equal)
    same(run, import_run(ours, out, tiny, equal))


def test_existing_folders_are_not_overwritten(tiny, tmp_path):
    run = run_for(tiny, tmp_path / "run")
    export_run(run, "torch", tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="run holds another run; expected a new name"):
        import_run(tmp_path / "a.safetensors", tmp_path / "run")
    with pytest.raises(DataError, match="tiny exists and is not an empty folder"):
        import_run(tmp_path / "a.safetensors", tiny)
    (tmp_path / "empty").mkdir()
    same(run, import_run(tmp_path / "a.safetensors", tmp_path / "empty"))


@pytest.mark.parametrize("bad", [numpy.nan, numpy.inf])
def test_non_finite_weights_are_refused(bad, tiny, tmp_path):
    model, _ = model_for(tiny)
    model.params["Wh"][2, 3] = bad
    save_file(to_torch(model.params), tmp_path / "a.safetensors")
    numpy.savez(tmp_path / "a.npz", **model.params)
    for name, part in (("a.safetensors", "recurrent.weight_hh_l0"), ("a.npz", "Wh")):
        with pytest.raises(DataError, match=f"'{part}' holds NaN or infinite numbers"):
            import_run(tmp_path / name, tmp_path / "out", tiny)
    assert not (tmp_path / "out").exists()


def test_empty_layers_are_refused(tiny, tmp_path):
    state = to_torch(model_for(tiny)[0].params)
    state["projection.weight"] = state["projection.weight"][:, :0].copy()
    del state["projection.bias"]
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=r"'W_proj' is float32 of shape \(0, 6\); expected"):
        import_run(tmp_path / "a.safetensors", tmp_path / "out", tiny)


def test_overflowing_bias_sums_are_refused(tiny, tmp_path):
    state = to_torch(model_for(tiny)[0].params)
    for part in ("ih", "hh"):
        state[f"recurrent.bias_{part}_l0"][:] = 3e38
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=r"a\.safetensors: 'b' holds NaN or infinite numbers"):
        import_run(tmp_path / "a.safetensors", tmp_path / "out", tiny)


def hostile(words, **changes):
    """Change entries of a valid description; `a__b` is entry b of entry a."""
    text = {
        "format": 1, "vocabulary": words,
        "config": {"model": {}, "data": {"folder": "x", "kind": "fc7"}},
    }  # fmt: skip
    for key, value in changes.items():
        *path, name = key.split("__")
        part = text
        for step in path:
            part = part[step]
        part[name] = value
    return {"xpcap": json.dumps(text)}


WORDS = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "cat", "dog", "sits"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": [*WORDS[:-1], "cat"]}, "holds a word twice"),
        ({"vocabulary": WORDS[::-1]}, "does not begin with <NULL>"),
        ({"vocabulary": "a cat"}, "'vocabulary': expected a list of words"),
        ({"vocabulary": [*WORDS, 1]}, "'vocabulary': expected a list of words"),
        ({"vocabulary": WORDS[:5]}, "besides its recurrent layer .* for 5 words"),
        ({"config__data": {}}, "expected 'data' with 'kind' .* and 'folder'"),
        ({"config__data__kind": "raw"}, "expected 'data' with 'kind'"),
        ({"config__data__folder": 5}, "expected 'data' with 'kind'"),
        ({"config__data__extractor": "bank"}, "expected the 'extractor' of 'data' to be an object"),
        ({"config__model__dropout": 2}, "'model' cannot be built"),
        ({"config__model__seed": "x"}, "'model' cannot be built"),
        ({"config__model__backend": "gpu"}, "'model' cannot be built"),
        ({"config__data": {"folder": "x", "kind": "pca", "extractor": {"name": "y"}}}, r"pca\.h5"),
    ],
)
def test_hostile_descriptions_are_refused_in_one_line(changes, message, tmp_path):
    path = tmp_path / "a.safetensors"
    state = random_state("lstm")
    save_file(state, path, hostile(WORDS))
    import_run(path, tmp_path / "good")
    save_file(state, path, hostile(WORDS, **changes))
    with pytest.raises(XpcapError, match=message) as caught:
        import_run(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert ".part" not in str(caught.value)
    assert sorted(child.name for child in tmp_path.iterdir()) == ["a.safetensors", "good"]


def test_sizes_of_the_weights_override_the_description(tmp_path):
    path = tmp_path / "a.safetensors"
    changes = {f"config__model__{name}": 10**9 for name in ("input_dim", "hidden_dim")}
    save_file(random_state("gru"), path, hostile(WORDS, **changes))
    run = import_run(path, tmp_path / "out")
    assert run.config["model"]["hidden_dim"] == 6


def test_inconsistent_pca_transforms_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    data = {"folder": "x", "kind": "pca", "extractor": {"name": "filter-bank"}}
    good = {
        "pca.mean": numpy.zeros(9), "pca.components": numpy.ones((5, 9)),
        "pca.explained_variance": numpy.ones(5),
    }  # fmt: skip
    text = hostile(WORDS, config__data=data)
    save_file(random_state("lstm") | good, path, text)
    assert import_run(path, tmp_path / "good").transform.components.shape == (5, 9)
    for changes, message in (
        ({"pca.mean": numpy.zeros(8)}, "do not fit"),
        ({"pca.mean": numpy.full(9, numpy.nan)}, "NaN"),
        ({"pca.mean": numpy.zeros((9, 1))}, "1-dimensional"),
        (
            {"pca.components": numpy.ones((4, 9)), "pca.explained_variance": numpy.ones(4)},
            "reduces features to 4 numbers; expected 5 as its weights take",
        ),
    ):
        save_file(random_state("lstm") | good | changes, path, text)
        with pytest.raises(DataError, match=message):
            import_run(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_files_of_other_formats_are_refused(tiny, tmp_path):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("archive/data.pkl", b"cos\nsystem\n")
    for content, message in (
        (b"", "is empty; expected one of safetensors"),
        (b"\x80\x02}q\x00.", "not a whole safetensors file"),
        (b"PK", "is damaged"),
        (archive.getvalue(), r"safetensors\.torch\.save_file"),
        (laid_out({}), "its recurrent layer has nothing"),
    ):
        path = tmp_path / "a"
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            import_run(path, tmp_path / "out", tiny)
    with pytest.raises(DataError, match=r"cannot read .*: No such file"):
        import_run(tmp_path / "none", tmp_path / "out", tiny)
    with pytest.raises(DataError, match=r"is not a plain file but a folder"):
        import_run(tiny, tmp_path / "out", tiny)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", FORMATS)
def test_full_disk_leaves_no_files(to, tiny, tmp_path, monkeypatch):
    if to == "onnx":
        pytest.importorskip("onnx", reason="an ONNX file needs onnx (the extra export)")
    run = run_for(tiny, tmp_path / "run")
    export_run(run, "torch", tmp_path / "a.safetensors")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(numpy, "savez", full)
    with pytest.raises(DataError, match=r"cannot write .*b: no space left"):
        export_run(run, to, tmp_path / "b")
    with pytest.raises(DataError, match=r"cannot write .*out.*: no space left"):
        import_run(tmp_path / "a.safetensors", tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_onnx_graph_bans_unk_as_caption_does(tiny, tmp_path):
    pytest.importorskip("onnx", reason="an ONNX file needs onnx (the extra export)")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra onnx)")
    run = run_for(tiny, tmp_path / "run")
    run.model.params["b_vocab"][[0, 1, 3]] += 9  # <NULL>, <START>, <UNK>
    export_run(run, "onnx", tmp_path / "a.onnx")
    session = runtime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    features = numpy.eye(D, dtype=numpy.float32)
    words = session.run(["words"], {"features": features})[0]
    assert not numpy.isin(words, [1, 3]).any()
    numpy.testing.assert_array_equal(words, run.decode(features).words[:, 0, : words.shape[1]])


def test_unknown_formats_and_a_missing_onnx_are_refused(tiny, tmp_path, monkeypatch):
    run = run_for(tiny, tmp_path / "run")
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "xpcap.exchange.onnx_graph", raising=False)
    with pytest.raises(ConfigurationError, match=r"pip install 'xpcap\[export\]'"):
        export_run(run, "onnx", tmp_path / "a")
    with pytest.raises(ConfigurationError, match="format 'keras' is unknown; expected torch, npz"):
        export_run(run, "keras", tmp_path / "a")


@pytest.mark.parametrize("to", ["torch", "onnx"])
def test_converters_refuse_other_cells_and_families(to, tiny, tmp_path):
    run = run_for(tiny, tmp_path / "run")
    for changes, what in (
        ({"cell_type": "mgu"}, "the cell 'mgu'"),
        ({"family": "other"}, "the family 'other'"),
    ):
        other = replace(run, config={**run.config, "model": {**run.config["model"], **changes}})
        with pytest.raises(ConfigurationError, match=f"{what} has no conversion to {to}; expected"):
            export_run(other, to, tmp_path / "a")
        assert not (tmp_path / "a").exists()
        export_run(other, "npz", tmp_path / "a.npz")
