"""Reading the files in which people keep pictures and their captions.

    own JSON     [{"image": "photos/1.png", "captions": ["..."], "split": "val"}, ...]
    CSV          image,caption,split: a line a caption
    COCO         {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
    Karpathy     {"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}

`"split"` is train, val or test, and may be left out but in Karpathy's, where `restval` is train.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xpcap.errors import DataError
from xpcap.files import explained, read_json

SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


@dataclass
class CaptionedImage:
    """A picture and what people said of it.

    Parameters
    ----------
    path
        The picture's file.
    id
        COCO's number of it, where there is one, else its place in the file.
    split
        `"train"`, `"val"`, `"test"`, or None if the file leaves that to us.
    url
        Where it can be seen, if that is known.
    captions
        As they were written.
    """

    path: Path
    id: int
    split: str | None = None
    url: str | None = None
    captions: list[str] = field(default_factory=list)


def read_captions(file: Path, pictures: Path | None = None) -> list[CaptionedImage]:
    """Read a captions file of any kind named above.

    Parameters
    ----------
    file
        A name that ends in `.csv` is a CSV file, any other a JSON one.
    pictures
        The folder that the pictures' names start from; None is that of the file.

    Returns
    -------
    list of CaptionedImage
        In the file's order, each picture once.

    Raises
    ------
    DataError
        It names the file, the record and what was expected.
    """
    folder = file.parent if pictures is None else pictures
    if file.suffix.lower() == ".csv":
        images = _from_csv(file, folder)
    else:
        content = read_json(file)
        if isinstance(content, list):
            images = _from_own(file, content, folder)
        elif isinstance(content, dict) and "annotations" in content:
            images = _from_coco(file, content, folder)
        elif isinstance(content, dict) and "images" in content:
            images = _from_karpathy(file, content["images"], folder)
        else:
            raise DataError(
                f"{file}: expected a list of objects with 'image' and 'captions', COCO's 'images'"
                " and 'annotations', or the 'images' of a Karpathy split"
            )
    merged = _merged(file, images)
    if not merged:
        raise DataError(f"{file} names no picture; expected at least one")
    return merged


def _from_own(file: Path, records: list[Any], folder: Path) -> Iterable[CaptionedImage]:
    for k, record in enumerate(records):
        where = f"{file}: entry {k}"
        image = CaptionedImage(folder / _name(where, record, "image"), k)
        image.split = _split(where, record.get("split"))
        image.captions = _texts(where, record)
        yield image


def _texts(where: str, record: Mapping[str, Any]) -> list[str]:
    captions = record.get("captions")
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise DataError(f"{where}: expected 'captions', a list of texts")
    return captions


def _from_csv(file: Path, folder: Path) -> Iterable[CaptionedImage]:
    with explained(file, "read"), open(file, encoding="utf-8-sig", newline="") as lines:
        try:
            rows = csv.DictReader(lines, strict=True)
            rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
            missing = {"image", "caption"} - set(rows.fieldnames)
            if missing:
                raise DataError(
                    f"{file}: no column '{min(missing)}'; expected a first line with the columns"
                    " image, caption and, if you like, split"
                )
            for k, row in enumerate(rows):
                where = f"{file}: line {rows.line_num}"
                if None in row:
                    raise DataError(
                        f"{where} has more fields than the first line; a caption with a comma in"
                        ' it stands between "quotes"'
                    )
                split = _split(where, row.get("split") or None)
                caption = _text(where, row, "caption")
                yield CaptionedImage(
                    folder / _name(where, row, "image"), k, split, captions=[caption]
                )
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{file} is no CSV file in UTF-8: {error}") from error


def _from_coco(file: Path, content: Mapping[str, Any], folder: Path) -> Iterable[CaptionedImage]:
    images: dict[int, CaptionedImage] = {}
    for k, record in enumerate(_list(file, content, "images")):
        where = f"{file}: images[{k}]"
        path, id_ = folder / _name(where, record, "file_name"), _whole(where, record, "id")
        if id_ in images:
            raise DataError(f"{where}: id {id_} is there twice; expected each once")
        url = record.get("coco_url")
        images[id_] = CaptionedImage(path, id_, url=url if isinstance(url, str) else None)
    for k, record in enumerate(_list(file, content, "annotations")):
        where = f"{file}: annotations[{k}]"
        owner = _whole(where, record, "image_id")
        if owner not in images:
            raise DataError(f"{where}: image {owner} is not among 'images'")
        images[owner].captions.append(_text(where, record, "caption"))
    return images.values()


def _from_karpathy(file: Path, records: Any, folder: Path) -> Iterable[CaptionedImage]:
    if not isinstance(records, list):
        raise DataError(f"{file}: expected 'images', a list")
    for k, record in enumerate(records):
        where = f"{file}: images[{k}]"
        name = _name(where, record, "filename")
        below = record.get("filepath")
        image = CaptionedImage(folder / (below if isinstance(below, str) else "") / name, k)
        image.id = record["cocoid"] if isinstance(record.get("cocoid"), int) else k
        image.split = _split(where, _text(where, record, "split"))
        for j, sentence in enumerate(_list(where, record, "sentences")):
            image.captions.append(_text(f"{where}: sentences[{j}]", sentence, "raw"))
        yield image


def _merged(file: Path, images: Iterable[CaptionedImage]) -> list[CaptionedImage]:
    """Give a picture that is named several times all its captions."""
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


def _list(where: Any, record: Any, key: str) -> list[Any]:
    found = record.get(key) if isinstance(record, dict) else None
    if not isinstance(found, list):
        raise DataError(f"{where}: expected '{key}', a list")
    return found


def _text(where: str, record: Any, key: str) -> str:
    found = record.get(key) if isinstance(record, dict) else None
    if not isinstance(found, str):
        raise DataError(f"{where}: expected '{key}', a text")
    return found


def _name(where: str, record: Any, key: str) -> str:
    name = _text(where, record, key)
    if not name.strip() or "\0" in name or len(name.splitlines()) > 1 or not _is_unicode(name):
        raise DataError(f"{where}: '{key}' is {name!r}, which no picture can be called")
    return name


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # half a character, which JSON can hold
        return False
    return True


def _whole(where: str, record: Any, key: str) -> int:
    found = record.get(key) if isinstance(record, dict) else None
    if type(found) is not int:
        raise DataError(f"{where}: expected '{key}', a whole number")
    return found
