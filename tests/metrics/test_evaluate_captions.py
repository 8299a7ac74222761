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

CANDIDATES = ["A red fox, sitting.", "Größer als das CAFÉ!", "t-shirt"]
REFERENCES = [["a RED fox", "The man's fox"], ["größer als das Café"], ["A t shirt.", "..."]]
WORDS = [["a", "red", "fox", "sitting"], ["größer", "als", "das", "café"], ["t", "shirt"]]
REFERENCE_WORDS = [
    [["a", "red", "fox"], ["the", "mans", "fox"]],
    [["größer", "als", "das", "café"]],
    [["a", "t", "shirt"]],  # "..." holds no word, and does not count
]


def test_metrics_of_text_are_those_of_its_tokens():
    scores = evaluate_captions(CANDIDATES, REFERENCES)
    assert tuple(scores.corpus) == DEFAULT
    expected = {f"BLEU-{n}": s for n, s in enumerate(bleu(WORDS, REFERENCE_WORDS), start=1)} | {
        "ROUGE-L": rouge_l(WORDS, REFERENCE_WORDS),
        "CIDEr": cider(WORDS, REFERENCE_WORDS),
        "CIDEr-D": cider_d(WORDS, REFERENCE_WORDS),
    }
    assert tuple(scores.images) == tuple(expected)
    for name, score in expected.items():
        assert scores.corpus[name] == score.corpus
        numpy.testing.assert_array_equal(scores.images[name], score.images)
        assert scores.images[name].shape == (3,)
    assert scores.corpus["distinct-1"] == distinct_n(WORDS, 1) == 1
    assert scores.corpus["distinct-2"] == distinct_n(WORDS, 2) == 7 / 10
    assert scores.corpus["CIDEr"] > scores.corpus["CIDEr-D"] > 0


def test_chosen_metrics_in_the_order_of_their_names():
    names = ["distinct-2", "CIDEr-D", "BLEU-4", "vocabulary-use", "novel"]
    scores = evaluate_captions(
        CANDIDATES,
        REFERENCES,
        names,
        training_captions=iter(["T SHIRT", "a"]),
        vocabulary=iter(["<UNK>", "fox", "als", "dog", "lamp"]),
    )
    assert list(scores.corpus) == names
    assert list(scores.images) == ["CIDEr-D", "BLEU-4", "novel"]
    assert scores.images["novel"].tolist() == [1, 1, 0]
    assert scores.corpus["novel"] == pytest.approx(2 / 3)
    assert scores.corpus["vocabulary-use"] == 2 / 4


def test_document_frequencies_are_passed_on():
    stored = DocumentFrequencies.of(REFERENCE_WORDS)
    scores = evaluate_captions(
        CANDIDATES[:1], REFERENCES[:1], ["CIDEr", "CIDEr-D"], document_frequencies=stored
    )
    assert scores.corpus["CIDEr"] == cider(WORDS, REFERENCE_WORDS).images[0] > 0
    assert scores.corpus["CIDEr-D"] == cider_d(WORDS, REFERENCE_WORDS).images[0] > 0


def test_words_of_other_scripts_count():
    scores = evaluate_captions(["на холме кот", "猫 坐 在 山 上"], [["кот на холме"], ["猫 坐 着"]])
    assert scores.images["BLEU-1"] == pytest.approx([1, 2 / 5])


def test_captions_without_any_word():
    scores = evaluate_captions(["", "!"], [["a fox"], ["a lamp"]])
    assert set(scores.corpus.values()) == {0.0}


def test_counts_are_checked_before_tokenizing():
    with pytest.raises(DataError, match="image 0: its references are a string; expected a list"):
        evaluate_captions(["a"], ["a"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("BLEU-5", "metric 'BLEU-5' is unknown; expected one of BLEU-1, BLEU-2"),
        ("bleu-4", "metric 'bleu-4' is unknown"),
        ("novel", "metric 'novel' needs the training captions"),
        ("vocabulary-use", "metric 'vocabulary-use' needs the vocabulary"),
    ],
)
def test_unknown_metrics_and_missing_data_are_refused(name, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        evaluate_captions(CANDIDATES, REFERENCES, ["BLEU-1", name])
    assert "\n" not in str(caught.value)


def test_references_without_a_word_count_nowhere():
    alone = evaluate_captions(["a dog runs", "a cat"], [["a dog"], ["the cat"]])
    both = evaluate_captions(["a dog runs", "a cat"], [["a dog", "...", "❤️"], ["", "the cat"]])
    assert both.corpus == alone.corpus
    with pytest.raises(DataError, match="image 1 has no reference that holds a word"):
        evaluate_captions(["a dog", "a cat"], [["a dog"], ["...", "🙂"]])


def test_characters_count_as_words():
    captions, references = ["一只狗跑"], [["一只猫在跑。"]]
    assert evaluate_captions(captions, references).corpus["BLEU-1"] == pytest.approx(0)
    by_character = evaluate_captions(captions, references, ["ROUGE-L"], tokens="characters")
    spaced = evaluate_captions(["一 只 狗 跑"], [["一 只 猫 在 跑"]], ["ROUGE-L"])
    assert by_character.corpus == spaced.corpus
    with pytest.raises(ConfigurationError, match="tokens are 'bytes'; expected words or char"):
        evaluate_captions(captions, references, tokens="bytes")
