"""Reading files of images and their captions.

    own JSON     [{"image": "photos/1.png", "captions": ["..."], "split": "val"}, ...]
    CSV          image,caption,split: one line per caption
    COCO         {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
    Karpathy     {"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}

`"split"` is train, val or test, and optional except in Karpathy's, where `restval` is train.

A reader of a format yields entries, checked only as far as their types; `read_captions` checks
names and splits, and joins the entries of each image.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from xpcap.data.encoding import CaptionedImage
from xpcap.errors import DataError
from xpcap.files import explained, read_json

SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
NUMBER = (int, float)
_NAMES = {str: "a text", int: "an integer", list: "a list", NUMBER: "a number"}


class Entry(NamedTuple):
    """An image of a captions file with one or more of its captions."""

    where: str  # its place in the file, for messages
    image: str  # path of the image file
    captions: list[str]
    split: Any = None  # None if the file does not say
    id: int | None = None
    url: str = ""


@dataclass
class ImageFile(CaptionedImage):
    """An image file; `id` is COCO's, or else the index of its first entry."""

    path: Path = Path()
    split: str | None = None  # "train", "val", "test", or None if the file does not say


def read_captions(file: Path, images: Path | None = None) -> list[ImageFile]:
    """Read a captions file of any of the formats above, each image once in the file's order.

    Names of images are relative to the folder `images`, by default that of the file. A `DataError`
    is raised if the file or a record of it cannot be used.
    """
    folder = file.parent if images is None else images
    found: dict[Path, ImageFile] = {}
    for k, entry in enumerate(_entries(file)):
        _check_name(entry)
        path, split = Path(os.path.normpath(folder / entry.image)), _split(entry)
        if path not in found:
            id_ = k if entry.id is None else entry.id
            found[path] = ImageFile(id_, entry.url, path=path, split=split)
        image = found[path]
        image.split = image.split or split
        if split not in (image.split, None):
            raise DataError(
                f"{file}: {path} is in the splits {image.split} and {split}; expected one"
            )
        image.captions.extend(entry.captions)
    if not found:
        raise DataError(f"{file} names no image; expected at least one")
    return list(found.values())


def _entries(file: Path) -> Iterable[Entry]:
    """Choose the reader of a file: CSV by the ending of its name, JSON by its contents."""
    if file.suffix.lower() == ".csv":
        return _from_csv(file)
    content = read_json(file)
    if isinstance(content, list):
        return _from_own(file, content)
    if isinstance(content, dict) and "annotations" in content:
        return _from_coco(file, content)
    if isinstance(content, dict) and "images" in content:
        return _from_karpathy(file, content)
    raise DataError(
        f"{file}: expected a list of objects with 'image' and 'captions', COCO's 'images' and"
        " 'annotations', or the 'images' of a Karpathy split"
    )


def _check_name(entry: Entry) -> None:
    name = entry.image
    try:
        name.encode()
        valid = bool(name.strip()) and "\0" not in name and len(name.splitlines()) == 1
    except UnicodeEncodeError:  # a lone surrogate, which JSON can hold
        valid = False
    if not valid:
        raise DataError(f"{entry.where}: {name!r} is not a valid file name")


def _split(entry: Entry) -> str | None:
    if entry.split is None:
        return None
    if not isinstance(entry.split, str) or entry.split not in SPLITS:
        raise DataError(f"{entry.where}: split is {entry.split!r}; expected {', '.join(SPLITS)}")
    return SPLITS[entry.split]


def _from_own(file: Path, records: list[Any]) -> Iterator[Entry]:
    for k, record in enumerate(records):
        where = f"{file}: entry {k}"
        name = value_of(where, record, "image", str)
        captions = value_of(where, record, "captions", list)
        if not all(isinstance(caption, str) for caption in captions):
            raise DataError(f"{where}: expected 'captions', a list of texts")
        yield Entry(where, name, captions, record.get("split"))


def _from_csv(file: Path) -> Iterator[Entry]:
    with explained(file, "read"), open(file, encoding="utf-8-sig", newline="") as lines:
        try:
            rows = csv.DictReader(lines, strict=True)
            rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
            missing = {"image", "caption"} - set(rows.fieldnames)
            if missing:
                raise DataError(
                    f"{file}: no column '{min(missing)}'; expected a first line with the columns"
                    " image, caption and optionally split"
                )
            for row in rows:
                where = f"{file}: line {rows.line_num}"
                if None in row:
                    raise DataError(
                        f"{where} has more fields than the first line; a caption that contains a"
                        ' comma must be in "quotes"'
                    )
                name, caption = (value_of(where, row, key, str) for key in ("image", "caption"))
                yield Entry(where, name, [caption], row.get("split") or None)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{file} is not a CSV file in UTF-8: {error}") from error


def _from_coco(file: Path, content: Any) -> Iterable[Entry]:
    entries: dict[int, Entry] = {}
    for where, record in records_of(file, content, "images"):
        name, id_ = value_of(where, record, "file_name", str), value_of(where, record, "id", int)
        if id_ in entries:
            raise DataError(f"{where}: id {id_} occurs twice; expected each once")
        url = record.get("coco_url")
        entries[id_] = Entry(where, name, [], id=id_, url=url if isinstance(url, str) else "")
    add_captions(file, content, {id_: entry.captions for id_, entry in entries.items()})
    return entries.values()


def _from_karpathy(file: Path, content: Any) -> Iterator[Entry]:
    for where, record in records_of(file, content, "images"):
        name, split = (value_of(where, record, key, str) for key in ("filename", "split"))
        folder, id_ = record.get("filepath"), record.get("cocoid")
        captions = [
            value_of(f"{where}: sentences[{j}]", sentence, "raw", str)
            for j, sentence in enumerate(value_of(where, record, "sentences", list))
        ]
        path = os.path.join(folder if isinstance(folder, str) else "", name)
        yield Entry(where, path, captions, split, id_ if isinstance(id_, int) else None)


def value_of(where: str, record: Any, key: str, kind: Any) -> Any:
    """Return `record[key]`, or raise a `DataError` if it is not of type `kind` (no subclass)."""
    found = record.get(key) if isinstance(record, dict) else None
    if type(found) not in (kind if isinstance(kind, tuple) else (kind,)):
        raise DataError(f"{where}: expected '{key}', {_NAMES[kind]}")
    return found


def records_of(file: Path, content: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield each record of the list `content[key]`, after its name for messages."""
    for k, record in enumerate(value_of(str(file), content, key, list)):
        yield f"{file}: {key}[{k}]", record


def add_captions(file: Path, content: Any, captions: Mapping[int, list[str]]) -> None:
    """Add the captions of COCO's `annotations` to those of each image, by id."""
    for where, record in records_of(file, content, "annotations"):
        owner = value_of(where, record, "image_id", int)
        if owner not in captions:
            raise DataError(f"{where}: image {owner} is not among 'images'")
        captions[owner].append(value_of(where, record, "caption", str))
