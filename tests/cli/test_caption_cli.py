import json
import re
from pathlib import Path

import numpy
import pytest
from commands import one_line
from oracle import slow_beam
from tiny import make_tiny

from xpcap.data.dataset import open_dataset
from xpcap.decoding import Beam, Constraints
from xpcap.runs import open_run

SMALL = ["--hidden", "16", "--wordvec", "8", "--batch-size", "10", "--lr", "0.02"]
BANNED = (0, 1, 3)  # <NULL>, <START> and <UNK>


@pytest.fixture
def trained(call, tmp_path):
    make_tiny(tmp_path / "tiny")
    words = ["train", "--data", "tiny", "--out", "run", "--epochs", "10", "--device", "cpu"]
    assert call(*words, *SMALL).exit_code == 0
    return lambda *more: call("caption", "run", "--device", "cpu", *more)


def slow_captions(beam, rows):
    """Beam search for validation images by a slow reference implementation."""
    run = open_run(Path("run"), "cpu")
    run.model.params = {name: value.astype(float) for name, value in run.model.params.items()}
    features = open_dataset(Path("tiny")).splits["val"].features.astype(float)
    return [slow_beam(run.model, features[row], beam) for row in rows], run.vocabulary.idx_to_word


def test_n_best_captions_have_log_probabilities(trained):
    result = trained("--count", "2", "--beam", "4", "--n-best", "3", "--max-words", "6")
    assert result.exit_code == 0, result.output
    limits = Constraints(max_length=6, banned=BANNED)
    found, words = slow_captions(Beam(4, 3, constraints=limits), (0, 11))
    lines = result.stdout.splitlines()
    assert [line[:10] for line in lines] == [
        "http://loc", *["  xpcap   "] * 3, *["  people  "] * 2,
    ] * 2  # fmt: skip
    said = [line[10:] for line in lines if line.startswith("  xpcap")]
    expected = [
        (sum(log_probs), " ".join(words[k] for k in indices[:-1]))
        for captions in found
        for _, indices, log_probs in captions[:3]
    ]
    for line, (log_prob, sentence) in zip(said, expected, strict=True):
        number, caption = re.fullmatch(r" *(-\d+\.\d\d)  (.*)", line).groups()
        assert caption == sentence
        assert float(number) == pytest.approx(log_prob, abs=0.006)


def test_empty_beam_slots_are_not_shown(trained):
    words = ["--beam", "4", "--n-best", "4", "--max-words", "0", "--count", "2", "--json"]
    found = json.loads(trained(*words).stdout)
    assert [[caption["caption"] for caption in entry["captions"]] for entry in found] == [[""]] * 2


def test_a_single_caption_has_no_log_probability(trained):
    lines = trained("--count", "1").stdout.splitlines()
    assert re.fullmatch(r"  xpcap   [a-z ]+", lines[1])


def test_json_has_the_log_probability_of_every_word(trained):
    options = ["--beam", "3", "--n-best", "2", "--length-penalty", "average", "--max-words", "6"]
    found = json.loads(trained("--count", "1", "--json", *options).stdout)
    assert list(found[0]) == ["image", "caption", "references", "captions"]
    limits = Constraints(max_length=6, banned=BANNED)
    (expected,), words = slow_captions(Beam(3, 2, "average", constraints=limits), [0])
    assert found[0]["caption"] == found[0]["captions"][0]["caption"]
    assert len(found[0]["captions"]) == 2
    for caption, (_, indices, log_probs) in zip(found[0]["captions"], expected[:2], strict=True):
        spoken = [words[k] for k in indices]
        assert caption["caption"] == " ".join(spoken[:-1])
        assert [entry["word"] for entry in caption["words"]] == spoken
        assert spoken[-1] == "<END>"
        numpy.testing.assert_allclose(
            [entry["log_prob"] for entry in caption["words"]], log_probs, rtol=1e-4, atol=1e-5
        )
        assert caption["log_prob"] == pytest.approx(sum(log_probs), rel=1e-4)


def test_n_best_samples_depend_on_the_seed_only(trained):
    def drawn(seed):
        words = ["--sample", "--n-best", "5", "--temperature", "2", "--seed", seed, "--json"]
        return json.loads(trained("--count", "3", *words).stdout)

    first = drawn(1)
    assert [len(entry["captions"]) for entry in first] == [5, 5, 5]
    for entry in first:
        log_probs = [caption["log_prob"] for caption in entry["captions"]]
        assert log_probs == sorted(log_probs, reverse=True)
    assert first == drawn(1) != drawn(2)


def test_an_ensemble_of_a_run_with_itself_is_the_run(trained, call):
    alone = trained("--count", "12").stdout
    assert call("caption", "run", "run", "--count", "12", "--device", "cpu").stdout == alone


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n-best", "3"], "--n-best 3 is more than --beam 1 can find; expected --beam 3 or more"),
        (["--n-best", "5", "--beam", "4"], "--n-best 5 is more than --beam 4 .*, or --sample"),
        (["--n-best", "0"], "'--n-best': 0 is not in the range x>=1"),
        (["--sample", "--beam", "2"], "--beam does not go with --sample"),
        (["--temperature", "0.5"], "--temperature goes with --sample"),
        (["a.jpg"], "run was trained on features that xpcap cannot compute from an image"),
    ],
)
def test_bad_options_are_one_line(call_beside_a_run, words, message):
    one_line(call_beside_a_run("caption", "run", "--device", "cpu", *words), message)
