"""Reading images and their captions from a file or folder of any form.

The forms of files are those of `captions_json` and `captions_table`, recognized by their contents
and also read if compressed with gzip. A folder holds images, each with a `.txt` of the same name
beside it, one caption per line; folders in it may be named after splits.

A reader of a form yields entries, checked only as far as their types; `read_captions` checks
names, splits and ids, and joins the entries of each image.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from xpcap.data.captions_entry import Entry
from xpcap.data.captions_json import LINES, from_json
from xpcap.data.captions_table import from_table, is_token_file
from xpcap.data.folder import CaptionedImage
from xpcap.data.image_files import find_images, slashed
from xpcap.data.splits import NONE, read_lists, split_names, split_of
from xpcap.errors import ConfigurationError, DataError
from xpcap.files import SMALL, explained, read_text

BESIDE = ("images", "Images")
_SUFFIXES = (".csv", ".tsv", ".txt", ".token", ".json", *LINES, ".gz")


@dataclass
class ImageFile(CaptionedImage):
    """An image file; `id` is its own, or else its name as written."""

    path: Path = Path()
    name: str = ""  # as written
    split: str | None = None  # "train", "val", "test", or None if nothing says


class Captions(NamedTuple):
    """The images of a captions file or folder, and the lists that name their splits."""

    images: list[ImageFile]
    lists: Sequence[Path]


def read_captions(
    source: Path, images: Path | None = None, splits: Mapping[str, str] | None = None
) -> Captions:
    """Read a captions file or folder of any of the forms above, each image once, in its order.

    Parameters
    ----------
    source
        The file, or a folder of images.
    images
        The folder that a file's names of images are relative to. By default they are looked for in
        the folder of the file, and in `images` or `Images` there.
    splits
        The splits that further names mean; `"none"` are images without one. If nothing else names
        splits, lists of images beside the file or in the folder do, see `read_lists`.

    Raises
    ------
    DataError
        If a file or a record of it cannot be used.
    ConfigurationError
        If `splits` holds an unknown split, or `images` is given with a folder.
    """
    names = split_names(splits or {})
    with explained(source, "read"):
        is_folder = source.is_dir()
    if is_folder:
        if images is not None:
            raise ConfigurationError(
                f"images=FOLDER goes with a captions file, not the folder {source}"
            )
        entries, beside = _from_folder(source, names), source
        folders = [source]
    else:
        entries, beside = _from_file(source), source.parent
        folders = [beside, *(beside / name for name in BESIDE)] if images is None else [images]
    found = _joined(source, entries, folders, names)
    lists: Sequence[Path] = ()
    if not any(image.split for image in found):
        by_index, lists = read_lists(beside, source, [image.name for image in found], names)
        for k, split in by_index.items():
            found[k].split = split
    for image in found:
        image.split = image.split or names.get(NONE)
    return Captions(found, lists)


def _from_file(file: Path) -> Iterable[Entry]:
    text = read_text(file)
    start = text.lstrip()[:1]
    if not start:
        raise DataError(f"{file} is empty; expected images and captions")
    is_json = start in "[{" and not is_token_file(text)  # whose first image may be [1].jpg
    return from_json(file, text) if is_json else from_table(file, text)


def _from_folder(folder: Path, names: Mapping[str, str]) -> Iterable[Entry]:
    images: list[Path] = []
    with contextlib.suppress(DataError):  # there is none
        images = find_images([folder])
    texts = [image.with_suffix(".txt") for image in images]
    if not any(map(os.path.isfile, texts)):
        with explained(folder, "read"):
            paths = sorted(folder.iterdir())
        files = [str(path) for path in paths if _has_captions(path)]
        if files:
            raise DataError(f"{folder} is a folder; expected a captions file: {' or '.join(files)}")
        raise DataError(
            f"{folder}: found {len(images)} images, none with its captions beside it; expected"
            " files such as dog.jpg and dog.txt, or a captions file instead of the folder"
        )
    return [_beside(folder, *both, names) for both in zip(images, texts, strict=True)]


def _beside(folder: Path, image: Path, text: Path, names: Mapping[str, str]) -> Entry:
    lines = read_text(text, SMALL).split("\n") if text.is_file() else []
    captions = [line.strip() for line in lines if line.strip()]
    name = image.relative_to(folder)
    above = [part for part in name.parts[:-1] if part.lower() in names]
    return Entry(str(text), name.as_posix(), captions, above[0] if above else None)


def _has_captions(path: Path) -> bool:
    if path.suffix.lower() not in _SUFFIXES or not path.is_file():
        return False
    with contextlib.suppress(DataError):
        return any(True for _ in _from_file(path))
    return False


def _joined(
    source: Path, entries: Iterable[Entry], folders: Sequence[Path], names: Mapping[str, str]
) -> list[ImageFile]:
    """Check the entries, and join those of each image."""
    found: dict[Path, ImageFile] = {}
    own: dict[Path, int | str] = {}
    for entry in entries:
        _check_name(entry)
        path, split = _locate(entry.image, folders), split_of(entry.where, entry.split, names)
        if path not in found:
            found[path] = ImageFile(entry.image, entry.url, path=path, name=entry.image)
        image = found[path]
        image.split = image.split or split
        if split not in (image.split, None):
            raise DataError(
                f"{entry.where}: {path} is in the splits {image.split} and {split}; expected one"
            )
        image.captions.extend(entry.captions)
        if entry.id is not None:
            image.id = own.setdefault(path, entry.id)
            if image.id != entry.id:
                raise DataError(
                    f"{entry.where}: {path} has the ids {image.id} and {entry.id}; expected one"
                )
    if not found:
        raise DataError(f"{source} names no image; expected at least one")
    by_id: dict[int | str, Path] = {}
    for path, image in found.items():
        if by_id.setdefault(image.id, path) != path:
            raise DataError(
                f"{source}: {by_id[image.id]} and {path} have the same id {image.id!r}; expected"
                " one for each image"
            )
    return list(found.values())


def _check_name(entry: Entry) -> None:
    name = entry.image
    try:
        name.encode()
        valid = bool(name.strip()) and "\0" not in name and len(name.splitlines()) == 1
    except UnicodeEncodeError:  # a lone surrogate, which JSON can hold
        valid = False
    if not valid:
        raise DataError(f"{entry.where}: {name!r} is not a valid file name")


def _locate(name: str, folders: Sequence[Path]) -> Path:
    """Return the path of an image in the first folder that has it, or else in the first.

    Unless there is a file of that very name, backslashes separate folders, as in Windows.
    """
    exact, others = (
        [Path(os.path.normpath(folder / one)) for folder in folders]
        for one in (name, slashed(name))
    )
    return next(filter(os.path.isfile, [*exact, *others]), others[0])
