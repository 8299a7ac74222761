"""Metrics of captions in pure Python and NumPy: no Java, no image ids, one image is enough.

`evaluate_captions` takes text. The metrics beside it take tokenized sentences, `candidates` (one
for each image) and `references` (at least one for each image), in the same order, and return a
`Score`. They raise a `DataError` if there is no candidate, an image has no reference, or a sentence
is a string instead of a list of words.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy

from xpcap.data.vocabulary import WORDS, tokenizer
from xpcap.errors import ConfigurationError, DataError
from xpcap.metrics.bleu import bleu
from xpcap.metrics.cider import DocumentFrequencies, cider, cider_d
from xpcap.metrics.coco_eval import meteor, spice
from xpcap.metrics.diversity import distinct_n, novel, vocabulary_use
from xpcap.metrics.rouge import rouge_l
from xpcap.metrics.sentences import Score, check_list, check_pairs

__all__ = [
    "DEFAULT",
    "METRICS",
    "QUALITY",
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

QUALITY = (*BLEU, "ROUGE-L", "CIDEr", "CIDEr-D")
"""The metrics that measure agreement with the references, without Java; higher is better."""

DEFAULT = (*QUALITY, "distinct-1", "distinct-2")
"""The metrics that need nothing but captions and references."""

METRICS = {
    "BLEU-1": "share of the captions' words that are in a reference of their image, reduced if the"
    " captions are shorter than the references; 0 to 1",
    "BLEU-2": "as BLEU-1, for words and pairs of words",
    "BLEU-3": "as BLEU-1, for sequences of one to three words",
    "BLEU-4": "as BLEU-1, for sequences of one to four words",
    "ROUGE-L": "longest common subsequence of words with a reference, as an F-measure of precision"
    " and recall; 0 to 1",
    "CIDEr": "similarity to the references in sequences of one to four words, of which rare ones"
    " count more (TF-IDF); 0 to 10",
    "CIDEr-D": "CIDEr that does not reward repeated words or a length unlike the references'; 0 to"
    " 10",
    "distinct-1": "variety: number of different words, divided by that of all words",
    "distinct-2": "variety: number of different pairs of words, divided by that of all words",
    "novel": "share of captions that are not, word for word, among the training captions",
    "vocabulary-use": "share of the vocabulary's words that the captions contain",
    "METEOR": "alignment with a reference word by word, also by stem, synonym and paraphrase; for"
    " English, 0 to 1",
    "SPICE": "objects, attributes and relations in common with the references, as an F-score; for"
    " English, 0 to 1",
}
"""The metrics that `evaluate_captions` knows: names, each with a phrase that explains it."""


@dataclass(frozen=True)
class Scores:
    """The values of several metrics, by name: over all captions, and per image, `(N,)` float64.

    `distinct-1`, `distinct-2` and `vocabulary-use` have no values per image.
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
    tokens: str = WORDS,
) -> Scores:
    """Compare captions with the reference captions of the same images.

    All text is tokenized by `tokenize_any`: lower case, letters and digits of any script, split at
    punctuation. The COCO evaluation has rules for English: its `do n't`, `man 's` and `close-up`
    are our `dont`, `mans` and `close up`. (This affects 2.3% of COCO's captions of val2017, and
    changes their BLEU-4 by less than 0.001, their CIDEr-D by 0.004.) References that hold no word
    do not count.

    Parameters
    ----------
    candidates, references
        One caption for each image, and at least one reference caption for each.
    names
        Which of `METRICS` to compute; a `ConfigurationError` says what one lacks.
    document_frequencies
        For CIDEr and CIDEr-D, over the same tokens; by default counted in `references`.
    training_captions
        For `novel`: the captions that the model was trained on.
    vocabulary
        For `vocabulary-use`: the words that the model can generate.
    tokens
        `"words"`, or `"characters"` for a language written without spaces between words: then each
        character counts as a word.

    Examples
    --------
    >>> scores = evaluate_captions(["A dog runs."], [["A dog runs fast.", "The dog!"]])
    >>> print(f"{scores.corpus['BLEU-1']:.3f} {scores.corpus['ROUGE-L']:.3f}")
    1.000 0.836
    """
    check_names(names)
    if "novel" in names and training_captions is None:
        raise ConfigurationError("metric 'novel' needs the training captions")
    if "vocabulary-use" in names and vocabulary is None:
        raise ConfigurationError("metric 'vocabulary-use' needs the vocabulary")
    check_pairs(candidates, references)
    if isinstance(training_captions, str):
        check_list("training captions", training_captions, "captions")
    tokenize = tokenizer(tokens)
    split = [tokenize(caption) for caption in candidates]
    known = [[words for one in captions if (words := tokenize(one))] for captions in references]
    for image, left in enumerate(known):
        if not left:
            raise DataError(f"image {image} has no reference that holds a word; expected one")
    others = () if training_captions is None else training_captions
    trained = [tokenize(caption) for caption in others]
    if document_frequencies is None and {"CIDEr", "CIDEr-D"} & set(names):
        document_frequencies = DocumentFrequencies.of(known)

    metrics: dict[str, Callable[[], Score | float]] = {
        "ROUGE-L": lambda: rouge_l(split, known),
        "CIDEr": lambda: cider(split, known, document_frequencies),
        "CIDEr-D": lambda: cider_d(split, known, document_frequencies),
        "distinct-1": lambda: distinct_n(split, 1),
        "distinct-2": lambda: distinct_n(split, 2),
        "novel": lambda: novel(split, trained),
        "vocabulary-use": lambda: vocabulary_use(split, () if vocabulary is None else vocabulary),
        "METEOR": lambda: meteor(split, known),
        "SPICE": lambda: spice(split, known),
    }
    by_bleu = dict(zip(BLEU, bleu(split, known), strict=True)) if set(BLEU) & set(names) else {}
    corpus, images = {}, {}
    for name in names:
        score = by_bleu[name] if name in BLEU else metrics[name]()
        if isinstance(score, Score):
            corpus[name], images[name] = score
        else:
            corpus[name] = score
    return Scores(corpus, images)


def check_names(names: Iterable[str], known: Collection[str] = METRICS) -> None:
    """Raise a `ConfigurationError` if a metric is not `known`, a `DataError` unless in a list."""
    check_list("metrics", names, "names")
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise ConfigurationError(
                f"metric '{name}' is unknown; expected one of {', '.join(known)}"
            )
