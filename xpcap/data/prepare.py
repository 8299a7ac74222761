"""Making a data folder from the user's own images and captions."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from xpcap.data import folder as layout
from xpcap.data.captions_file import ImageFile, read_captions
from xpcap.data.encoding import BuildReport, Encoded, check_limits, encode, held_out
from xpcap.data.extraction import Broken, Extraction
from xpcap.data.extractors import Extractor
from xpcap.data.progress import Progress, no_progress
from xpcap.data.splits import ALL
from xpcap.data.vocabulary import (
    CHARACTERS,
    WORDS,
    Vocabulary,
    has_words,
    looks_unspaced,
    tokenize_any,
    tokenizer,
)
from xpcap.distributed import Alone, Ranks
from xpcap.errors import ConfigurationError, DataError
from xpcap.files import check_new_folder, explained, new_folder

VALIDATION_EVERY = 10
MANY_CAPTIONS, FREQUENT = 5_000, 5
UNSPACED = (
    "the captions seem to be written without spaces, so that most are one word: {} makes each"
    " character a token; or insert spaces between words first"
)
LONGEST_CAPTION = {WORDS: 20, CHARACTERS: 60}


@dataclass(frozen=True)
class PrepareReport:
    """Result of `prepare`: what was built, and images left out."""

    built: BuildReport
    min_count: int
    lists: Sequence[Path]  # that named the splits
    held_out: bool  # whether val is a tenth of the training images, as there was none
    without_captions: int
    without_split: int  # where others have one
    broken: Sequence[Broken]
    unspaced: bool  # whether most captions are one word, for lack of spaces


def prepare(
    captions: Path,
    out: Path,
    *,
    images: Path | None = None,
    splits: Mapping[str, str] | None = None,
    extractor: Extractor | None = None,
    vocabulary: Path | None = None,
    min_count: int | None = None,
    max_words: int | None = None,
    tokens: str | None = None,
    skip_broken: bool = False,
    workers: int | None = None,
    progress: Progress = no_progress,
    ranks: Ranks | None = None,
) -> PrepareReport:
    """Make a data folder from a captions file, or a folder of images and captions.

    If no image is in the validation split, every tenth training image is that can be used: with a
    caption of 1 to `max_words` words, and not broken. If some images have a split, those without
    are left out, and so are images without a caption that holds a word. If interrupted while it
    computes features, the next call resumes.

    Parameters
    ----------
    captions, images, splits
        See `read_captions`.
    out
        The new folder.
    extractor
        Computes the features; None leaves the folder without.
    vocabulary
        A `coco2014_vocab.json` to use; None builds one from the training captions.
    min_count
        Number of times a word must occur in training captions to be in that vocabulary; None is 5
        if there are 5,000 of them, else 1.
    max_words
        The longest caption encoded; `references.json` keeps all. None is 20 words, or 60
        characters.
    tokens
        `"words"`, or `"characters"` for a language written without spaces between words; None is
        that of the `vocabulary`, or else words.
    skip_broken, workers, progress, ranks
        See `Extraction.run`; the first rank makes the folder.

    Raises
    ------
    DataError
        If a file or a record of it cannot be used; `out` is not made.
    ConfigurationError
        If `min_count`, `max_words`, `tokens` or `splits` has an invalid value.
    """
    words = None if vocabulary is None else Vocabulary.read(vocabulary)
    tokens = tokens or (words.tokens if words else WORDS)
    tokenize = tokenizer(tokens)
    if words and tokens != words.tokens:
        raise ConfigurationError(f"{vocabulary} is of {words.tokens}; expected tokens {tokens}")
    if max_words is None:
        max_words = LONGEST_CAPTION[tokens]
    check_limits(1 if min_count is None else min_count, max_words)
    ranks = ranks or Alone()
    if not ranks.rank:
        check_new_folder(out)
    listed, lists = read_captions(captions, images, splits)
    captioned = [image for image in listed if any(map(has_words, image.captions))]
    for image in captioned:
        if extractor is None and image.url:  # the file need not exist
            image.url = " ".join(image.url.split())
        else:
            image.url = str(image.path.absolute())
    named = {image.split for image in listed}

    def divide(images: Sequence[ImageFile]) -> tuple[_Parts, int, Encoded]:
        parts = _split(captions, images, named, tokenize, max_words)
        many = sum(len(image.captions) for image in parts.splits["train"]) >= MANY_CAPTIONS
        wanted = min_count or (FREQUENT if many else 1)
        encoded = encode(captions, parts.splits, tokenize, words, wanted, max_words, tokens)
        return parts, wanted, encoded

    parts, wanted, encoded = divide(captioned)
    extraction, broken = None, list[Broken]()
    if extractor is not None:
        left = {image.path for image in parts.left}
        files = [image.path for image in captioned if image.path not in left]
        if not skip_broken:
            _check_exist(captions, files)
        extraction = Extraction(extractor, files, out)
        broken = extraction.run(skip_broken, workers, progress, ranks)
        if broken:
            skipped = {image.path for image in broken}
            if skipped.issuperset(files):
                raise DataError(
                    f"{captions}: none of its {len(files)} images can be opened: {broken[0].reason}"
                )
            whole = [image for image in captioned if image.path not in skipped]
            parts, wanted, encoded = divide(whole)
    description = {
        "name": out.resolve().name,
        "max_words": max_words,
        "images": encoded.report.images,
        "captions": encoded.report.captions,
    }
    if extractor is not None:
        description |= {"features": f"by {extractor.name}", "extractor": extractor.describe()}
    if not ranks.rank:
        with new_folder(out) as folder:
            layout.write_contents(folder, encoded.vocabulary, encoded.splits, description)
            if extraction is not None:
                for name, part in parts.splits.items():
                    path = folder / layout.features_file(name, "fc7")
                    blocks = extraction.features({image.path for image in part})
                    with explained(path, "write"):
                        layout.write_features(path, (len(part), extraction.extractor.dim), blocks)
        if extraction is not None:
            extraction.forget()
    return PrepareReport(
        encoded.report,
        wanted,
        lists,
        parts.held_out,
        without_captions=len(listed) - len(captioned),
        without_split=len(parts.left),
        broken=broken,
        unspaced=tokens == WORDS and _look_unspaced(captioned),
    )


def _look_unspaced(images: Sequence[ImageFile]) -> bool:
    captions = (caption for image in images for caption in image.captions)
    return looks_unspaced(map(tokenize_any, itertools.islice(captions, 1000)))


class _Parts(NamedTuple):
    """The images of each split, whether val is held out of train, and who has no split."""

    splits: dict[str, list[ImageFile]]
    held_out: bool
    left: list[ImageFile]


def _split(
    source: Path,
    images: Sequence[ImageFile],
    named: Collection[str | None],
    tokenize: Callable[[str], list[str]],
    max_words: int,
) -> _Parts:
    """Split captioned images as the source says, which names the splits `named`.

    If it does not name val, every tenth usable training image is held out, the last of fewer.
    """
    by_name: dict[str | None, list[ImageFile]] = {name: [] for name in (*ALL, None)}
    for image in images:
        by_name[image.split].append(image)
    left = by_name.pop(None)
    if not any(named):
        by_name["train"], left = left, []
    without_val, train = "val" not in named, by_name["train"]
    if without_val and train:
        chosen = held_out(source, train, tokenize, max_words, VALIDATION_EVERY)
        by_name["val"] = [image for k, image in enumerate(train) if k in chosen]
        by_name["train"] = [image for k, image in enumerate(train) if k not in chosen]
    parts = {name: part for name in ALL if (part := by_name[name]) or name != layout.TEST}
    for name, part in parts.items():
        if not part:
            hint = f"; {len(left)} have no split: --splits none={name}" if left else ""
            raise DataError(
                f"{source}: no image with a caption for '{name}'; expected at least one{hint}"
            )
    return _Parts(parts, without_val, left)


def _check_exist(source: Path, images: Sequence[Path]) -> None:
    """Find missing images before the features of others are computed."""
    missing = [image for image in images if not os.path.isfile(image)]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(
            f"{source} names {missing[0]}, which does not exist{more}; expected the images"
            " there, in images/ beside the captions, or in the folder of --images; --skip-broken"
            " leaves missing ones out"
        )
