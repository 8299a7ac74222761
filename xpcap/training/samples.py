"""Statistics of sampled captions: lengths, repetitions and endings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy

from xpcap.data.vocabulary import END, NULL

BAD_ENDINGS = (
    "a", "an", "and", "at", "for", "her", "his", "in", "of", "on", "that", "the", "this", "to",
    "with",
)  # fmt: skip
"""Words after which hardly an English caption ends, but many of models trained for CIDEr-D do.

See T. Guo and others, "Improving reinforcement learning based image captioning with natural
language prior", EMNLP 2018; the list is that of R. Luo's ImageCaptioning.pytorch, and `and`.
"""


DESCRIBED = ("words", "repeats", "bad_endings")
"""The figures of `describe_samples`."""

FIGURES = {
    "reward": "mean reward of the captions drawn: what training raises",
    "baseline": "mean baseline: the reward that the other captions of the image, or its greedy"
    " caption, lead to expect",
    "advantage": "mean absolute difference of reward and baseline: how much there is to learn from",
    "entropy": "entropy of the captions drawn, in nats per word, which is the training loss: 0 if"
    " the model is certain of each word; it falls slowly in a healthy run",
    "distinct": "number of different captions among those drawn of an image: 1 if the model has one"
    " caption for each image left",
    "words": "mean number of words of a caption",
    "repeats": "share of captions in which two or more words in a row occur twice",
    "bad_endings": "share of captions that are cut off, or end with a word such as “a” or “of”",
}
"""The figures of the captions drawn in a self-critical step, with what they mean."""


def count_words(captions: numpy.ndarray, word_to_idx: Mapping[str, int]) -> numpy.ndarray:
    """Return how many words captions `(R, T)` have, `<END>` included: `(R,)`.

    A caption has the words up to its first `<END>`, or without one, up to its last but `<NULL>`.
    """
    ends = captions == word_to_idx[END]
    last = captions.shape[1] - numpy.argmax(captions[:, ::-1] != word_to_idx[NULL], axis=1)
    whole = numpy.where((captions != word_to_idx[NULL]).any(axis=1), last, 0)
    return numpy.where(ends.any(axis=1), numpy.argmax(ends, axis=1) + 1, whole)


def describe_samples(captions: numpy.ndarray, word_to_idx: Mapping[str, int]) -> dict[str, float]:
    """Return figures of captions `(R, T)` of word indices, as decoders return them.

    Returns
    -------
    dict
        `words`, mean number of words without `<END>`; `repeats`, share of captions in which a
        sequence of two or more words occurs twice; `bad_endings`, share of captions that were cut
        off, or end with one of `BAD_ENDINGS`.
    """
    lengths = count_words(captions, word_to_idx)
    rows = numpy.arange(len(captions))
    ended = (captions == word_to_idx[END]).any(axis=1)
    words = lengths - ended
    pairs = captions[:, :-1].astype(numpy.int64) * (1 + int(captions.max())) + captions[:, 1:]
    place = numpy.arange(pairs.shape[1])
    pairs = numpy.where(place < words[:, None], pairs, -1 - place)  # no two alike
    pairs.sort(axis=1)
    repeats = (pairs[:, 1:] == pairs[:, :-1]).any(axis=1)
    endings = [word_to_idx[word] for word in BAD_ENDINGS if word in word_to_idx]
    bad = numpy.isin(captions[rows, words - 1], endings)
    return {
        "words": float(words.mean()),
        "repeats": float(repeats.mean()),
        "bad_endings": float((bad | ~ended).mean()),
    }
