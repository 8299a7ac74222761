"""Rewards over word indices are metrics of text, and the self-test sees where they are not."""

import numpy
import pytest
from tiny import make_tiny

from xpcap.data.dataset import Split, open_dataset
from xpcap.data.vocabulary import SPECIAL
from xpcap.errors import ConfigurationError, DataError
from xpcap.metrics import DocumentFrequencies, bleu, cider_d
from xpcap.training import reward_check, rewards
from xpcap.training.reward_check import check_rewards
from xpcap.training.rewards import Rewards, parse_reward, training_references
from xpcap.training.samples import describe_samples

NULL, START, END, UNK = range(4)
WORDS = [*SPECIAL, "a", "the", "cat", "dog", "red", "sits", "on", "mat"]
INDICES = {word: index for index, word in enumerate(WORDS)}
BOTH = {"CIDEr-D": 1.0, "BLEU-4": -0.5}
T = 9


def encode(*sentences):
    """Words, `<END>` after all but those of T words, then `<NULL>`."""
    captions = numpy.full((len(sentences), T), NULL, numpy.int32)
    for row, sentence in zip(captions, sentences, strict=True):
        words = [*map(INDICES.__getitem__, sentence.split()), END][:T]
        row[: len(words)] = words
    return captions


def of_text(references, images, captions, terms):
    """The metrics of `xpcap.metrics`; special tokens in captions are in no reference."""
    names = [f"<{word}>" if word in SPECIAL and word != "<END>" else word for word in WORDS]
    decoded = []
    for row in captions.tolist():
        while row and row[-1] == NULL:
            row.pop()
        decoded.append([names[index] for index in row])
    with_end = [[[*words, "<END>"] for words in of_image] for of_image in references]
    known = [with_end[image] for image in images]
    frequencies = DocumentFrequencies.of(with_end)
    found = {
        "CIDEr-D": cider_d(decoded, known, frequencies).images,
        "BLEU-4": bleu(decoded, known)[3].images,
    }
    return sum(weight * found[name] for name, weight in terms.items())


@pytest.fixture(scope="module")
def drawn():
    """Images with 1 to 7 references, and captions like these.

    Some of both are empty, some references have unknown words or are longer than any caption.
    """
    rng = numpy.random.default_rng(0)
    words = numpy.array([*WORDS[4:], "unheard", "of", "<UNK>"])
    common = [0.3, *[0.07] * 10]
    references = [
        [rng.choice(words, rng.integers(0, T + 4), p=common).tolist() for _ in range(1 + k % 7)]
        for k in range(30)
    ]
    images = rng.integers(0, 30, 200)
    sentences = []
    for image in images:
        known = references[image]
        sentence = numpy.array(known[rng.integers(len(known))], words.dtype)[:T]
        changed = rng.random(len(sentence)) < 0.2
        sentence[changed] = rng.choice([*WORDS[3:], "<START>", "<NULL>"], changed.sum())
        sentences.append(" ".join(w if w in INDICES else "<UNK>" for w in sentence))
    return references, images, encode(*sentences)


@pytest.mark.parametrize("terms", [{"CIDEr-D": 1.0}, {"BLEU-4": 1.0}, BOTH])
def test_rewards_are_the_metrics_of_the_text(drawn, terms):
    references, images, captions = drawn
    found = Rewards(references, INDICES, terms)(images, captions)
    assert found.dtype == numpy.float64
    expected = of_text(references, images, captions, terms)
    assert found == pytest.approx(expected, abs=1e-9)
    assert (abs(found) > 1e-3).sum() > 50


def test_a_reward_does_not_depend_on_the_other_captions(drawn):
    references, images, captions = drawn
    reward = Rewards(references, INDICES, BOTH)
    found = reward(images, captions)
    order = numpy.random.default_rng(1).permutation(len(images))
    assert reward(images[order], captions[order]) == pytest.approx(found[order], abs=1e-12)
    assert reward(images[:0], captions[:0]).shape == (0,)
    for k in range(0, 200, 20):
        assert reward(images[k : k + 1], captions[k : k + 1]) == pytest.approx(found[k], abs=1e-12)


