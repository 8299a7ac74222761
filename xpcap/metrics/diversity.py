"""How varied captions are, whatever they say of their images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from xpcap.data.vocabulary import SPECIAL
from xpcap.errors import ConfigurationError, DataError
from xpcap.metrics.sentences import Score, Words, check_words, ngrams


def distinct_n(captions: Sequence[Words], n: int) -> float:
    """Return the number of different n-grams for each word of all captions.

    J. Li and others, "A diversity-promoting objective function for neural conversation models",
    NAACL 2016. The more captions there are, the lower it is: only sets of one size compare.
    Captions without any word have 0.

    Raises
    ------
    DataError
        If a caption is not cut into words.
    ConfigurationError
        If `n` is less than 1.
    """
    if n < 1:
        raise ConfigurationError(f"the n of distinct-n must be at least 1, got {n}")
    check_words(captions)
    different = {ngram for words in captions for ngram in ngrams(words, n)}
    return len(different) / max(1, sum(len(words) for words in captions))


def novel(captions: Sequence[Words], training: Sequence[Words]) -> Score:
    """Tell which captions are not, word for word, among the training captions.

    Returns
    -------
    Score
        1 for an image whose caption is new and 0 for another; the corpus' is the share of new ones.

    Raises
    ------
    DataError
        If there is no caption, or one is not cut into words.
    """
    if not len(captions):
        raise DataError("no captions to measure; expected at least one")
    check_words(captions)
    check_words(training)
    known = {tuple(words) for words in training}
    return Score.mean_of([tuple(words) not in known for words in captions])


def vocabulary_use(captions: Sequence[Words], vocabulary: Iterable[str]) -> float:
    """Return the share of a vocabulary's words that are in some caption.

    `<NULL>`, `<START>`, `<END>` and `<UNK>` are no words.

    Raises
    ------
    DataError
        If a caption is not cut into words, or the vocabulary has none.
    """
    check_words(captions)
    words = set(vocabulary) - set(SPECIAL)
    if not words:
        raise DataError("the vocabulary has no words; expected at least one")
    used = {word for caption in captions for word in caption}
    return len(words & used) / len(words)
