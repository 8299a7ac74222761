import math

import pytest

from xpcap.errors import DataError
from xpcap.metrics import bleu

# Papineni and others 2002, section 2.1, without punctuation
ACTION = [
    "it is a guide to action that ensures that the military will forever heed party commands",
    "it is the guiding principle which guarantees the military forces always being under the"
    " command of the party",
    "it is the practical guide for the army always to heed the directions of the party",
]
GOOD = (
    "it is a guide to action which ensures that the military always obeys the commands of the party"
)
POOR = "it is to insure the troops forever hearing the activity guidebook that party direct"


def scores(candidates, references):
    return bleu(
        [c.split() for c in candidates], [[r.split() for r in known] for known in references]
    )


def corpus(candidates, references):
    return [score.corpus for score in scores(candidates, references)]


def test_bleu_of_the_papers_examples():
    # 17 of 18 words and 10 of 17 bigrams; as long as the second reference
    assert corpus([GOOD], [ACTION])[:2] == pytest.approx([17 / 18, math.sqrt(17 / 18 * 10 / 17)])
    # 8 of 14 words and 1 of 13 bigrams; the closest reference has 16 words
    short = math.exp(1 - 16 / 14)
    assert corpus([POOR], [ACTION])[:2] == pytest.approx(
        [short * 8 / 14, short * math.sqrt(8 / 14 * 1 / 13)]
    )
    # a word counts as often as it is in one reference
    cat = ["the cat is on the mat", "there is a cat on the mat"]
    assert corpus(["the the the the the the the"], [cat])[0] == pytest.approx(2 / 7)


def test_all_four_orders_by_hand():
    # words: 4 of 5; bigrams: "a b", "b c" and "c d" of 4; "a b c" and "b c d" of 3; one of 2
    values = corpus(["a b c d x"], [["a b c d y", "z"]])
    products = [4 / 5, 4 / 5 * 3 / 4, 4 / 5 * 3 / 4 * 2 / 3, 4 / 5 * 3 / 4 * 2 / 3 * 1 / 2]
    assert values == pytest.approx([p ** (1 / n) for n, p in enumerate(products, start=1)])


def test_corpus_bleu_sums_counts_and_lengths_before_dividing():
    score = scores(["a b", "c x y z"], [["a b c d"], ["c"]])[0]
    assert score.images == pytest.approx([math.exp(1 - 4 / 2), 1 / 4])
    assert score.corpus == pytest.approx(3 / 6)  # 6 words for 5: no penalty


@pytest.mark.parametrize(
    ("references", "closest"),
    [
        (["a b c d e f", "a b c d e"], 5),
        (["a b c", "a b c d e"], 3),  # both differ by one: the shorter
        (["a b c d e", "a b c"], 3),
        (["a", "a b c d e f g h"], 1),
    ],
)
def test_brevity_penalty_uses_the_closest_reference_length(references, closest):
    known = [*references, "a b c d e f g h i j k l"]  # it has all words of the candidate
    brevity = min(1, math.exp(1 - closest / 4))
    assert corpus(["a b c d"], [known])[0] == pytest.approx(brevity)


def test_bleu_of_a_caption_equal_to_a_reference_is_1():
    candidates = ["a red fox sits here", "one two three four"]
    for score in scores(candidates, [["something else", candidates[0]], [candidates[1]]]):
        assert score.corpus == pytest.approx(1)
        assert score.images == pytest.approx([1, 1])


def test_short_and_empty_captions():
    values = scores(["", "a fox", "a fox", "a"], [["a"], ["a fox"], [""], [""]])
    assert [score.images[0] for score in values] == [0, 0, 0, 0]
    # of three words there are none of two words: 0 of 0 is taken as 1e-15 / 1e-9
    assert [score.images[1] for score in values] == pytest.approx(
        [1, 1, 1e-6 ** (1 / 3), 1e-12 ** (1 / 4)]
    )
    assert max(score.images[2] for score in values) < 1e-3
    assert scores([""], [[""]])[0].corpus == 0


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ([["a"], ["b"]], [[["a"]]], "2 candidates, but references for 1; expected"),
        ([], [], "no captions to measure"),
        ([["a"], ["b"]], [[["a"]], []], "image 1 has no reference; expected at least one"),
        (["a b"], [[["a"]]], "expected a list of words, got 'a b'"),
        ([["a"]], [["a b"]], "expected a list of words, got 'a b'"),
        ([["a"]], ["a b"], "references of image 0: expected a list of captions"),
    ],
)
def test_bad_arguments_are_refused(candidates, references, message):
    with pytest.raises(DataError, match=message) as caught:
        bleu(candidates, references)
    assert "\n" not in str(caught.value)
