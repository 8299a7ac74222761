import numpy
import pytest

from xpcap.errors import ConfigurationError, DataError
from xpcap.metrics import (
    DEFAULT,
    DocumentFrequencies,
    bleu,
    cider,
    cider_d,
    distinct_n,
    evaluate_captions,
    rouge_l,
)

SAID = ["A red fox, sitting.", "Größer als das CAFÉ!", "t-shirt"]
KNOWN = [["a RED fox", "The man's fox"], ["größer als das Café"], ["A t shirt.", "..."]]
WORDS = [["a", "red", "fox", "sitting"], ["größer", "als", "das", "café"], ["t", "shirt"]]
KNOWN_WORDS = [
    [["a", "red", "fox"], ["the", "mans", "fox"]],
    [["größer", "als", "das", "café"]],
    [["a", "t", "shirt"], []],
]


def test_every_metric_of_text_is_that_of_its_words():
    scores = evaluate_captions(SAID, KNOWN)
    assert tuple(scores.corpus) == DEFAULT
    expected = {f"BLEU-{n}": s for n, s in enumerate(bleu(WORDS, KNOWN_WORDS), start=1)} | {
        "ROUGE-L": rouge_l(WORDS, KNOWN_WORDS),
        "CIDEr": cider(WORDS, KNOWN_WORDS),
        "CIDEr-D": cider_d(WORDS, KNOWN_WORDS),
    }
    assert tuple(scores.images) == tuple(expected)
    for name, score in expected.items():
        assert scores.corpus[name] == score.corpus
        numpy.testing.assert_array_equal(scores.images[name], score.images)
        assert scores.images[name].shape == (3,)
    assert scores.corpus["distinct-1"] == distinct_n(WORDS, 1) == 1
    assert scores.corpus["distinct-2"] == distinct_n(WORDS, 2) == 7 / 10
    assert scores.corpus["CIDEr"] > scores.corpus["CIDEr-D"] > 0


def test_those_named_in_that_order():
    names = ["distinct-2", "CIDEr-D", "BLEU-4", "vocabulary-use", "novel"]
    scores = evaluate_captions(
        SAID,
        KNOWN,
        names,
        training_captions=iter(["T SHIRT", "a"]),
        vocabulary=iter(["<UNK>", "fox", "als", "dog", "lamp"]),
    )
    assert list(scores.corpus) == names
    assert list(scores.images) == ["CIDEr-D", "BLEU-4", "novel"]
    assert scores.images["novel"].tolist() == [1, 1, 0]
    assert scores.corpus["novel"] == pytest.approx(2 / 3)
    assert scores.corpus["vocabulary-use"] == 2 / 4


def test_one_image_with_stored_frequencies():
    stored = DocumentFrequencies.of(KNOWN_WORDS)
    names = ["CIDEr", "CIDEr-D"]
    together = evaluate_captions(SAID, KNOWN, names)
    alone = evaluate_captions(SAID[:1], KNOWN[:1], names, document_frequencies=stored)
    for name in names:
        assert alone.corpus[name] == together.images[name][0] > 0
        assert evaluate_captions(SAID[:1], KNOWN[:1]).corpus[name] == 0


def test_words_of_other_scripts_count():
    scores = evaluate_captions(["на холме кот", "猫 坐 在 山 上"], [["кот на холме"], ["猫 坐 着"]])
    assert scores.images["BLEU-1"] == pytest.approx([1, 2 / 5])


def test_captions_without_any_word():
    scores = evaluate_captions(["", "!"], [["a fox"], ["a lamp"]])
    assert set(scores.corpus.values()) == {0.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "no captions to measure; expected at least one"),
        ((["a"], []), "1 candidates, but references for 0"),
        ((["a", "b"], [["a"], []]), "image 1 has no reference"),
        ((["a"], ["a"]), "image 0: its references are a string; expected a list"),
    ],
)
def test_wrong_captions(arguments, message):
    with pytest.raises(DataError, match=message):
        evaluate_captions(*arguments)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("BLEU-5", "metric 'BLEU-5' is unknown; expected one of BLEU-1, BLEU-2"),
        ("bleu-4", "metric 'bleu-4' is unknown"),
        ("novel", "metric 'novel' needs the training captions"),
        ("vocabulary-use", "metric 'vocabulary-use' needs the vocabulary"),
    ],
)
def test_wrong_names(name, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        evaluate_captions(SAID, KNOWN, ["BLEU-1", name])
    assert "\n" not in str(caught.value)
