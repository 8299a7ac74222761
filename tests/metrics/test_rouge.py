import numpy
import oracle
import pytest

from xpcap.errors import DataError
from xpcap.metrics import rouge_l


def value(candidate, *references):
    return rouge_l([candidate.split()], [[words.split() for words in references]]).corpus


def f_measure(precision, recall):
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)


def test_the_example_of_the_paper():
    # Lin 2004, section 3.1: 3, 2 and 2 words of 4
    police = "police killed the gunman"
    assert value("police kill the gunman", police) == pytest.approx(3 / 4)
    assert value("the gunman kill police", police) == pytest.approx(2 / 4)
    assert value("the gunman police killed", police) == pytest.approx(2 / 4)


def test_recall_counts_more_than_precision():
    assert value("a b", "a b c d") == pytest.approx(f_measure(1, 1 / 2))
    assert value("a b c d", "a b") == pytest.approx(f_measure(1 / 2, 1))
    assert value("a b", "a b c d") < value("a b c d", "a b")


def test_precision_and_recall_may_come_from_two_references():
    # 3 of 4 words of the first, which has 6; both of the second, which has 2
    assert value("a b c x", "a b c d e f", "x c", "c x") == pytest.approx(f_measure(3 / 4, 1))


def test_the_longest_common_subsequence_is_that_of_trying_all():
    rng = numpy.random.default_rng(5)
    for _ in range(100):
        a, b = (list(rng.choice(list("abc"), rng.integers(1, 7))) for _ in range(2))
        length = oracle.longest_common(a, b)
        expected = f_measure(length / len(a), length / len(b)) if length else 0
        assert rouge_l([a], [[b]]).corpus == pytest.approx(expected)


def test_a_reference_has_1_and_nothing_in_common_has_0():
    assert value("a red fox", "a", "a red fox") == pytest.approx(1)
    assert value("a red fox", "the lamp", "") == 0


def test_empty_sentences():
    assert value("", "a fox") == 0
    assert value("a fox", "") == 0
    assert value("", "a fox", "") == 1


def test_corpus_rouge_is_the_mean_over_images():
    candidates = [["a", "b"], [], ["c"]]
    references = [[["a", "b", "c"]], [["a"]], [["c"], ["d"]]]
    score = rouge_l(candidates, references)
    assert score.images == pytest.approx([f_measure(1, 2 / 3), 0, 1])
    assert score.corpus == pytest.approx((f_measure(1, 2 / 3) + 0 + 1) / 3)


def test_bad_arguments_are_refused():
    with pytest.raises(DataError, match="no captions to measure"):
        rouge_l([], [])
    with pytest.raises(DataError, match="expected a list of words, got 'a b'"):
        rouge_l(["a b"], [[["a"]]])
