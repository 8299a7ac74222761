"""Captions in JSON: own lists and lines of objects, COCO's annotation files, Karpathy's splits.

own          [{"image": "photos/1.png", "captions": ["..."], "split": "val", "id": 17}, ...]
JSON lines   {"image": "photos/1.png", "caption": "..."}
COCO         {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
Karpathy     {"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from xpcap.data.captions_entry import Entry, find_columns, value_of, without_ids_of_captions
from xpcap.errors import DataError
from xpcap.files import parse_json

LINES = (".jsonl", ".ndjson")


def from_json(file: Path, text: str) -> Iterable[Entry]:
    """Read the text of a JSON file, or of one of JSON lines."""
    if file.name.lower().removesuffix(".gz").endswith(LINES) or _in_lines(text):
        return _from_lines(file, text)
    content = parse_json(text, str(file))
    if isinstance(content, list):
        return _from_own((f"{file}: entry {k}", record) for k, record in enumerate(content))
    if isinstance(content, dict) and "annotations" in content:
        return _from_coco(file, content)
    if isinstance(content, dict) and "images" in content:
        return _from_karpathy(file, content)
    if isinstance(content, dict) and "image" in find_columns(str(file), content):
        return _from_own([(f"{file}: line 1", content)])
    found = f"only {', '.join(content)[:100]}" if isinstance(content, dict) else "a single value"
    raise DataError(
        f"{file}: expected a list of objects with 'image' and 'captions', COCO's 'images' and"
        f" 'annotations', or the 'images' of a Karpathy split; found {found}"
    )


def _in_lines(text: str) -> bool:
    """Return whether the first of several lines is an object."""
    first, newline, _ = text.strip().partition("\n")
    if not (first.startswith("{") and newline):
        return False
    try:
        parse_json(first, "")
    except DataError:
        return False
    return True


def _from_lines(file: Path, text: str) -> Iterable[Entry]:
    lines = [(f"{file}: line {k}", line) for k, line in enumerate(text.split("\n"), 1)]
    return _from_own((where, parse_json(line, where)) for where, line in lines if line.strip())


def _from_own(records: Iterable[tuple[str, Any]]) -> Iterable[Entry]:
    return without_ids_of_captions([_own(where, record) for where, record in records])


def _own(where: str, record: Any) -> Entry:
    keys = find_columns(where, record) if isinstance(record, dict) else {}
    name = value_of(where, record, keys.get("image", "image"), str)
    if "caption" in keys and "captions" not in keys:
        captions = [value_of(where, record, keys["caption"], str)]
    else:
        captions = value_of(where, record, keys.get("captions", "captions"), list)
    if not all(isinstance(caption, str) for caption in captions):
        raise DataError(f"{where}: expected 'captions', a list of texts")
    id_ = record.get(keys.get("id"))
    if id_ is not None:
        id_ = value_of(where, record, keys["id"], (int, str))
    return Entry(where, name, captions, record.get(keys.get("split")), id_)


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
        folder = record.get("filepath")
        ids = [record[key] for key in ("cocoid", "imgid") if type(record.get(key)) is int]
        captions = [
            value_of(f"{where}: sentences[{j}]", sentence, "raw", str)
            for j, sentence in enumerate(value_of(where, record, "sentences", list))
        ]
        path = os.path.join(folder if isinstance(folder, str) else "", name)
        yield Entry(where, path, captions, split, ids[0] if ids else None)


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
