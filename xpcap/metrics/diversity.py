"""Diversity of captions, regardless of their images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from xpcap.data.vocabulary import SPECIAL
from xpcap.errors import DataError
from xpcap.metrics.sentences import Score, Words, check_words, ngrams
from xpcap.options import check_counts


def distinct_n(captions: Sequence[Words], n: int) -> float:
    """Return the number of distinct n-grams divided by the number of words, 0 without words.

    J. Li and others, "A diversity-promoting objective function for neural conversation models",
    NAACL 2016. It falls with the number of captions: compare only sets of the same size.
    """
    check_counts(**{"the n of distinct-n": n})
    check_words(captions)
    different = {ngram for words in captions for ngram in ngrams(words, n)}
    return len(different) / max(1, sum(len(words) for words in captions))


def novel(captions: Sequence[Words], training: Sequence[Words]) -> Score:
    """Score captions 1 if they are not, word for word, among the training captions, else 0."""
    check_words(captions)
    check_words(training)
    if not len(captions):
        raise DataError("no captions to measure; expected at least one")
    known = {tuple(words) for words in training}
    return Score.mean_of([tuple(words) not in known for words in captions])


def vocabulary_use(captions: Sequence[Words], vocabulary: Iterable[str]) -> float:
    """Return the share of a vocabulary's words, special tokens excluded, that captions contain."""
    check_words(captions)
    listed = vocabulary if isinstance(vocabulary, str) else [*vocabulary]
    check_words([listed])
    words = set(listed) - set(SPECIAL)
    if not words:
        raise DataError("the vocabulary has no words; expected at least one")
    used = {word for caption in captions for word in caption}
    return len(words & used) / len(words)
