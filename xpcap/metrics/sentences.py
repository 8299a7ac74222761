"""What the metrics share: tokenized sentences, n-grams and scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
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


def check_list(name: str, values: object, of: str) -> None:
    """Check that values are in a list, or another collection in an order, not a string."""
    if not isinstance(values, Collection) or isinstance(values, str | bytes | Mapping | Set):
        raise DataError(f"{name}: expected a list of {of}, got {values!r:.40}")


def check_pairs(candidates: Sequence[object], references: Sequence[Sequence[object]]) -> None:
    """Check that there is a candidate, and that each image has references."""
    check_list("candidates", candidates, "captions")
    check_list("references", references, "lists, one for each image")
    if len(candidates) != len(references):
        raise DataError(
            f"{len(candidates)} candidates, but references for {len(references)};"
            " expected a candidate and its references for each image"
        )
    if not len(candidates):
        raise DataError("no captions to measure; expected at least one")
    for image, known in enumerate(references):
        check_list(f"references of image {image}", known, "captions")
        if not len(known):
            raise DataError(f"image {image} has no reference; expected at least one")


def check_words(sentences: Sequence[Words]) -> None:
    """Check that sentences are tokenized: lists of words, not strings."""
    check_list("sentences", sentences, "tokenized captions")
    for words in sentences:
        check_list("a tokenized caption", words, "words")
        for word in words:
            if not isinstance(word, str):
                raise DataError(f"a word of a tokenized caption is {word!r:.40}; expected text")


def check_sentences(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> None:
    """Check that each image has a candidate and references, all of them tokenized."""
    check_pairs(candidates, references)
    for sentences in (candidates, *references):
        check_words(sentences)
