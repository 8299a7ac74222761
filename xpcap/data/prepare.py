"""Making a data folder from the user's own images and captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xpcap.data import folder as layout
from xpcap.data.captions_file import ImageFile, read_captions
from xpcap.data.encoding import BuildReport, Encoded, check_limits, encode
from xpcap.data.extraction import Broken, Extraction
from xpcap.data.extractors import Extractor
from xpcap.data.progress import Progress, no_progress
from xpcap.data.vocabulary import Vocabulary, tokenize_any
from xpcap.distributed import Alone, Ranks
from xpcap.errors import ConfigurationError, DataError
from xpcap.files import check_new_folder, explained, new_folder

VALIDATION_EVERY = 10
MANY_CAPTIONS, FREQUENT = 5_000, 5
_OTHER = {"val": "test", "test": "val"}


@dataclass(frozen=True)
class PrepareReport:
    """Result of `prepare`: what was built, and images left out."""

    built: BuildReport
    min_count: int
    without_captions: int
    unused: int  # images in the other held-out split
    broken: Sequence[Broken]


def prepare(
    captions: Path,
    out: Path,
    *,
    images: Path | None = None,
    extractor: Extractor | None = None,
    vocabulary: Path | None = None,
    min_count: int | None = None,
    max_words: int = 20,
    validation: str = "val",
    skip_broken: bool = False,
    workers: int | None = None,
    progress: Progress = no_progress,
    ranks: Ranks | None = None,
) -> PrepareReport:
    """Make a data folder from a captions file.

    If the file names no splits, every tenth image is for validation. If interrupted while it
    computes features, the next call resumes.

    Parameters
    ----------
    captions, images
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
    validation
        The split that becomes the validation set, `"val"` or `"test"`; the other is left out.
    skip_broken, workers, progress, ranks
        See `Extraction.run`; the first rank makes the folder.

    Raises
    ------
    DataError
        If a file or a record of it cannot be used; `out` is not made.
    ConfigurationError
        If `min_count`, `max_words` or `validation` has an invalid value.
    """
    check_limits(1 if min_count is None else min_count, max_words)
    if validation not in _OTHER:
        raise ConfigurationError(
            f"validation split '{validation}' is unknown; expected {' or '.join(_OTHER)}"
        )
    ranks = ranks or Alone()
    if not ranks.rank:
        check_new_folder(out)
    listed = read_captions(captions, images)
    captioned = [image for image in listed if image.captions]
    chosen = [image for image in captioned if image.split != _OTHER[validation]]
    for image in chosen:
        if extractor is None and image.url:  # the file need not exist
            image.url = " ".join(image.url.split())
        else:
            image.url = str(image.path.absolute())
    parts = _split(captions, chosen, validation)
    words = None if vocabulary is None else Vocabulary.read(vocabulary)
    wanted, encoded = _encode(captions, parts, words, min_count, max_words)  # before extraction
    extraction, broken = None, list[Broken]()
    if extractor is not None:
        files = [image.path for part in parts.values() for image in part]
        if not skip_broken:
            _check_exist(captions, files)
        extraction = Extraction(extractor, files, out)
        broken = extraction.run(skip_broken, workers, progress, ranks)
        if broken:
            skipped = {image.path for image in broken}
            parts = {
                name: [image for image in part if image.path not in skipped]
                for name, part in parts.items()
            }
            wanted, encoded = _encode(captions, parts, words, min_count, max_words)
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
                for name, part in parts.items():
                    path = folder / layout.features_file(name, "fc7")
                    blocks = extraction.features({image.path for image in part})
                    with explained(path, "write"):
                        layout.write_features(path, (len(part), extraction.extractor.dim), blocks)
        if extraction is not None:
            extraction.forget()
    return PrepareReport(
        encoded.report, wanted, len(listed) - len(captioned), len(captioned) - len(chosen), broken
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


def _split(
    source: Path, images: Sequence[ImageFile], validation: str
) -> dict[str, list[ImageFile]]:
    """Split images as the file says, or else hold out every tenth (the last of fewer)."""
    if any(image.split for image in images):
        val = [image.split == validation for image in images]
    else:
        every = min(VALIDATION_EVERY, len(images))
        val = [k % every == every - 1 for k in range(len(images))]
    parts: dict[str, list[ImageFile]] = {"train": [], "val": []}
    for image, held_out in zip(images, val, strict=True):
        parts["val" if held_out else "train"].append(image)
    for name, part in parts.items():
        if not part:
            raise DataError(
                f"{source}: no image with a caption for '{name}'; expected at least one"
            )
    return parts


def _check_exist(source: Path, images: Sequence[Path]) -> None:
    """Find missing images before the features of others are computed."""
    missing = [path for path in images if not path.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(f"{source} names {missing[0]}, which does not exist{more}")
