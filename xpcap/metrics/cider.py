"""CIDEr and CIDEr-D: how alike a caption and its references are in the n-grams that tell much.

R. Vedantam, C. L. Zitnick and D. Parikh, "CIDEr: consensus-based image description evaluation",
CVPR 2015. Sentences are compared as vectors: g has the weight of the number of times it is in the
sentence, times idf(g) = log(images) - log(images with g in a reference).

What papers print as CIDEr is nearly always CIDEr-D: pycocoevalcap's `Cider` computes that.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from xpcap.errors import DataError
from xpcap.files import new_file, read_json
from xpcap.metrics.sentences import (
    ORDERS,
    NGram,
    Score,
    Words,
    check_sentences,
    check_words,
    ngrams,
)

SIGMA = 6.0
SCALE = 10.0


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many images' references each n-gram is.

    Parameters
    ----------
    images
        How many images there are.
    counts
        The images of each n-gram of 1 to 4 words. One that is not here has a count of 1, so that
        those of a single image need not be here.

    Raises
    ------
    DataError
        If there is no image, or a count is not in 1..`images`.
    """

    images: int
    counts: Mapping[NGram, int]

    def __post_init__(self) -> None:
        if self.images < 1:
            raise DataError(f"document frequencies of {self.images} images; expected at least one")
        if not all(1 <= count <= self.images for count in self.counts.values()):
            raise DataError(f"document frequencies must be in 1..{self.images}, the images counted")

    @classmethod
    def of(cls, references: Sequence[Sequence[Words]]) -> DocumentFrequencies:
        """Count those of references, given as the words of some sentences an image."""
        counts: Counter[NGram] = Counter()
        for known in references:
            check_words(known)
            counts.update({ngram for words in known for n in ORDERS for ngram in ngrams(words, n)})
        return cls(len(references), {ngram: count for ngram, count in counts.items() if count > 1})

    def idf(self, ngram: NGram) -> float:
        """Return log(images) - log(count)."""
        return math.log(self.images) - math.log(self.counts.get(ngram, 1))

    @classmethod
    def read(cls, path: Path) -> DocumentFrequencies:
        """Read a file that `write` has written.

        Raises
        ------
        DataError
            If it is missing, or is not such a file.
        """
        content = read_json(path)
        try:
            _check_file(content)
            counts = zip(map(tuple, content["ngrams"]), content["counts"], strict=True)
            return cls(content["images"], dict(counts))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: expected document frequencies: 'images', a number above 0, 'ngrams',"
                " lists of words, and 'counts', a number in 1..images for each"
            ) from error

    def write(self, path: Path) -> None:
        """Write them as JSON.

        Raises
        ------
        DataError
            If the file cannot be written.
        """
        content = {
            "images": self.images,
            "ngrams": list(self.counts),
            "counts": list(self.counts.values()),
        }
        with new_file(path) as temporary:
            temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _check_file(content: Any) -> None:
    """Raise a TypeError or KeyError where what was read has other types than what is written."""
    words = [word for ngram in content["ngrams"] for word in ngram]
    if not (
        all(type(count) is int for count in (content["images"], *content["counts"]))
        and all(isinstance(ngram, list) for ngram in content["ngrams"])
        and all(isinstance(word, str) for word in words)
    ):
        raise TypeError


def cider(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    frequencies: DocumentFrequencies | None = None,
) -> Score:
    """Compute CIDEr as the paper first defines it: no clipping, no penalty of length.

        CIDEr = 10 · mean over n = 1..4 and references of  c · r / (‖c‖ ‖r‖)

    where c and r are the weights of the n-grams of the candidate and of a reference. The factor of
    10 is not in the paper's formula but customary. Words are not stemmed.

    Parameters
    ----------
    candidates
        The words of a caption for each image.
    references
        The words of what people said, at least one sentence an image.
    frequencies
        Document frequencies; None counts those of `references`. With a single image counted, every
        n-gram is in all images, and by the formula the value is 0: one image needs stored ones.

    Returns
    -------
    Score
        From 0 to 10; the corpus' is the mean over images.

    Raises
    ------
    DataError
        If there is no candidate, one has no reference, or a sentence is not cut into words.
    """
    return _consensus(candidates, references, frequencies, _cosine, sigma=math.inf)


def cider_d(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    frequencies: DocumentFrequencies | None = None,
) -> Score:
    """Compute CIDEr-D, the paper's robust variant, which is pycocoevalcap's `Cider`.

        CIDEr-D = 10 · mean over n = 1..4 and references of
                  exp(-(l_c - l_r)² / (2 · 6²)) · min(c, r) · r / (‖c‖ ‖r‖)

    where c and r are the weights of the n-grams of the candidate and of a reference, and l_c and
    l_r their lengths. (pycocoevalcap counts bigrams, which differ by as many.) Repeating words
    pays less than in CIDEr, and another length costs. Words are not stemmed.

    Parameters
    ----------
    candidates, references, frequencies
        As of `cider`.

    Returns
    -------
    Score
        From 0 to 10; the corpus' is the mean over images.

    Raises
    ------
    DataError
        If there is no candidate, one has no reference, or a sentence is not cut into words.
    """
    return _consensus(candidates, references, frequencies, _clipped_cosine, SIGMA)


class _Vector(NamedTuple):
    """The weights of a sentence's n-grams of one length, and their norm."""

    weights: dict[NGram, float]
    norm: float


def _consensus(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    frequencies: DocumentFrequencies | None,
    cosine: Callable[[_Vector, _Vector], float],
    sigma: float,
) -> Score:
    check_sentences(candidates, references)
    if frequencies is None:
        frequencies = DocumentFrequencies.of(references)
    values = []
    for candidate, known in zip(candidates, references, strict=True):
        c = _vectors(candidate, frequencies)
        total = 0.0
        for reference in known:
            r = _vectors(reference, frequencies)
            longer = len(candidate) - len(reference)
            total += math.exp(-(longer**2) / (2 * sigma**2)) * sum(map(cosine, c, r))
        values.append(SCALE * total / (len(ORDERS) * len(known)))
    return Score.mean_of(values)


def _vectors(words: Words, frequencies: DocumentFrequencies) -> list[_Vector]:
    return [_vector(ngrams(words, n), frequencies) for n in ORDERS]


def _vector(counts: Mapping[NGram, int], frequencies: DocumentFrequencies) -> _Vector:
    weights = {ngram: count * frequencies.idf(ngram) for ngram, count in counts.items()}
    return _Vector(weights, math.sqrt(sum(weight**2 for weight in weights.values())))


def _cosine(c: _Vector, r: _Vector) -> float:
    common = sum(weight * r.weights.get(ngram, 0.0) for ngram, weight in c.weights.items())
    return _divided(common, c, r)


def _clipped_cosine(c: _Vector, r: _Vector) -> float:
    common = 0.0
    for ngram, weight in c.weights.items():
        other = r.weights.get(ngram, 0.0)
        common += min(weight, other) * other
    return _divided(common, c, r)


def _divided(product: float, c: _Vector, r: _Vector) -> float:
    """Divide by the norms; one is zero without n-grams, or where each of them is in every image."""
    norms = c.norm * r.norm
    return product / norms if norms else 0.0
