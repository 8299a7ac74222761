"""CIDEr-D in Python, as self-critical training usually computes it: dictionaries of n-grams.

Document frequencies are counted once, and the references' vectors are kept by image.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

NGram = tuple[int, ...]
Vector = tuple[list[dict[NGram, float]], list[float], int]
"""Weights and norms, for n-grams of 1 to 4 words, and the number of words."""


class PythonCIDErD:
    """CIDEr-D of captions of images with known references: words are integers."""

    def __init__(self, references: Sequence[Sequence[Sequence[int]]]) -> None:
        self._references = references
        self._vectors: dict[int, list[Vector]] = {}
        counts: Counter[NGram] = Counter()
        for known in references:
            counts.update({ngram for words in known for of in _ngrams(words) for ngram in of})
        self._unknown = math.log(len(references))
        self._idf = {ngram: self._unknown - math.log(count) for ngram, count in counts.items()}

    def __call__(self, images: Sequence[int], captions: Sequence[Sequence[int]]) -> list[float]:
        """Return the CIDEr-D of each caption."""
        return [self._score(*pair) for pair in zip(images, captions, strict=True)]

    def _score(self, image: int, caption: Sequence[int]) -> float:
        known = self._vectors.get(image)
        if known is None:
            known = self._vectors[image] = [self._vector(of) for of in self._references[image]]
        weights, norms, length = self._vector(caption)
        total = 0.0
        for their_weights, their_norms, their_length in known:
            cosines = 0.0
            for c, r, c_norm, r_norm in zip(
                weights, their_weights, norms, their_norms, strict=True
            ):
                common = c.keys() & r.keys()
                if common:
                    dot = sum([min(c[ngram], r[ngram]) * r[ngram] for ngram in common])
                    cosines += dot / (c_norm * r_norm) if dot else 0.0
            total += cosines * math.exp(-((length - their_length) ** 2) / 72)
        return 10 * total / (4 * len(known))

    def _vector(self, words: Sequence[int]) -> Vector:
        idf, unknown = self._idf.get, self._unknown
        weights = [
            {ngram: count * idf(ngram, unknown) for ngram, count in counts.items()}
            for counts in _ngrams(words)
        ]
        norms = [math.sqrt(sum([w * w for w in of.values()])) for of in weights]
        return weights, norms, len(words)


def _ngrams(words: Sequence[int]) -> list[dict[NGram, int]]:
    """Count the n-grams of 1 to 4 words."""
    found: list[dict[NGram, int]] = []
    for n in range(1, 5):
        counts: dict[NGram, int] = {}
        for ngram in zip(*[words[k:] for k in range(n)], strict=False):
            counts[ngram] = counts.get(ngram, 0) + 1
        found.append(counts)
    return found
