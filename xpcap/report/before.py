"""Captions before and after the training of a run that started from another one (`--from`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

from xpcap.data.dataset import Dataset
from xpcap.data.vocabulary import Vocabulary, tokenizer
from xpcap.decoding import Beam
from xpcap.errors import XpcapError
from xpcap.evaluation import Evaluation, evaluate_run
from xpcap.runs import Run, open_run
from xpcap.runs.dataset import check_data
from xpcap.runs.folder import BEST
from xpcap.training.samples import describe_samples

METRICS = ("CIDEr-D", "BLEU-4")


@dataclass(frozen=True)
class Before:
    """The captions of the run that training started from, and what has changed since.

    `captions` are those of a split with references, each with its CIDEr-D. Each of `changes` is a
    phrase, and its figures as text: before, after, and of the references, or an empty text. If the
    captions cannot be made again, `missing` says why.
    """

    name: str
    captions: Sequence[tuple[str, float]] = ()
    changes: Sequence[Sequence[str]] = ()
    missing: str = ""


def find_before(
    run: Run, dataset: Dataset, split: str, beam: Beam, after: Evaluation
) -> Before | None:
    """Caption a split with the run that a run started from; None if it started from none.

    `after` is the evaluation of the run itself, on the same split and by the same search.
    """
    training = run.config.get("training")
    started = training.get("from_run") if isinstance(training, dict) else None
    if not isinstance(started, str):
        return None
    path = Path(started)
    name = path.parent.name if path.name == BEST else f"{path.parent.name}/{path.name}"
    try:
        source = open_run(path, run.model.backend)
        check_data(source, dataset)
        found = evaluate_run(source, dataset, split, beam, METRICS)
    except XpcapError as error:
        return Before(name, missing=str(error))
    captions = [(image["caption"], image["CIDEr-D"]) for image in found.images]
    return Before(name, captions, _changes(run.vocabulary, found, after))


def _changes(
    vocabulary: Vocabulary, before: Evaluation, after: Evaluation
) -> list[tuple[str, ...]]:
    """Compare the captions of two evaluations with each other, and with the references."""
    tokenize = tokenizer(vocabulary.tokens)
    captions = [[tokenize(image["caption"]) for image in of.images] for of in (before, after)]
    references = [tokenize(text) for image in after.images for text in image["references"]]
    described = [_describe(vocabulary, sentences) for sentences in (*captions, references)]
    used = [len({word for words in sentences for word in words}) for sentences in captions]
    return [
        *((name, *(f"{of.scores.corpus[name]:.4f}" for of in (before, after)), "")
          for name in METRICS),
        ("words per caption, mean", *(f"{of['words']:.2f}" for of in described)),
        ("captions that repeat a phrase", *(f"{of['repeats']:.1%}" for of in described)),
        ("captions that end in “a”, “of” …", *(f"{of['bad_endings']:.1%}" for of in described)),
        ("different words", *(f"{count:,}" for count in used), ""),
    ]  # fmt: skip


def _describe(vocabulary: Vocabulary, sentences: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the figures of `describe_samples`."""
    width = 2 + max(map(len, sentences))
    encoded = numpy.array([vocabulary.encode(words, width) for words in sentences])
    return describe_samples(encoded[:, 1:], vocabulary.word_to_idx)
