"""From tokenized captions to the arrays of a data set, and the report of what that left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy

from xpcap.data.vocabulary import SPECIAL, UNK, Vocabulary
from xpcap.errors import ConfigurationError, DataError

LONGEST = 1000

Tokens = Sequence[Sequence[Sequence[str]]]
"""For each image, for each of its captions, the words."""


@dataclass(frozen=True)
class BuildReport:
    """What was built, and what was left out.

    Parameters
    ----------
    images, captions
        How many by split.
    too_long, empty
        Captions left out for their length, and for having no word.
    words
        The size of the vocabulary.
    unknown
        The share of `<UNK>` among the words of the captions kept.
    """

    images: Mapping[str, int]
    captions: Mapping[str, int]
    too_long: int
    empty: int
    words: int
    unknown: float


class Encoded(NamedTuple):
    """Captions `(M, max_words + 2)` int32 as word indices, and the image `(M,)` int32 of each."""

    captions: numpy.ndarray
    image_idxs: numpy.ndarray


def check_limits(min_count: int, max_words: int) -> None:
    """Check how often a word must occur, and how long a caption may be.

    Raises
    ------
    ConfigurationError
        If one of them cannot be used.
    """
    if min_count < 1:
        raise ConfigurationError(f"min-count must be at least 1, got {min_count}")
    if not 1 <= max_words <= LONGEST:
        raise ConfigurationError(f"max-words must be in 1..{LONGEST}, got {max_words}")


def encode(tokens: Tokens, words: Vocabulary, max_words: int) -> Encoded:
    """Encode the captions of one to `max_words` words, and leave out the others."""
    rows, owners = [], []
    for owner, captions in enumerate(tokens):
        for caption in captions:
            if 0 < len(caption) <= max_words:
                rows.append(words.encode(caption, max_words + 2))
                owners.append(owner)
    return Encoded(
        numpy.array(rows, numpy.int32).reshape(-1, max_words + 2),
        numpy.array(owners, numpy.int32),
    )


def check_captions(source: Path, encoded: Mapping[str, Encoded]) -> None:
    """Check that every split has a caption.

    Raises
    ------
    DataError
        If one has none; it names `source`.
    """
    for name, split in encoded.items():
        if not len(split.captions):
            raise DataError(f"{source}: no caption for '{name}'; expected at least one")


def build_report(
    tokens: Mapping[str, Tokens],
    encoded: Mapping[str, Encoded],
    words: Vocabulary,
    max_words: int,
) -> BuildReport:
    """Count what `encode` kept and left out, by split."""
    lengths = [len(c) for part in tokens.values() for image in part for c in image]
    indices = numpy.concatenate([split.captions.reshape(-1) for split in encoded.values()])
    unknown = indices == words.word_to_idx[UNK]
    known = indices >= len(SPECIAL)
    return BuildReport(
        images={name: len(part) for name, part in tokens.items()},
        captions={name: len(split.captions) for name, split in encoded.items()},
        too_long=sum(length > max_words for length in lengths),
        empty=lengths.count(0),
        words=len(words),
        unknown=float(unknown.sum() / (unknown | known).sum()),
    )