def test_sentences_too_short_for_longer_ngrams():
    references, images = [[["cat"]], [["dog"]]], numpy.array([0, 0, 1])
    captions = encode("cat", "dog", "")
    found = Rewards(references, INDICES, {"CIDEr-D": 1})(images, captions)
    assert found == pytest.approx([5, 0, 0])  # of 4 orders, 2
    assert found == pytest.approx(of_text(references, images, captions, {"CIDEr-D": 1}))


def test_rewards_by_hand():
    """A caption that breaks off is worth less; `<UNK>` is not the reference's unknown word."""
    references = [[["a", "cat", "sits"], ["a", "zebra"]], [["a", "dog"]], []]
    captions = encode("a cat sits", "a <UNK>", "a dog")
    captions[0, 3] = NULL  # broken off
    whole = encode("a cat sits")
    reward = Rewards(references, INDICES, {"CIDEr-D": 1})
    off, unknown, other = reward(numpy.array([0, 0, 0]), captions)
    (complete,) = reward(numpy.array([0]), whole)
    assert complete > off > 0
    idf = numpy.log(3) - numpy.log(2)  # of "a" and <END>; else log 3
    rare = numpy.log(3)
    # words of "a <UNK> <END>" with "a cat sits <END>" and "a zebra <END>"
    shared = 2 * idf**2 / numpy.hypot(numpy.sqrt(2) * idf, rare)
    expected = shared / numpy.sqrt(2 * idf**2 + 2 * rare**2) * numpy.exp(-1 / 72)
    expected += shared / numpy.sqrt(2 * idf**2 + rare**2)
    assert unknown == other == pytest.approx(10 / 8 * expected)
    assert reward(numpy.array([1]), encode("mat mat")) < unknown
    with pytest.raises(DataError, match="training image 2 has no reference"):
        reward(numpy.array([1, 2]), captions[:2])


def test_the_weights_of_a_reward():
    assert parse_reward("CIDEr-D:1, BLEU-4:0.5") == {"CIDEr-D": 1, "BLEU-4": 0.5}
    assert parse_reward("BLEU-4") == {"BLEU-4": 1}
    for wrong, message in {
        "ROUGE-L": "reward 'ROUGE-L' is unknown; expected CIDEr-D or BLEU-4, or both with weights",
        "": "reward '' is unknown",
        "CIDEr-D:much": "reward 'CIDEr-D:much': the weight of CIDEr-D is 'much'; expected a number",
        "CIDEr-D:": "the weight of CIDEr-D is ''",
        "BLEU-4:nan": "the weight of BLEU-4 must be a number in",
        "CIDEr-D:1,BLEU-4:-1": "the weight of BLEU-4 must be a number in",
        "CIDEr-D:0": "the weight of CIDEr-D must be a number in",
        "CIDEr-D,CIDEr-D:2": "CIDEr-D is given twice",
    }.items():
        with pytest.raises(ConfigurationError, match=message) as caught:
            parse_reward(wrong)
        assert "\n" not in str(caught.value)


def test_figures_of_samples():
    captions = encode(
        "a red cat",
        "",
        "the cat sits on a",  # a bad ending
        "a cat a cat",  # a sequence of two words, twice
        "cat cat cat",  # also
        "cat cat on a red dog",
        " ".join(["a red dog sits on the cat the mat"]),  # cut off
        "mat",
    )
    found = describe_samples(captions, INDICES)
    assert found == {"words": 31 / 8, "repeats": 2 / 8, "bad_endings": 2 / 8}
    assert describe_samples(captions[:1, :1], INDICES)["repeats"] == 0


@pytest.fixture
def healthy(tmp_path):
    """Arguments of the self-test where everything is right, by name."""
    dataset = open_dataset(make_tiny(tmp_path / "tiny"))
    references = training_references(dataset)
    return {
        "rewards": Rewards(references, dataset.vocabulary.word_to_idx, BOTH),
        "references": references,
        "split": dataset.split("train"),
        "idx_to_word": dataset.vocabulary.idx_to_word,
    }


def remade(healthy, references=None, words=None):
    words = words or healthy["idx_to_word"]
    indices = {word: index for index, word in enumerate(words)}
    return Rewards(references or healthy["references"], indices, BOTH)


def moved(values):
    return [*values[1:], values[0]]


def shifted(healthy):
    words = healthy["idx_to_word"]
    return [*words[:4], *moved(words[4:])]


