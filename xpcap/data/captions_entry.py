"""An entry of a captions file, and the checks that readers of all formats share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from xpcap.errors import DataError

NUMBER = (int, float)
COLUMNS = {
    "image": ("image", "filename", "file_name", "image_name", "path"),
    "caption": ("caption", "comment", "sentence", "text"),
    "captions": ("captions",),
    "split": ("split",),
    "id": ("id",),
}
"""Names of columns of a table or keys of an object, in any case, by what they hold."""

_NAMES = {
    str: "a text",
    int: "an integer",
    list: "a list",
    NUMBER: "a number",
    (int, str): "an integer or a text",
}


class Entry(NamedTuple):
    """An image of a captions file with one or more of its captions."""

    where: str  # its place in the file, for messages
    image: str  # path of the image file
    captions: list[str]
    split: Any = None  # None or "" if the file does not say
    id: int | str | None = None
    url: str = ""


def find_columns(where: str, names: Collection[str]) -> dict[str, str]:
    """Return the column that holds each of `COLUMNS`, of those among `names`.

    A column of that very name is preferred to one of another; several others are a `DataError`.
    """
    found = {}
    for role, known in COLUMNS.items():
        columns = [name for name in names if name.strip().lower() in known]
        chosen = [name for name in columns if name.strip().lower() == role] or columns
        if len(chosen) > 1:
            raise DataError(
                f"{where}: {' and '.join(map(repr, columns))} both hold the {role}; expected one"
                f" column, '{role}'"
            )
        if chosen:
            found[role] = chosen[0]
    return found


def value_of(where: str, record: Any, key: str, kind: Any) -> Any:
    """Return `record[key]`, or raise a `DataError` if it is not of type `kind` (no subclass)."""
    value = record.get(key) if isinstance(record, dict) else None
    if type(value) in (kind if isinstance(kind, tuple) else (kind,)):
        return value
    if not isinstance(record, dict) or key in record:
        found = excerpt(record.get(key) if isinstance(record, dict) else record)
    else:
        found = f"only {', '.join(map(str, record))[:100]}" if record else "none"
    raise DataError(f"{where}: expected '{key}', {_NAMES[kind]}; found {found}")


def without_ids_of_captions(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Drop all ids if an image has several: they are those of its captions."""
    first: dict[str, Any] = {}
    for entry in entries:
        if entry.id is not None and first.setdefault(entry.image, entry.id) != entry.id:
            return [entry._replace(id=None) for entry in entries]
    return entries


def excerpt(value: Any) -> str:
    """Return the beginning of a value, for messages."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
