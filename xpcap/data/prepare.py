"""Making a data folder from the user's own images and captions."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from xpcap.data import folder as layout
from xpcap.data.captions_file import ImageFile, read_captions
from xpcap.data.encoding import BuildReport, Encoded, check_limits, encode
from xpcap.data.extraction import Broken, Extraction
from xpcap.data.extractors import Extractor
from xpcap.data.progress import Progress, no_progress
from xpcap.data.splits import ALL
from xpcap.data.vocabulary import Vocabulary, has_words, tokenize_any
from xpcap.distributed import Alone, Ranks
from xpcap.errors import DataError
from xpcap.files import check_new_folder, explained, new_folder

VALIDATION_EVERY = 10
MANY_CAPTIONS, FREQUENT = 5_000, 5


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


def prepare(
    captions: Path,
    out: Path,
    *,
    images: Path | None = None,
    splits: Mapping[str, str] | None = None,
    extractor: Extractor | None = None,
    vocabulary: Path | None = None,
    min_count: int | None = None,
    max_words: int = 20,
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
        The longest caption encoded; `references.json` keeps all.
    skip_broken, workers, progress, ranks
        See `Extraction.run`; the first rank makes the folder.

    Raises
    ------
    DataError
        If a file or a record of it cannot be used; `out` is not made.
    ConfigurationError
        If `min_count`, `max_words` or `splits` has an invalid value.
    """
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
    parts = _split(captions, captioned, named, max_words)
    words = None if vocabulary is None else Vocabulary.read(vocabulary)
    wanted, encoded = _encode(captions, parts.splits, words, min_count, max_words)
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
            whole = [image for image in captioned if image.path not in skipped]
            parts = _split(captions, whole, named, max_words)
            wanted, encoded = _encode(captions, parts.splits, words, min_count, max_words)
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
                        layout.write_features(
                            path, (len(part), *extraction.extractor.shape), blocks
                        )
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
    )


def _encode(
    source: Path,
    parts: Mapping[str, Sequence[ImageFile]],
    words: Vocabulary | None,
    min_count: int | None,
    max_words: int,
) -> tuple[int, Encoded]:
    """Return the count required of words, and the encoded captions."""
    if min_count is None:
        many = sum(len(image.captions) for image in parts["train"]) >= MANY_CAPTIONS
        min_count = FREQUENT if many else 1
    return min_count, encode(source, parts, tokenize_any, words, min_count, max_words)


class _Parts(NamedTuple):
    """The images of each split, whether val is held out of train, and who has no split."""

    splits: dict[str, list[ImageFile]]
    held_out: bool
    left: list[ImageFile]


def _split(
    source: Path, images: Sequence[ImageFile], named: Collection[str | None], max_words: int
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
    held_out, train = "val" not in named, by_name["train"]
    if held_out and train:
        usable = [image.path for image in train if _is_usable(image, max_words)]
        if not usable:
            raise DataError(
                f"{source}: no training image has a caption of 1 to {max_words} words; expected at"
                " least two such images (--max-words)"
            )
        every = min(VALIDATION_EVERY, len(usable))
        chosen = set(usable[every - 1 :: every])
        by_name["val"] = [image for image in train if image.path in chosen]
        by_name["train"] = [image for image in train if image.path not in chosen]
    parts = {name: part for name in ALL if (part := by_name[name]) or name != layout.TEST}
    for name, part in parts.items():
        if not part:
            hint = f"; {len(left)} have no split: --splits none={name}" if left else ""
            raise DataError(
                f"{source}: no image with a caption for '{name}'; expected at least one{hint}"
            )
    return _Parts(parts, held_out, left)


def _is_usable(image: ImageFile, max_words: int) -> bool:
    return any(0 < len(tokenize_any(caption)) <= max_words for caption in image.captions)


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