def test_the_self_test_passes_what_is_right(healthy):
    check_rewards(**healthy)
    whole = healthy["split"]
    one = Split(whole.captions[::2], whole.image_idxs[::2], whole.features, whole.urls)
    references = [known[:1] for known in healthy["references"]]
    reward = remade(healthy, references)
    check_rewards(reward, references, one, healthy["idx_to_word"])  # of one caption per image


def test_unknown_words_are_no_mistake(healthy):
    """Decoded references of a character vocabulary have `<UNK>`; rewards do not match it."""
    red, split = healthy["idx_to_word"].index("red"), healthy["split"]
    split.captions[split.captions == red] = UNK
    for of_image in healthy["references"]:
        of_image[:] = [[{"red": "<UNK>"}.get(w, w) for w in words] for words in of_image]
    healthy["rewards"] = remade(healthy)
    check_rewards(**healthy)


DIFFER = "the vocabulary, references or special tokens of rewards are not those of the model"
DISAGREE = "the vocabulary or the images of captions and references differ"


@pytest.mark.parametrize("mistake", ["equal", "of more images"])
def test_wrong_document_frequencies_are_seen(healthy, mistake):
    if mistake == "equal":
        for idf in healthy["rewards"]._idf:
            idf[:] = 1
    else:
        healthy["rewards"] = remade(healthy, healthy["references"] + healthy["references"][:5])
    with pytest.raises(DataError, match=DIFFER):
        check_rewards(**healthy)


@pytest.mark.parametrize("whose", ["rewards", "model", "both"])
def test_a_shifted_vocabulary_is_seen(healthy, whose):
    words = shifted(healthy)
    if whose != "model":
        healthy["rewards"] = remade(healthy, words=words)
    if whose != "rewards":
        healthy["idx_to_word"] = words
    with pytest.raises(DataError, match=DISAGREE if whose == "both" else DIFFER):
        check_rewards(**healthy)


@pytest.mark.parametrize("whose", ["rewards", "data"])
def test_references_of_other_images_are_seen(healthy, whose):
    references = moved(healthy["references"])
    healthy["rewards"] = remade(healthy, references)
    if whose == "data":
        healthy["references"] = references
    with pytest.raises(DataError, match=DISAGREE if whose == "data" else DIFFER):
        check_rewards(**healthy)


def test_references_counted_from_another_one_on_are_seen(healthy):
    healthy["rewards"]._first_references -= 1
    with pytest.raises(DataError, match=DIFFER):
        check_rewards(**healthy)


@pytest.mark.parametrize("of", ["captions", "references", "both"])
def test_an_end_that_does_not_count_is_seen(healthy, monkeypatch, of):
    if of != "references":
        count = rewards.count_words
        monkeypatch.setattr(rewards, "count_words", lambda *how: count(*how) - 1)
    if of != "captions":
        healthy["rewards"]._lengths -= 1
    with pytest.raises(DataError, match=DIFFER):
        check_rewards(**healthy)


def test_a_length_penalty_of_other_lengths_is_seen(healthy, monkeypatch):
    """The difference is off by one, but n-grams and BLEU are right."""
    exp = numpy.exp
    monkeypatch.setattr(numpy, "exp", lambda x: exp(-((numpy.sqrt(-72 * x) + 1) ** 2) / 72))
    healthy["rewards"].terms = {"CIDEr-D": 1.0}
    with pytest.raises(DataError, match=DIFFER):
        check_rewards(**healthy)


def test_captions_that_do_not_end_are_refused(healthy):
    split = healthy["split"]
    split.captions[split.captions == END] = NULL
    with pytest.raises(DataError, match="only 0 of 48 training captions end with <END>"):
        check_rewards(**healthy)


def test_training_images_without_references_are_refused(healthy):
    healthy["references"][3] = []
    with pytest.raises(DataError, match="training image 3 has no reference"):
        check_rewards(**healthy)


def test_of_many_images_the_self_test_takes_some(healthy, monkeypatch):
    monkeypatch.setattr(reward_check, "IMAGES", 3)
    seen = []
    reward = healthy["rewards"]

    class Recorded:
        terms = reward.terms

        def __call__(self, images, captions):
            seen.extend(images.tolist())
            return reward(images, captions)

    healthy["rewards"] = Recorded()
    check_rewards(**healthy)
    assert seen == [0, 0, 11, 11, 23, 23]
