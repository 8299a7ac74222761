from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from oracle import END, NULL, START, UNK, slow_beam
from small_captioners import BANNED, SHORT, WORDS, model_of, some_features

import xpcap.runs.run
from xpcap.backend import CPU
from xpcap.data.pca import PCA
from xpcap.data.vocabulary import Vocabulary
from xpcap.decoding import Beam, Constraints, Sampling, beam_search, sample
from xpcap.errors import CheckpointError
from xpcap.runs import Run, ensemble
from xpcap.runs.folder import TRANSFORM

CONFIG = {"data": {"kind": "fc7", "features": "numbers", "extractor": None}}


def run_of(cell="lstm", backend=CPU, seed=0, name="run"):
    return Run(Path(name), CONFIG, Vocabulary(WORDS), model_of(cell, backend, seed))


@pytest.mark.parametrize(
    "how", [Beam(3, 2, constraints=SHORT), Sampling(2, 2.0, constraints=SHORT)]
)
def test_images_decoded_in_parts_are_those_decoded_together(backend, how, monkeypatch):
    features = numpy.repeat(some_features(2), 4, axis=0)
    decode = beam_search if isinstance(how, Beam) else sample
    expected = decode(model_of(), features, how)
    monkeypatch.setattr(xpcap.runs.run, "BATCH", 3)
    found = run_of(backend=backend).decode(features, how)
    for part, whole in zip(found, expected, strict=True):
        assert isinstance(part, numpy.ndarray)
        numpy.testing.assert_allclose(part, whole, atol=1e-12)


def test_no_image_has_no_caption(backend):
    run = run_of(backend=backend)
    assert run.caption(numpy.zeros((0, 5))) == []
    assert run.decode(numpy.zeros((0, 5))).words.shape == (0, 1, 31)


def test_unless_asked_otherwise_captions_are_greedy_and_without_marks(backend):
    run, features = run_of(backend=backend), some_features(6)
    run.model.params["b_vocab"][UNK] += 20  # what it would say most of all
    run.model.params["b_vocab"][NULL] += 20
    run.model.params["b_vocab"][START] += 20
    here = run_of()
    here.model.params["b_vocab"][[UNK, NULL, START]] += 20
    greedy = Beam(1, constraints=Constraints(banned=BANNED))
    found = run.decode(features).words
    assert found.shape == (6, 1, 31)
    for n in range(6):
        words = slow_beam(here.model, features[n], greedy)[0][1]
        assert found[n, 0, : len(words)].tolist() == words
        assert (found[n, 0, len(words) :] == NULL).all()
        assert run.caption(features)[n] == " ".join(WORDS[word] for word in words if word != END)


def test_an_ensemble_of_a_run_and_itself_says_the_same(backend):
    run, features = run_of(backend=backend), some_features(8)
    beam = Beam(3, 3, constraints=SHORT)
    alone, together = run.decode(features, beam), ensemble([run, run]).decode(features, beam)
    numpy.testing.assert_array_equal(together.words, alone.words)
    numpy.testing.assert_allclose(together.log_probs, alone.log_probs, atol=1e-12)
    assert ensemble([run, run]).caption(features) == run.caption(features)


def test_an_ensembles_probabilities_are_its_members_average(backend):
    runs = [run_of("lstm", backend), run_of("gru", backend, 1), run_of("rnn", backend, 2)]
    features = some_features(2)
    captions = numpy.array([[START, 4, 5, END], [START, 6, END, NULL]], numpy.int32)
    expected = numpy.log(sum(numpy.exp(run.score(features, captions)) for run in runs) / 3)
    nested = ensemble([ensemble(runs[:2]), runs[2]])
    for together in (ensemble(runs), nested):
        found = together.score(features, captions)
        assert isinstance(found, numpy.ndarray)
        numpy.testing.assert_allclose(found, expected, atol=1e-12)
    assert ensemble(runs[:1]).captioner is runs[0].model


def transform(scale):
    return PCA(numpy.zeros(9, "f4"), numpy.full((5, 9), scale, "f4"), numpy.ones(5, "f4"))


def test_runs_that_need_other_words_or_features_are_named(tmp_path):
    first = run_of(name="first")

    def refused(other, message, first=first):
        with pytest.raises(
            CheckpointError, match=message + ".*; expected the same, as they are to"
        ):
            ensemble([first, replace(first), replace(other, folder=Path("other"))])

    def on(**data):
        return replace(first, config={"data": {**CONFIG["data"], **data}})

    words = Vocabulary([*WORDS[:-1], "d"])
    refused(replace(first, vocabulary=words), "other has another vocabulary than first")
    wide = run_of()
    wide.model.sizes["input_dim"] = 9
    refused(wide, "other has features per image 9, first 5")
    refused(on(kind="pca"), "other has features of the kind pca, first fc7")
    refused(on(features="others"), "other has features from others, first numbers")
    made = {"name": "bank", "version": 1, "weights": "a.onnx"}
    refused(on(extractor=made), r"other has features from \{'name': 'bank'.*\}, first numbers")
    moved = on(extractor={**made, "weights": "b.onnx"})
    assert len(ensemble([on(extractor=made), moved]).partners) == 1

    reduced = []
    for k in range(2):
        folder = tmp_path / str(k)
        folder.mkdir()
        transform(k + 1.0).write(folder / TRANSFORM)
        reduced.append(replace(on(kind="pca", extractor=made), folder=folder))
    assert len(ensemble([reduced[0], reduced[0]]).partners) == 1
    with pytest.raises(CheckpointError, match=r"1 has other principal components than .*0; exp"):
        ensemble(reduced)
