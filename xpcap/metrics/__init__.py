"""How good captions are, in pure Python and NumPy: no Java, no image ids, one image allowed.

`evaluate_captions` takes text. The functions beside it take sentences that are cut into words, a
candidate and its references for each image, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy

from xpcap.data.vocabulary import tokenize_any
from xpcap.errors import ConfigurationError
from xpcap.metrics.bleu import bleu
from xpcap.metrics.cider import DocumentFrequencies, cider, cider_d
from xpcap.metrics.coco_eval import meteor, spice
from xpcap.metrics.diversity import distinct_n, novel, vocabulary_use
from xpcap.metrics.rouge import rouge_l
from xpcap.metrics.sentences import Score, check_counts

__all__ = [
    "DEFAULT",
    "METRICS",
    "DocumentFrequencies",
    "Score",
    "Scores",
    "bleu",
    "check_names",
    "cider",
    "cider_d",
    "distinct_n",
    "evaluate_captions",
    "meteor",
    "novel",
    "rouge_l",
    "spice",
    "vocabulary_use",
]

BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")

DEFAULT = (*BLEU, "ROUGE-L", "CIDEr", "CIDEr-D", "distinct-1", "distinct-2")
"""The metrics that need nothing but captions and references."""

METRICS = (*DEFAULT, "novel", "vocabulary-use", "METEOR", "SPICE")
"""The names that `evaluate_captions` knows."""


@dataclass(frozen=True)
class Scores:
    """The values of captions, by the names of the metrics.

    Parameters
    ----------
    corpus
        One number a metric, for all captions.
    images
        The values of each image, `(N,)` float64; not of `distinct-1`, `distinct-2` and
        `vocabulary-use`, which are of all captions only.
    """

    corpus: dict[str, float]
    images: dict[str, numpy.ndarray]


def evaluate_captions(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    names: Sequence[str] = DEFAULT,
    *,
    document_frequencies: DocumentFrequencies | None = None,
    training_captions: Iterable[str] | None = None,
    vocabulary: Iterable[str] | None = None,
) -> Scores:
    """Measure captions against what people said of the same images.

    All text is cut into words by `tokenize_any`: lower case, letters and digits of any script, a
    hyphen as a space. The COCO evaluation has rules for English: its `do n't`, `man 's` and
    `close-up` are our `dont`, `mans` and `close up`. (That is 2.3% of COCO's captions of val2017,
    and moves their BLEU-4 by less than 0.001, their CIDEr-D by 0.004.) In a language that puts no
    spaces between words, put them there first.

    Parameters
    ----------
    candidates
        A caption for each image.
    references
        What people said of each image, at least one caption.
    names
        Which of `METRICS` to compute.
    document_frequencies
        For CIDEr and CIDEr-D, of `tokenize_any`'s words; None counts those of `references`.
    training_captions
        For `novel`: the captions that the captioner has learned from.
    vocabulary
        For `vocabulary-use`: the words that the captioner can say.

    Returns
    -------
    Scores
        Those named, in that order.

    Raises
    ------
    ConfigurationError
        If a name is unknown, or what its metric needs is missing.
    DataError
        If there is no candidate, or one has no reference.

    Examples
    --------
    >>> scores = evaluate_captions(["A dog runs."], [["A dog runs fast.", "The dog!"]])
    >>> print(f"{scores.corpus['BLEU-1']:.3f} {scores.corpus['ROUGE-L']:.3f}")
    1.000 0.836
    """
    check_names(names, training_captions, vocabulary)
    check_counts(candidates, references)
    said = [tokenize_any(caption) for caption in candidates]
    known = [[tokenize_any(caption) for caption in captions] for captions in references]
    trained = [tokenize_any(caption) for caption in training_captions or ()]
    if document_frequencies is None and {"CIDEr", "CIDEr-D"} & set(names):
        document_frequencies = DocumentFrequencies.of(known)

    metrics: dict[str, Callable[[], Score | float]] = {
        "ROUGE-L": lambda: rouge_l(said, known),
        "CIDEr": lambda: cider(said, known, document_frequencies),
        "CIDEr-D": lambda: cider_d(said, known, document_frequencies),
        "distinct-1": lambda: distinct_n(said, 1),
        "distinct-2": lambda: distinct_n(said, 2),
        "novel": lambda: novel(said, trained),
        "vocabulary-use": lambda: vocabulary_use(said, vocabulary or ()),
        "METEOR": lambda: meteor(said, known),
        "SPICE": lambda: spice(said, known),
    }
    by_bleu = dict(zip(BLEU, bleu(said, known), strict=True)) if set(BLEU) & set(names) else {}
    corpus, images = {}, {}
    for name in names:
        score = by_bleu[name] if name in BLEU else metrics[name]()
        if isinstance(score, Score):
            corpus[name], images[name] = score
        else:
            corpus[name] = score
    return Scores(corpus, images)


def check_names(
    names: Sequence[str],
    training_captions: Iterable[str] | None,
    vocabulary: Iterable[str] | None,
) -> None:
    """Check that metrics are known and have what they need.

    Raises
    ------
    ConfigurationError
        If one is not, or has not.
    """
    for name in names:
        if name not in METRICS:
            raise ConfigurationError(
                f"metric '{name}' is unknown; expected one of {', '.join(METRICS)}"
            )
    if "novel" in names and training_captions is None:
        raise ConfigurationError("metric 'novel' needs the training captions")
    if "vocabulary-use" in names and vocabulary is None:
        raise ConfigurationError("metric 'vocabulary-use' needs the vocabulary")
