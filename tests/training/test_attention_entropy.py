"""The entropy of attention after each epoch, in a run's history."""

import json
import math

import numpy
import pytest
from runs import TRANSFORMER, begin, resume, same, stopping
from tiny import make_tiny

from xpcap.data.vocabulary import SPECIAL, Vocabulary
from xpcap.models import AttentionRNN
from xpcap.runs import open_run
from xpcap.signals import Stopped
from xpcap.training.attention import entropy_of_attention
from xpcap.training.history import read_history

WORDS = Vocabulary([*SPECIAL, "a", "red", "ring"])
SAID = numpy.array([[4, 5, 6, 2], [6, 2, 0, 0]])


@pytest.fixture
def features():
    drawn = numpy.random.default_rng(0).standard_normal((2, 9, 5)).astype(numpy.float32)
    drawn[1, 4:] = 0  # absent regions
    return drawn


def model_of(backend):
    return AttentionRNN(WORDS.word_to_idx, 5, 6, 8, "gru", numpy.float64, seed=3, backend=backend)


def test_looking_at_all_regions_alike_is_the_logarithm_of_their_number(features, backend):
    model = model_of(backend)
    model.params["w_score"][...] = 0
    entropy, most, words = entropy_of_attention(model, features, SAID)
    assert entropy == pytest.approx(4 * math.log(9) + 2 * math.log(4))
    assert most == pytest.approx(entropy)
    assert words == 6


def test_looking_at_one_region_has_no_entropy(features, backend):
    model = model_of(backend)
    model.params["w_score"] *= 1e4
    assert entropy_of_attention(model, features, SAID)[0] == pytest.approx(0, abs=1e-6)
    features[:, 1:] = 0
    assert entropy_of_attention(model, features, SAID)[:2] == (0, 0)


def test_a_history_has_the_entropy_of_each_epochs_attention(tmp_path):
    """It is that of the model at that epoch, on validation captions, some regions absent."""
    data = make_tiny(tmp_path / "tiny", regions=True)
    trainer, dataset = begin(data, tmp_path / "run", model="attention", epochs=3)
    curves = read_history(tmp_path / "run" / "history.jsonl")
    assert len(curves.attention_entropy) == 3
    assert len(set(curves.attention_entropy)) == 3
    part = dataset.splits["val"]
    assert trainer.best_epoch == 3
    model = open_run(tmp_path / "run").model
    entropy, most, words = entropy_of_attention(
        model, part.features[part.image_idxs], part.captions[:, 1:]
    )
    assert curves.attention_entropy[-1] == pytest.approx(entropy / words, rel=1e-6)
    assert curves.attention_entropy_share[-1] == pytest.approx(entropy / most, rel=1e-6)
    assert most / words == pytest.approx(math.log(2))  # of three regions one is absent


@pytest.mark.parametrize(("regions", "options"), [(True, {}), (False, TRANSFORMER)])
def test_other_models_have_histories_without_attention(tmp_path, regions, options):
    """Such as a Transformer whose image is one vector."""
    begin(make_tiny(tmp_path / "tiny", regions=regions), tmp_path / "run", **options)
    lines = map(json.loads, (tmp_path / "run" / "history.jsonl").read_text().splitlines())
    figures = {"train_loss", "val_loss", "train_perplexity", "val_perplexity"}
    assert [set(line) for line in lines if "val_loss" in line] == [{"step", "epoch", *figures}] * 2
    assert numpy.isnan(read_history(tmp_path / "run" / "history.jsonl").attention_entropy).all()


def test_a_resumed_run_has_the_same_entropies(tmp_path):
    data = make_tiny(tmp_path / "tiny", regions=True)
    begin(data, tmp_path / "whole", model="attention")
    with pytest.raises(Stopped):
        begin(data, tmp_path / "run", model="attention", watch=stopping(count=6))
    resume(tmp_path / "run")
    same(tmp_path / "run", tmp_path / "whole")
