"""From captions to the arrays of a data set, and the report of what was left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy

from xpcap.data.folder import CaptionedImage, SplitContents
from xpcap.data.vocabulary import SPECIAL, UNK, WORDS, Vocabulary
from xpcap.errors import DataError
from xpcap.options import check_counts

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
    max_words: int  # the longest caption kept
    tokens: str  # "words" or "characters"


class Encoded(NamedTuple):
    """The splits of a data set without features, encoded with one vocabulary."""

    vocabulary: Vocabulary
    splits: dict[str, SplitContents]
    report: BuildReport


def check_limits(min_count: int, max_words: int) -> None:
    """Raise a `ConfigurationError` if a limit of `encode` is out of range."""
    check_counts(min_count=min_count)
    check_counts(1, LONGEST, max_words=max_words)


def held_out(
    source: Path,
    images: Sequence[CaptionedImage],
    tokenize: Callable[[str], list[str]],
    max_words: int,
    every: int,
) -> set[int]:
    """Choose images for validation, by index: every `every`-th usable one, the last of fewer.

    Usable are those with a caption of one to `max_words` words; a `DataError` is raised if none is.
    """
    usable = [
        k
        for k, image in enumerate(images)
        if any(0 < len(tokenize(caption)) <= max_words for caption in image.captions)
    ]
    if not usable:
        raise DataError(
            f"{source}: no training image has a caption of 1 to {max_words} words; expected at"
            " least two such images (max_words=N)"
        )
    every = min(every, len(usable))
    return set(usable[every - 1 :: every])


def encode(
    source: Path,
    parts: Mapping[str, Sequence[CaptionedImage]],
    tokenize: Callable[[str], list[str]],
    vocabulary: Vocabulary | None,
    min_count: int,
    max_words: int,
    tokens: str = WORDS,
) -> Encoded:
    """Encode the captions of one to `max_words` words of each split's images.

    Without a `vocabulary`, one of `tokens` is built: the words that occur `min_count` times in the
    training captions. A `DataError` that names `source` is raised if a split has no caption left,
    or no word is in the vocabulary.
    """
    tokenized = {
        split: [[tokenize(caption) for caption in image.captions] for image in images]
        for split, images in parts.items()
    }
    if vocabulary is None:
        train = (words for image in tokenized["train"] for words in image)
        vocabulary = Vocabulary.build(train, min_count, tokens)
    splits = {}
    for split, images in parts.items():
        kept = [
            (k, words)
            for k, captions in enumerate(tokenized[split])
            for words in captions
            if 0 < len(words) <= max_words
        ]
        if not kept:
            raise DataError(f"{source}: no caption for '{split}'; expected at least one")
        splits[split] = SplitContents(
            captions=numpy.stack([vocabulary.encode(words, max_words + 2) for _, words in kept]),
            image_idxs=numpy.array([k for k, _ in kept], numpy.int32),
            images=images,
        )
    lengths = [len(words) for images in tokenized.values() for image in images for words in image]
    indices = numpy.concatenate([contents.captions.reshape(-1) for contents in splits.values()])
    unknown = indices == vocabulary.word_to_idx[UNK]
    known = indices >= len(SPECIAL)
    if not known.any():
        raise DataError(
            f"{source}: no word of its {len(lengths)} captions is among the {len(vocabulary)}"
            " entries of the vocabulary; expected another --vocab, or a lower --min-count"
        )
    report = BuildReport(
        images={split: len(images) for split, images in parts.items()},
        captions={split: len(contents.captions) for split, contents in splits.items()},
        too_long=sum(length > max_words for length in lengths),
        empty=lengths.count(0),
        words=len(vocabulary),
        unknown=float(unknown.sum() / (unknown | known).sum()),
        max_words=max_words,
        tokens=vocabulary.tokens,
    )
    return Encoded(vocabulary, splits, report)
