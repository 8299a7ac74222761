import math

import oracle
import pytest

from xpcap.errors import DataError
from xpcap.metrics import DocumentFrequencies, cider, cider_d

CANDIDATES = ["a fox sits here", "the lamp stands on a hill", "boat boat boat", "", "a fox"]
REFERENCES = [
    ["a fox sits on the hill", "the fox sits here"],
    ["a lamp on the hill", "the lamp stands on a hill", "lamp"],
    ["a boat", "two boats near a boat on the river"],
    ["a lamp"],
    ["a fox", ""],
]


def cut(candidates, references):
    return [c.split() for c in candidates], [[r.split() for r in known] for known in references]


@pytest.mark.parametrize(("metric", "robust"), [(cider, False), (cider_d, True)])
def test_cider_equals_explicit_loops_over_all_ngrams(metric, robust):
    candidates, references = cut(CANDIDATES, REFERENCES)
    score = metric(candidates, references)
    expected = oracle.cider(candidates, references, robust)
    assert score.images == pytest.approx(expected, abs=1e-12)
    assert score.corpus == pytest.approx(sum(expected) / 5)
    assert sum(value > 0 for value in expected) == 4


def test_cider_and_cider_d_by_hand():
    # "cat" and "a cat" are informative, "a" is not; there are no trigrams
    candidates, known = ["a cat", "cat cat", "cat"], ["a cat"]
    others = [["a dog"]]
    for metric, expected in [
        (cider, [5, 2.5, 2.5]),
        (cider_d, [5, 2.5 / 2, 2.5 * math.exp(-1 / 72)]),
    ]:
        for candidate, value in zip(candidates, expected, strict=True):
            assert metric(*cut([candidate, "x"], [known, *others])).images == pytest.approx(
                [value, 0]
            )


def test_10_needs_equal_references_and_informative_ngrams_of_every_length():
    same = ["a red fox sits", "the old lamp is here"]
    for metric in (cider, cider_d):
        score = metric(*cut(same, [[same[0]] * 3, [same[1]]]))
        assert score.images == pytest.approx([10, 10])
        # not with a different reference
        assert metric(*cut(same, [[same[0], "a fox"], [same[1]]])).images[0] < 10
        # three words have no 4-gram, and n-grams of all images are not informative
        assert metric(*cut(["a red fox", "x"], [["a red fox"], ["y"]])).images == pytest.approx(
            [7.5, 0]
        )
        assert metric(*cut(same[:1] * 2, [same[:1]] * 2)).corpus == 0


@pytest.mark.parametrize("metric", [cider, cider_d])
def test_a_single_image_scores_0_alone_and_its_value_with_stored_frequencies(metric):
    candidates, references = cut(CANDIDATES, REFERENCES)
    together = metric(candidates, references)
    stored = DocumentFrequencies.of(references)
    for k in range(5):
        one = candidates[k : k + 1], references[k : k + 1]
        assert metric(*one).corpus == 0
        assert metric(*one, stored).corpus == together.images[k]


def test_document_frequencies_count_images_and_not_sentences():
    counted = DocumentFrequencies.of([[["a", "b"], ["a", "a", "b"]], [["b", "a"]], [["c"]]])
    assert counted.images == 3
    assert counted.counts == {("a",): 2, ("b",): 2}  # the others are in one image, as any unknown
    assert counted.idf(("a",)) == pytest.approx(math.log(3 / 2))
    assert counted.idf(("a", "b")) == counted.idf(("never", "seen")) == pytest.approx(math.log(3))


def test_bad_arguments_are_refused():
    with pytest.raises(DataError, match="of 0 images; expected at least one"):
        DocumentFrequencies.of([])
    with pytest.raises(DataError, match=r"must be in 1\.\.2"):
        DocumentFrequencies(2, {("a",): 3})
    with pytest.raises(DataError, match="expected a list of words, got 'a b'"):
        DocumentFrequencies.of([["a b"]])
    with pytest.raises(DataError, match="no captions to measure"):
        cider([], [])
    with pytest.raises(DataError, match="image 0 has no reference"):
        cider_d([["a"]], [[]])
