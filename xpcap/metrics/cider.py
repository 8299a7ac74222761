"""CIDEr and CIDEr-D: how similar a caption and its references are in informative n-grams.

R. Vedantam, C. L. Zitnick and D. Parikh, "CIDEr: consensus-based image description evaluation",
CVPR 2015. Sentences are compared as tf-idf vectors: the weight of an n-gram g is the number of
times it occurs in the sentence, times idf(g) = log(images) - log(images with g in a reference).

What papers report as CIDEr is nearly always CIDEr-D: pycocoevalcap's `Cider` computes that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

from xpcap.errors import DataError
from xpcap.metrics import sentences
from xpcap.metrics.sentences import ORDERS, NGram, Score, Words, ngrams

SIGMA = 6.0
SCALE = 10.0


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many images' references each n-gram of 1 to 4 words occurs.

    Counts are in 1..`images`, the number of images; that of an n-gram that is not listed is 1.
    """

    images: int
    counts: Mapping[NGram, int]

    def __post_init__(self) -> None:
        if not (isinstance(self.images, Integral) and self.images >= 1):
            raise DataError(
                f"document frequencies of {self.images!r:.40} images; expected at least one"
            )
        if not all(isinstance(c, Integral) and 1 <= c <= self.images for c in self.counts.values()):
            raise DataError(f"document frequencies must be in 1..{self.images}, the images counted")

    @classmethod
    def of(cls, references: Sequence[Sequence[Words]]) -> DocumentFrequencies:
        """Count n-grams in references: some tokenized sentences for each image."""
        counts: Counter[NGram] = Counter()
        sentences.check_list("references", references, "lists, one for each image")
        for known in references:
            sentences.check_words(known)
            counts.update({ngram for words in known for n in ORDERS for ngram in ngrams(words, n)})
        return cls(len(references), {ngram: count for ngram, count in counts.items() if count > 1})

    def idf(self, ngram: NGram) -> float:
        """Return log(images) - log(count)."""
        return math.log(self.images) - math.log(self.counts.get(ngram, 1))


def cider(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    frequencies: DocumentFrequencies | None = None,
) -> Score:
    """Compute CIDEr as the paper first defines it: no clipping, no length penalty.

        CIDEr = 10 · mean over n = 1..4 and references of  c · r / (‖c‖ ‖r‖)

    where c and r are the n-gram vectors of the candidate and of a reference. The factor of 10 is
    not in the paper's formula but customary. Words are not stemmed. Values are from 0 to 10; the
    corpus value is the mean over images.

    The document frequencies are by default those of `references`. In a single image every n-gram is
    in all images, and the formula gives 0: one image needs the frequencies of others.
    """
    return _consensus(candidates, references, frequencies, robust=False)


def cider_d(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    frequencies: DocumentFrequencies | None = None,
) -> Score:
    """Compute CIDEr-D, the paper's robust variant, which is pycocoevalcap's `Cider`.

        CIDEr-D = 10 · mean over n = 1..4 and references of
                  exp(-(l_c - l_r)² / (2 · 6²)) · min(c, r) · r / (‖c‖ ‖r‖)

    where l_c and l_r are the lengths of the candidate and the reference, and all else is as for
    `cider`. (pycocoevalcap counts bigrams instead of words, which gives the same difference.)
    Repeated words are rewarded less than by CIDEr, and a different length is penalized.
    """
    return _consensus(candidates, references, frequencies, robust=True)


class _Vector(NamedTuple):
    """The weights of a sentence's n-grams of one length, and their norm."""

    weights: dict[NGram, float]
    norm: float


def _consensus(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    frequencies: DocumentFrequencies | None,
    robust: bool,
) -> Score:
    sentences.check_sentences(candidates, references)
    if frequencies is None:
        frequencies = DocumentFrequencies.of(references)
    sigma = SIGMA if robust else math.inf
    values = []
    for candidate, known in zip(candidates, references, strict=True):
        c = _vectors(candidate, frequencies)
        total = 0.0
        for reference in known:
            r = _vectors(reference, frequencies)
            longer = len(candidate) - len(reference)
            cosines = (_cosine(*pair, robust) for pair in zip(c, r, strict=True))
            total += math.exp(-(longer**2) / (2 * sigma**2)) * sum(cosines)
        values.append(SCALE * total / (len(ORDERS) * len(known)))
    return Score.mean_of(values)


def _vectors(words: Words, frequencies: DocumentFrequencies) -> list[_Vector]:
    vectors = []
    for n in ORDERS:
        counts = ngrams(words, n)
        weights = {ngram: count * frequencies.idf(ngram) for ngram, count in counts.items()}
        norm = math.sqrt(sum(weight**2 for weight in weights.values()))
        vectors.append(_Vector(weights, norm))
    return vectors


def _cosine(c: _Vector, r: _Vector, clipped: bool) -> float:
    """Return the cosine, or 0 if a norm is: no n-grams, or each of them is in every image."""
    product = 0.0
    for ngram, weight in c.weights.items():
        other = r.weights.get(ngram, 0.0)
        product += (min(weight, other) if clipped else weight) * other
    norms = c.norm * r.norm
    return product / norms if norms else 0.0
