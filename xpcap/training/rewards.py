"""Rewards of sampled captions: metrics over word indices, vectorized.

S. J. Rennie and others, "Self-critical sequence training for image captioning", CVPR 2017, train a
captioner on the metric itself. A step needs the metric of hundreds of captions, and waits for it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy

from xpcap.data.dataset import Dataset
from xpcap.data.vocabulary import END, NULL, START, UNK, plain, tokenizer
from xpcap.errors import ConfigurationError, DataError
from xpcap.metrics.bleu import from_counts
from xpcap.metrics.cider import SCALE, SIGMA
from xpcap.metrics.sentences import ORDERS, Words
from xpcap.options import check_number
from xpcap.training.samples import count_words

REWARDS = ("CIDEr-D", "BLEU-4")
"""The metrics of a reward."""


def parse_reward(text: str) -> dict[str, float]:
    """Return the positive weights of a reward by metric, from text as `"CIDEr-D:1,BLEU-4:0.5"`.

    A metric without a weight has 1. Raises `ConfigurationError`.
    """
    terms: dict[str, float] = {}
    for term in text.split(","):
        name, colon, weight = (part.strip() for part in term.partition(":"))
        if name not in REWARDS:
            raise ConfigurationError(
                f"reward {name!r:.40} is unknown; expected {' or '.join(REWARDS)},"
                " or both with weights, such as CIDEr-D:1,BLEU-4:0.5"
            )
        if name in terms:
            raise ConfigurationError(f"reward {text!r:.80}: {name} is given twice")
        try:
            terms[name] = float(weight) if colon else 1.0
        except ValueError:
            raise ConfigurationError(
                f"reward {text!r:.80}: the weight of {name} is {weight!r:.40}; expected a number"
            ) from None
        check_number(f"reward {text!r:.80}: the weight of {name}", terms[name], "(0, 1000]")
    return terms


def training_references(dataset: Dataset) -> list[list[list[str]]]:
    """Return the references of each training image, tokenized as metrics tokenize them."""
    tokenize = tokenizer(dataset.vocabulary.tokens)
    return [
        [tokenize(plain(sentence)) for sentence in of_image]
        for of_image in dataset.references("train")
    ]


class Rewards:
    """Rewards captions of training images: a weighted sum of CIDEr-D and sentence BLEU-4.

    They are those of `xpcap.metrics` on the same words, with two differences. `<END>` counts as a
    word, of references and of captions that have ended, so that a caption that breaks off is worth
    less. `<UNK>`, `<NULL>` and `<START>` in a caption are words that no reference contains.

    Parameters
    ----------
    references
        The tokenized references of each training image, without `<END>`. The document frequencies
        of CIDEr-D are theirs.
    word_to_idx
        The vocabulary of the model.
    terms
        The weight of each metric of `REWARDS` that counts; see `parse_reward`.
    """

    def __init__(
        self,
        references: Sequence[Sequence[Words]],
        word_to_idx: Mapping[str, int],
        terms: Mapping[str, float],
    ) -> None:
        self.terms = dict(terms)
        self._word_to_idx = word_to_idx
        known = {w: k for w, k in word_to_idx.items() if w not in (NULL, START, UNK)}
        unknown = itertools.count(1 + max(word_to_idx.values()))
        indices = defaultdict(unknown.__next__, known)
        sentences = [words for of_image in references for words in of_image]
        self._words = numpy.array([indices[w] for words in sentences for w in (*words, END)], int)
        self._lengths = numpy.array([len(words) + 1 for words in sentences], int)
        self._first_words = _starts(self._lengths)
        self._counts = numpy.array([len(of_image) for of_image in references], int)
        self._first_references = _starts(self._counts)
        self._width = next(unknown)  # above all indices
        self._known: list[numpy.ndarray] = []  # n-grams of references by order, and a last key
        self._idf: list[numpy.ndarray] = []  # of these n-grams, and last, of any other
        image = numpy.repeat(
            numpy.repeat(numpy.arange(len(references)), self._counts), self._lengths
        )
        for at, ids in self._ngrams(self._words, self._lengths, self._learn):
            size = len(self._known[-1])
            in_images = numpy.sort(image[at] * size + ids)  # numpy.unique hashes, and is slow
            first = numpy.append(True, in_images[1:] != in_images[:-1])[: len(at)]
            frequencies = numpy.bincount(in_images[first] % size, minlength=size)
            frequencies[-1] = 1
            self._idf.append(numpy.log(len(references)) - numpy.log(frequencies))

    def __call__(self, images: numpy.ndarray, captions: numpy.ndarray) -> numpy.ndarray:
        """Return the rewards of captions of training images, `(R,)` float64.

        Parameters
        ----------
        images
            Rows of `references`, `(R,)`; each must have one, or a `DataError` is raised.
        captions
            Word indices without `<START>`, `(R, T)`: up to `<END>`, then `<NULL>`; or T words.
        """
        R, T = captions.shape
        if not self._counts[images].all():
            row = images[self._counts[images].argmin()]
            raise DataError(f"training image {row} has no reference; expected at least one")
        shown, image = numpy.unique(images, return_inverse=True)
        counts = self._counts[shown]
        rows = _ranges(self._first_references[shown], counts)

        # the sentences: R captions, then the references of the images
        lengths = count_words(captions, self._word_to_idx)
        words = captions[numpy.arange(T) < lengths[:, None]]
        known = self._words[_ranges(self._first_words[rows], self._lengths[rows])]
        words, lengths = numpy.append(words, known), numpy.append(lengths, self._lengths[rows])
        owner = numpy.append(image, numpy.repeat(numpy.arange(len(shown)), counts))
        sentence = numpy.repeat(numpy.arange(len(lengths)), lengths)

        # the pairs: each caption with each reference of its image
        first_reference = R + _starts(counts)[image]
        first_pair = _starts(counts[image])
        caption = numpy.repeat(numpy.arange(R), counts[image])
        reference = _ranges(first_reference, counts[image])

        cosines = numpy.zeros(len(caption))
        matches = numpy.zeros((R, len(ORDERS)))
        for n, (at, ids) in enumerate(self._ngrams(words, lengths, self._find)):
            span = len(ids) + len(self._known[n])  # above all ids
            distinct, times = numpy.unique(sentence[at] * span + ids, return_counts=True)
            of, ids = numpy.divmod(distinct, span)
            weights = times * self._idf[n][numpy.minimum(ids, len(self._known[n]) - 1)]
            norms = numpy.sqrt(numpy.bincount(of, weights**2, len(lengths)))
            ours, theirs = _equal(owner[of] * span + ids, int(numpy.searchsorted(of, R)))
            by = of[ours]
            products = numpy.minimum(weights[ours], weights[theirs]) * weights[theirs]
            dots = numpy.bincount(
                first_pair[by] + of[theirs] - first_reference[by], products, len(caption)
            )
            norm = norms[caption] * norms[reference]
            cosines += numpy.divide(dots, norm, out=numpy.zeros(len(caption)), where=norm > 0)
            most = numpy.zeros_like(times)
            numpy.maximum.at(most, ours, times[theirs])
            clipped = numpy.minimum(most, times)
            matches[:, n] = numpy.bincount(of, clipped, len(lengths))[:R]

        longer = lengths[caption] - lengths[reference]
        penalized = numpy.exp(-(longer**2) / (2 * SIGMA**2)) * cosines
        consensus = numpy.bincount(caption, penalized, R) / (len(ORDERS) * counts[image])
        above = 1 + lengths.max(initial=0)
        closeness = abs(longer) * above + lengths[reference]  # of two, the shorter
        closest = numpy.minimum.reduceat(closeness, first_pair) % above
        totals = numpy.maximum(0, lengths[:R, None] - numpy.array(ORDERS) + 1)
        values = {
            "CIDEr-D": SCALE * consensus,
            "BLEU-4": from_counts(matches, totals, lengths[:R], closest)[:, 3],
        }
        rewards = numpy.zeros(R)
        for name, weight in self.terms.items():
            rewards += weight * values[name]
        return rewards

    def _ngrams(
        self,
        words: numpy.ndarray,
        lengths: numpy.ndarray,
        identify: Callable[[int, numpy.ndarray], numpy.ndarray],
    ) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
        """Yield for each order where n-grams begin in sentences, and what identifies them.

        The key of an n-gram joins the id of its first n - 1 words and the last word.
        """
        left = numpy.repeat(numpy.cumsum(lengths), lengths) - numpy.arange(len(words))
        ids = numpy.zeros(len(words), int)
        for n in range(len(ORDERS)):
            at = numpy.flatnonzero(left > n)
            ids[at] = identify(n, ids[at] * self._width + words[at + n])
            yield at, ids[at]

    def _learn(self, n: int, keys: numpy.ndarray) -> numpy.ndarray:
        """Make the table of n-grams of an order, and return their places in it."""
        ids: numpy.ndarray
        known, ids = numpy.unique(keys, return_inverse=True)
        self._known.append(numpy.append(known, numpy.iinfo(int).max))
        return ids

    def _find(self, n: int, keys: numpy.ndarray) -> numpy.ndarray:
        """Return the places of n-grams in the table; others have ids of their own above."""
        known = self._known[n]
        distinct, inverse = numpy.unique(keys, return_inverse=True)
        places = numpy.searchsorted(known, distinct)
        others = len(known) + numpy.arange(len(distinct))
        ids: numpy.ndarray = numpy.where(known[places] == distinct, places, others)[inverse]
        return ids


def _starts(lengths: numpy.ndarray) -> numpy.ndarray:
    """Return where parts of these lengths, one after another, begin."""
    starts: numpy.ndarray = numpy.cumsum(lengths) - lengths
    return starts


def _ranges(starts: numpy.ndarray, lengths: numpy.ndarray) -> numpy.ndarray:
    """Return the integers of ranges of these starts and lengths, one after another."""
    return numpy.repeat(starts - _starts(lengths), lengths) + numpy.arange(lengths.sum())


def _equal(keys: numpy.ndarray, split: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return all pairs of places of equal keys, one before `split` and one after."""
    order = split + numpy.argsort(keys[split:])
    ours, theirs = keys[:split], keys[order]
    first = numpy.searchsorted(theirs, ours)
    counts = numpy.searchsorted(theirs, ours, "right") - first
    return numpy.repeat(numpy.arange(split), counts), order[_ranges(first, counts)]
