import pytest

from xpcap.errors import ConfigurationError, DataError
from xpcap.metrics import distinct_n, novel, vocabulary_use

CAPTIONS = [["a", "b", "a", "b"], ["a", "b"], ["c"], []]


def test_distinct_n_by_hand():
    assert distinct_n(CAPTIONS, 1) == 3 / 7
    assert distinct_n(CAPTIONS, 2) == 2 / 7  # "a b" and "b a"; divided by words, as in the paper
    assert distinct_n(CAPTIONS, 4) == 1 / 7
    assert distinct_n(CAPTIONS, 5) == 0
    assert distinct_n([["a", "b", "c"]], 1) == 1
    assert distinct_n([[], []], 1) == distinct_n([], 2) == 0


def test_a_caption_is_novel_unless_every_word_is_the_same():
    score = novel(CAPTIONS, [["a", "b"], ["c", "c"], ("c",)])
    assert score.images.tolist() == [1, 0, 0, 1]
    assert score.corpus == 0.5
    assert novel([["a"]], []).corpus == 1


def test_vocabulary_use_excludes_special_tokens():
    vocabulary = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "b", "c", "d", "e"]
    assert vocabulary_use(CAPTIONS, vocabulary) == 3 / 5
    assert vocabulary_use([["<UNK>", "x", "a"]], vocabulary) == 1 / 5
    assert vocabulary_use([], vocabulary) == 0


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigurationError, match="distinct-n must be at least 1"):
        distinct_n(CAPTIONS, 0)
    with pytest.raises(DataError, match="the vocabulary has no words"):
        vocabulary_use(CAPTIONS, ["<UNK>"])
    with pytest.raises(DataError, match="no captions to measure"):
        novel([], [])
    for measure in (
        lambda: distinct_n(["a b"], 1),
        lambda: novel(["a b"], []),
        lambda: novel([["a"]], ["a b"]),
        lambda: vocabulary_use(["a b"], ["a"]),
    ):
        with pytest.raises(DataError, match="expected a list of words, got 'a b'"):
            measure()
