"""From captions to the arrays of a data set, and the report of what was left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy

from xpcap.data.vocabulary import SPECIAL, UNK, Vocabulary
from xpcap.errors import ConfigurationError, DataError

LONGEST = 1000


@dataclass(frozen=True)
class BuildReport:
    """Numbers of images and captions by split, and of captions left out."""

    images: Mapping[str, int]
    captions: Mapping[str, int]
    too_long: int
    empty: int
    words: int  # size of the vocabulary
    unknown: float  # share of `<UNK>` among the words of the captions kept


class Encoded(NamedTuple):
    """The captions of all splits, encoded with one vocabulary.

    `captions (M, max_words + 2)` are word indices and `image_idxs (M,)` the image of each caption,
    both int32, by split.
    """

    vocabulary: Vocabulary
    captions: dict[str, numpy.ndarray]
    image_idxs: dict[str, numpy.ndarray]
    report: BuildReport


def check_limits(min_count: int, max_words: int) -> None:
    """Raise a `ConfigurationError` if a limit of `encode` is out of range."""
    if min_count < 1:
        raise ConfigurationError(f"min-count must be at least 1, got {min_count}")
    if not 1 <= max_words <= LONGEST:
        raise ConfigurationError(f"max-words must be in 1..{LONGEST}, got {max_words}")


def encode(
    source: Path,
    references: Mapping[str, Sequence[Sequence[str]]],
    tokenize: Callable[[str], list[str]],
    vocabulary: Vocabulary | None,
    min_count: int,
    max_words: int,
) -> Encoded:
    """Encode the captions of one to `max_words` words, and leave out the others.

    Parameters
    ----------
    source
        Where the captions come from, for messages.
    references
        Captions of each image, by split.
    tokenize
        Splits a caption into words.
    vocabulary
        None builds one of the words that occur `min_count` times in the training captions.

    Raises
    ------
    DataError
        If a split has no caption left.
    """
    tokens = {
        split: [[tokenize(caption) for caption in captions] for captions in images]
        for split, images in references.items()
    }
    if vocabulary is None:
        train = (words for image in tokens["train"] for words in image)
        vocabulary = Vocabulary.build(train, min_count)
    encoded, owners = {}, {}
    for split, images in tokens.items():
        kept = [
            (k, words)
            for k, image in enumerate(images)
            for words in image
            if 0 < len(words) <= max_words
        ]
        if not kept:
            raise DataError(f"{source}: no caption for '{split}'; expected at least one")
        owners[split] = numpy.array([k for k, _ in kept], numpy.int32)
        encoded[split] = numpy.stack([vocabulary.encode(words, max_words + 2) for _, words in kept])
    lengths = [len(words) for images in tokens.values() for image in images for words in image]
    indices = numpy.concatenate([captions.reshape(-1) for captions in encoded.values()])
    unknown = indices == vocabulary.word_to_idx[UNK]
    known = indices >= len(SPECIAL)
    report = BuildReport(
        images={split: len(images) for split, images in tokens.items()},
        captions={split: len(captions) for split, captions in encoded.items()},
        too_long=sum(length > max_words for length in lengths),
        empty=lengths.count(0),
        words=len(vocabulary),
        unknown=float(unknown.sum() / (unknown | known).sum()),
    )
    return Encoded(vocabulary, encoded, owners, report)
