"""Making a data folder from people's own pictures and captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from xpcap.data import folder as layout
from xpcap.data.captions_file import CaptionedImage, read_captions
from xpcap.data.encoding import (
    BuildReport,
    Encoded,
    build_report,
    check_captions,
    check_limits,
    encode,
)
from xpcap.data.extraction import Broken, Extraction
from xpcap.data.extractors import Extractor
from xpcap.data.folder import SplitContents, write_contents, write_features
from xpcap.data.progress import Progress, say_nothing
from xpcap.data.vocabulary import Vocabulary, tokenize_any
from xpcap.distributed import Alone, Ranks
from xpcap.errors import ConfigurationError, DataError
from xpcap.files import check_new_folder, new_folder

VALIDATION_EVERY = 10
_OTHER = {"val": "test", "test": "val"}
MANY_CAPTIONS, FREQUENT = 5_000, 5


@dataclass(frozen=True)
class PrepareReport:
    """What became of a captions file.

    Parameters
    ----------
    built
        What is in the data folder, and which captions are not.
    min_count
        How often a word had to occur to be in the vocabulary.
    without_captions
        Pictures left out for having none.
    unused
        Pictures left out for being in a split that was not asked for.
    broken
        Pictures left out for not being readable.
    """

    built: BuildReport
    min_count: int
    without_captions: int
    unused: int
    broken: Sequence[Broken]


def prepare(
    captions: Path,
    out: Path,
    *,
    pictures: Path | None = None,
    extractor: Extractor | None = None,
    vocabulary: Path | None = None,
    min_count: int | None = None,
    max_words: int = 20,
    validation: str = "val",
    skip_broken: bool = False,
    workers: int | None = None,
    progress: Progress = say_nothing,
    ranks: Ranks | None = None,
) -> PrepareReport:
    """Make a data folder of a captions file.

    Where the file names no splits, every tenth picture is for validation. Interrupted while it
    computes features, it goes on from there when it is called again.

    Parameters
    ----------
    captions
        Of one of the kinds that `read_captions` reads.
    out
        The new folder.
    pictures
        The folder that the pictures' names start from; None is that of the file.
    extractor
        What computes the features; None leaves the folder without, for others to add.
    vocabulary
        A `coco2014_vocab.json` to use; else one is made of the training captions' words.
    min_count
        How often a word must occur in training captions to be in that vocabulary; None is 5 where
        there are 5,000 of them, else 1.
    max_words
        The longest caption encoded.
    validation
        The split that becomes the validation set, `"val"` or `"test"`; the other is left out.
    skip_broken
        Leave out pictures that cannot be opened instead of ending there.
    workers
        Threads that open pictures; None is one a core.
    progress
        Told how far it is.
    ranks
        The processes that share out the pictures, see `Extraction.run`; the first makes the folder.

    Raises
    ------
    DataError
        It names the file, the record and what was expected; `out` is not made.
    ConfigurationError
        If `min_count` or `max_words` is less than 1, or `validation` is unknown.
    """
    check_limits(1 if min_count is None else min_count, max_words)
    if validation not in _OTHER:
        raise ConfigurationError(
            f"validation split '{validation}' is unknown; expected {' or '.join(_OTHER)}"
        )
    ranks = ranks or Alone()
    if not ranks.rank:
        check_new_folder(out)
    images = read_captions(captions, pictures)
    captioned = [image for image in images if image.captions]
    chosen = [image for image in captioned if image.split != _OTHER[validation]]
    parts = _split(captions, chosen, validation)
    words = None if vocabulary is None else Vocabulary.read(vocabulary)
    made = _encode(captions, parts, words, min_count, max_words)  # before an hour is spent
    extraction, broken = None, list[Broken]()
    if extractor is not None:
        files = [image.path for part in parts.values() for image in part]
        if not skip_broken:
            _check_there(captions, files)
        extraction = Extraction(extractor, files, out)
        broken = extraction.run(skip_broken, workers, progress, ranks)
        if broken:
            skipped = {picture.path for picture in broken}
            parts = {
                name: [image for image in part if image.path not in skipped]
                for name, part in parts.items()
            }
            made = _encode(captions, parts, words, min_count, max_words)
    contents = {
        name: SplitContents(
            *made.encoded[name],
            features={},
            urls=[_address(image, extractor) for image in part],
            ids=[image.id for image in part],
            references=[image.captions for image in part],
        )
        for name, part in parts.items()
    }
    built = build_report(made.tokens, made.encoded, made.words, max_words)
    description = {
        "name": out.resolve().name,
        "max_words": max_words,
        "images": built.images,
        "captions": built.captions,
    }
    if extractor is not None:
        description |= {"features": f"by {extractor.name}", "extractor": extractor.describe()}
    if not ranks.rank:
        with new_folder(out) as folder:
            write_contents(folder, made.words, contents, description)
            if extraction is not None:
                _write_features(folder, extraction, parts)
        if extraction is not None:
            extraction.forget()
    return PrepareReport(
        built, made.min_count, len(images) - len(captioned), len(captioned) - len(chosen), broken
    )


class _Made(NamedTuple):
    tokens: dict[str, list[list[list[str]]]]
    min_count: int
    words: Vocabulary
    encoded: dict[str, Encoded]


def _encode(
    source: Path,
    parts: Mapping[str, Sequence[CaptionedImage]],
    words: Vocabulary | None,
    min_count: int | None,
    max_words: int,
) -> _Made:
    tokens = {
        name: [[tokenize_any(caption) for caption in image.captions] for image in part]
        for name, part in parts.items()
    }
    if min_count is None:
        min_count = FREQUENT if sum(map(len, tokens["train"])) >= MANY_CAPTIONS else 1
    if words is None:
        words = Vocabulary.build((said for image in tokens["train"] for said in image), min_count)
    encoded = {name: encode(part, words, max_words) for name, part in tokens.items()}
    check_captions(source, encoded)
    return _Made(tokens, min_count, words, encoded)


def _split(
    source: Path, images: Sequence[CaptionedImage], validation: str
) -> dict[str, list[CaptionedImage]]:
    """Share pictures out by what the file says, or else every tenth (the last of fewer)."""
    if any(image.split for image in images):
        val = [image.split == validation for image in images]
    else:
        every = min(VALIDATION_EVERY, len(images))
        val = [k % every == every - 1 for k in range(len(images))]
    parts = {
        "train": [image for image, held_out in zip(images, val, strict=True) if not held_out],
        "val": [image for image, held_out in zip(images, val, strict=True) if held_out],
    }
    for name, part in parts.items():
        if not part:
            raise DataError(
                f"{source}: no picture with a caption for '{name}'; expected at least one"
            )
    return parts


def _check_there(source: Path, pictures: Sequence[Path]) -> None:
    """Find out about missing pictures before an hour is spent on the others."""
    missing = [path for path in pictures if not path.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(f"{source} names {missing[0]}, which is not there{more}")


def _address(image: CaptionedImage, extractor: Extractor | None) -> str:
    """Say where a picture can be seen: its file, if there is one for certain."""
    if extractor is None and image.url:
        return " ".join(image.url.split())
    return str(image.path.absolute())


def _write_features(
    folder: Path, extraction: Extraction, parts: Mapping[str, Sequence[CaptionedImage]]
) -> None:
    places = {path: k for k, path in enumerate(extraction.pictures)}
    for name, part in parts.items():
        rows = [places[image.path] for image in part]
        path = folder / layout.features_file(name, "fc7")
        write_features(path, rows, extraction.extractor.dim, extraction.features)
