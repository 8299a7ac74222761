"""BLEU: the share of a caption's n-grams that its references contain.

K. Papineni and others, "BLEU: a method for automatic evaluation of machine translation", ACL 2002.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from xpcap.metrics.sentences import ORDERS, Score, Words, check_sentences, ngrams

# They prevent division by zero; the precision of 0 of 0 n-grams is 1e-6, as in pycocoevalcap.
TINY, SMALL = 1e-15, 1e-9


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[Score]:
    """Compute BLEU-1 to BLEU-4, as pycocoevalcap does.

        BLEU-n = min(1, exp(1 - r / c)) · (p₁ · ... · p_n)^(1 / n)
        p_k    = Σ_g min(count of g in the candidate, its largest count in one reference)
                 / number of k-grams in the candidate

    where g ranges over the distinct k-grams of the candidate, c is its length, and r the length of
    the reference closest in length (the shorter of two). For the corpus, c, r and both parts of p_k
    are first summed over images; its value is not the mean over images.

    A candidate of fewer than n words has no n-grams: its own BLEU-n is small, even if it equals a
    reference. One without words has 0. Values are from 0 to 1.

    Returns
    -------
    list of Score
        BLEU-1, BLEU-2, BLEU-3 and BLEU-4.
    """
    check_sentences(candidates, references)
    pairs = list(zip(candidates, references, strict=True))
    matches = numpy.array([[_matches(*pair, n) for n in ORDERS] for pair in pairs], numpy.float64)
    closest = numpy.array([_closest_length(*pair) for pair in pairs], numpy.float64)
    lengths = numpy.array([len(words) for words in candidates], numpy.float64)
    counts = numpy.maximum(0, lengths[:, None] - numpy.array(ORDERS) + 1)
    images = from_counts(matches, counts, lengths, closest)
    corpus = from_counts(matches.sum(axis=0), counts.sum(axis=0), lengths.sum(), closest.sum())
    return [Score(float(corpus[k]), images[:, k]) for k in range(len(ORDERS))]


def from_counts(
    matches: numpy.ndarray, counts: numpy.ndarray, length: numpy.ndarray, closest: numpy.ndarray
) -> numpy.ndarray:
    """Apply the formula to `(..., 4)` matches and counts of n-grams, and lengths c and r."""
    precisions = (matches + TINY) / (counts + SMALL)
    means = numpy.cumprod(precisions, axis=-1) ** (1 / numpy.array(ORDERS))
    ratio = (length + TINY) / (closest + SMALL)
    brevity = numpy.exp(numpy.minimum(0, 1 - 1 / ratio))
    return means * brevity[..., None]


def _matches(candidate: Words, references: Sequence[Words], n: int) -> int:
    known = [ngrams(words, n) for words in references]
    return sum(
        min(count, max(counts.get(ngram, 0) for counts in known))
        for ngram, count in ngrams(candidate, n).items()
    )


def _closest_length(candidate: Words, references: Sequence[Words]) -> int:
    lengths = [len(words) for words in references]
    return min(lengths, key=lambda length: (abs(length - len(candidate)), length))
