"""What the metrics share: tokenized sentences, n-grams and scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy

from xpcap.errors import DataError

Words = Sequence[str]
"""A tokenized sentence."""

NGram = tuple[str, ...]
"""Consecutive words."""

ORDERS = (1, 2, 3, 4)
"""The n-gram lengths of BLEU and CIDEr."""


class Score(NamedTuple):
    """The value of a metric for all captions together, and for each image, `(N,)` float64."""

    corpus: float
    images: numpy.ndarray

    @classmethod
    def mean_of(cls, images: Sequence[float]) -> Score:
        """Make a score whose corpus value is the mean over images."""
        values = numpy.array(images, numpy.float64)
        return cls(float(values.mean()), values)


def ngrams(words: Words, n: int) -> Counter[NGram]:
    """Count the n-grams of a sentence."""
    return Counter(zip(*(words[first:] for first in range(n)), strict=False))


def check_counts(candidates: Sequence[object], references: Sequence[Sequence[object]]) -> None:
    """Check that there is a candidate, and that each image has references."""
    if len(candidates) != len(references):
        raise DataError(
            f"{len(candidates)} candidates, but references for {len(references)};"
            " expected a candidate and its references for each image"
        )
    if not len(candidates):
        raise DataError("no captions to measure; expected at least one")
    for image, known in enumerate(references):
        if isinstance(known, str):
            raise DataError(f"image {image}: its references are a string; expected a list of them")
        if not len(known):
            raise DataError(f"image {image} has no reference; expected at least one")


def check_words(sentences: Iterable[Words]) -> None:
    """Check that sentences are tokenized, not strings."""
    for words in sentences:
        if isinstance(words, str):
            raise DataError(f"'{words}' is a string; expected a list of words")


def check_sentences(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> None:
    """Check that each image has a candidate and references, all of them tokenized."""
    check_counts(candidates, references)
    for sentences in (candidates, *references):
        check_words(sentences)
