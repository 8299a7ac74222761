"""Reading files of images and their captions.

    own JSON     [{"image": "photos/1.png", "captions": ["..."], "split": "val"}, ...]
    CSV          image,caption,split: one line per caption
    COCO         {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
    Karpathy     {"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}

`"split"` is train, val or test, and optional except in Karpathy's, where `restval` is train.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xpcap.errors import DataError
from xpcap.files import explained, read_json

SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
NUMBER = (int, float)
_NAMES = {str: "a text", int: "an integer", list: "a list", NUMBER: "a number"}


@dataclass
class CaptionedImage:
    """An image file and its captions, as written."""

    path: Path
    id: int  # COCO's, or else the index in the captions file
    split: str | None = None  # "train", "val", "test", or None if the file does not say
    url: str | None = None
    captions: list[str] = field(default_factory=list)


def read_captions(file: Path, images: Path | None = None) -> list[CaptionedImage]:
    """Read a captions file of any of the formats above, each image once in the file's order.

    Parameters
    ----------
    file
        CSV if its name ends in `.csv`, else JSON.
    images
        Folder that the images' names are relative to; None is that of the file.

    Raises
    ------
    DataError
        If the file or a record of it cannot be used.
    """
    folder = file.parent if images is None else images
    if file.suffix.lower() == ".csv":
        found = _from_csv(file, folder)
    else:
        content = read_json(file)
        if isinstance(content, list):
            found = _from_own(file, content, folder)
        elif isinstance(content, dict) and "annotations" in content:
            found = _from_coco(file, content, folder)
        elif isinstance(content, dict) and "images" in content:
            found = _from_karpathy(file, content, folder)
        else:
            raise DataError(
                f"{file}: expected a list of objects with 'image' and 'captions', COCO's 'images'"
                " and 'annotations', or the 'images' of a Karpathy split"
            )
    merged = _merged(file, found)
    if not merged:
        raise DataError(f"{file} names no image; expected at least one")
    return merged


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


def _from_own(file: Path, records: list[Any], folder: Path) -> Iterable[CaptionedImage]:
    for k, record in enumerate(records):
        where = f"{file}: entry {k}"
        image = CaptionedImage(folder / _name(where, record, "image"), k)
        image.split = _split(where, record.get("split"))
        image.captions = value_of(where, record, "captions", list)
        if not all(isinstance(caption, str) for caption in image.captions):
            raise DataError(f"{where}: expected 'captions', a list of texts")
        yield image


def _from_csv(file: Path, folder: Path) -> Iterable[CaptionedImage]:
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
            for k, row in enumerate(rows):
                where = f"{file}: line {rows.line_num}"
                if None in row:
                    raise DataError(
                        f"{where} has more fields than the first line; a caption that contains a"
                        ' comma must be in "quotes"'
                    )
                path = folder / _name(where, row, "image")
                caption = value_of(where, row, "caption", str)
                split = _split(where, row.get("split") or None)
                yield CaptionedImage(path, k, split, captions=[caption])
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{file} is not a CSV file in UTF-8: {error}") from error


def _from_coco(file: Path, content: Any, folder: Path) -> Iterable[CaptionedImage]:
    images: dict[int, CaptionedImage] = {}
    for where, record in records_of(file, content, "images"):
        path = folder / _name(where, record, "file_name")
        id_ = value_of(where, record, "id", int)
        if id_ in images:
            raise DataError(f"{where}: id {id_} occurs twice; expected each once")
        url = record.get("coco_url")
        images[id_] = CaptionedImage(path, id_, url=url if isinstance(url, str) else None)
    add_captions(file, content, {id_: image.captions for id_, image in images.items()})
    return images.values()


def _from_karpathy(file: Path, content: Any, folder: Path) -> Iterable[CaptionedImage]:
    for k, (where, record) in enumerate(records_of(file, content, "images")):
        name = _name(where, record, "filename")
        below = record.get("filepath")
        image = CaptionedImage(folder / (below if isinstance(below, str) else "") / name, k)
        image.id = record["cocoid"] if isinstance(record.get("cocoid"), int) else k
        image.split = _split(where, value_of(where, record, "split", str))
        for j, sentence in enumerate(value_of(where, record, "sentences", list)):
            image.captions.append(value_of(f"{where}: sentences[{j}]", sentence, "raw", str))
        yield image


def _merged(file: Path, images: Iterable[CaptionedImage]) -> list[CaptionedImage]:
    """Join the records of each image."""
    known: dict[Path, CaptionedImage] = {}
    for image in images:
        image.path = Path(os.path.normpath(image.path))
        first = known.setdefault(image.path, image)
        if first is not image:
            first.split = first.split or image.split
            if image.split not in (first.split, None):
                raise DataError(
                    f"{file}: {image.path} is in the splits {first.split} and {image.split};"
                    " expected one"
                )
            first.captions.extend(image.captions)
    return list(known.values())


def _split(where: str, name: Any) -> str | None:
    if name is None:
        return None
    if not isinstance(name, str) or name not in SPLITS:
        raise DataError(f"{where}: split is {name!r}; expected {', '.join(SPLITS)}")
    return SPLITS[name]


def _name(where: str, record: Any, key: str) -> str:
    name: str = value_of(where, record, key, str)
    try:
        name.encode()
        valid = bool(name.strip()) and "\0" not in name and len(name.splitlines()) == 1
    except UnicodeEncodeError:  # a lone surrogate, which JSON can hold
        valid = False
    if not valid:
        raise DataError(f"{where}: '{key}' is {name!r}, which is not a valid file name")
    return name
