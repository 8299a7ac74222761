import json

import numpy
import pytest

from xpcap.data.vocabulary import Vocabulary, decode_captions, plain, tokenize
from xpcap.errors import DataError


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man, riding a wave.", ["a", "man", "riding", "a", "wave"]),
        (
            "Two T-shirts\tand\na mother-in-law",
            ["two", "t", "shirts", "and", "a", "mother", "in", "law"],
        ),
        ("Café №5 'quoted' (yes)", ["caf", "5", "quoted", "yes"]),
        (" . ", []),
    ],
)
def test_tokens_are_lower_case_letters_and_digits(caption, words):
    assert tokenize(caption) == words


def test_words_are_kept_by_count_the_frequent_first():
    vocabulary = Vocabulary.build([["b", "a"], ["b", "c"], ["b", "a"]], min_count=2)
    assert vocabulary.idx_to_word == ["<NULL>", "<START>", "<END>", "<UNK>", "b", "a"]


def test_encoding_adds_special_tokens_and_pads():
    vocabulary = Vocabulary(["<NULL>", "<START>", "<END>", "<UNK>", "cat"])
    assert vocabulary.encode(["cat", "dog"], 6).tolist() == [1, 4, 3, 2, 0, 0]
    assert vocabulary.encode(["cat"], 3).tolist() == [1, 4, 2]
    with pytest.raises(DataError, match="2 words does not fit in 3"):
        vocabulary.encode(["cat", "cat"], 3)


def test_decoding_stops_at_the_end_and_leaves_padding_out(backend):
    words = ["<NULL>", "<START>", "<END>", "<UNK>", "cat", "sat"]
    rows = backend.to_device(numpy.array([[1, 4, 0, 5, 2, 4], [4, 4, 5, 5, 5, 5]], numpy.int32))
    assert decode_captions(rows, words) == ["<START> cat sat <END>", "cat cat sat sat sat sat"]
    assert decode_captions(rows[0], words) == "<START> cat sat <END>"
    assert plain("<START> cat sat <END>") == "cat sat"
    with pytest.raises(DataError, match="indices 4 to 5; the vocabulary has 0 to 4"):
        decode_captions(rows[1], words[:5])


def test_round_trip_through_its_file(tmp_path):
    vocabulary = Vocabulary.build([["cat", "dog"]])
    vocabulary.write(tmp_path / "vocab.json")
    assert Vocabulary.read(tmp_path / "vocab.json") == vocabulary


SPECIAL = ["<NULL>", "<START>", "<END>", "<UNK>"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "'idx_to_word': expected a list of words"),
        ('{"idx_to_word": [1]}', "'idx_to_word': expected a list of words"),
        (json.dumps({"idx_to_word": [*SPECIAL, "a", "a"]}), "holds a word twice"),
        (json.dumps({"idx_to_word": [*SPECIAL, "a"], "word_to_idx": {"a": 3}}), "not the inverse"),
        (json.dumps({"idx_to_word": ["a"], "word_to_idx": {"a": 0}}), "does not begin with <NULL>"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, message):
    path = tmp_path / "vocab.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        Vocabulary.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_official_vocabulary_opens(coco_dir):
    vocabulary = Vocabulary.read(coco_dir / "coco2014_vocab.json")
    assert len(vocabulary) == 1004
    assert vocabulary.word_to_idx["<UNK>"] == 3
