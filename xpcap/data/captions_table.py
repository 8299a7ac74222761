"""Captions in lines of text, one caption each.

CSV, TSV     a first line of column names; the delimiter is a comma, semicolon, tab or |
Flickr8k     Flickr8k.token.txt: 1000268201_693b08cb0e.jpg#0, a tab, the caption;
             Kaggle's captions.txt is CSV
Flickr30k    results_20130124.token, as Flickr8k.token.txt;
             Kaggle's results.csv: image_name| comment_number| comment
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from xpcap.data.captions_entry import COLUMNS, Entry, excerpt, find_columns, without_ids_of_captions
from xpcap.errors import DataError

DELIMITERS = (",", ";", "\t", "|")
_TOKEN = re.compile(r"([^\t]+)#\d+\t(.*)")
_FLICKR30K = ["image_name", "comment_number", "comment"]
_LONGEST_HEADER = 10_000
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


def is_token_file(text: str) -> bool:
    """Return whether a text is in the form of `Flickr8k.token.txt`."""
    return bool(_TOKEN.match(text.lstrip().partition("\n")[0]))


def from_table(file: Path, text: str) -> Sequence[Entry]:
    """Read the text of a file of one caption per line."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if is_token_file(text):
        return list(_from_tokens(file, text))
    lines = enumerate(text.split("\n"), 1)
    number, first = next((k, line) for k, line in lines if line.strip())
    delimiter, names = _header(first)
    columns = find_columns(f"{file}: line {number}", names)
    if not {"image", "caption"} <= columns.keys():
        raise DataError(
            f"{file}: line {number}: found the columns {', '.join(map(excerpt, names))[:300]};"
            f" expected one called {' or '.join(COLUMNS['image'])}, and one called"
            f" {' or '.join(COLUMNS['caption'])}"
        )
    entries = []
    for k, row in _rows(file, text, delimiter):
        where = f"{file}: line {k}"
        if k == number or not any(row):
            continue
        # One line of Flickr30k's results.csv, as it is published, lacks its last delimiter:
        # 2199200615.jpg| 4   A dog runs across the grass .
        if names == _FLICKR30K and len(row) == 2 and re.match(r"\d+\s+\S", row[1]):
            row[1:] = row[1].split(maxsplit=1)
        if len(row) > len(names):
            raise DataError(
                f"{where} has {len(row)} fields, more than the {len(names)} of the first line; a"
                f' caption that contains a {_called(delimiter)} must be in "quotes"'
            )
        values = dict(zip(names, row, strict=False))
        missing = [columns[key] for key in ("image", "caption") if columns[key] not in values]
        if missing:
            raise DataError(
                f"{where}: expected '{missing[0]}', a text; found {len(row)} of {len(names)}"
                f" fields: {excerpt(_called(delimiter).join(row))}"
            )
        split, id_ = (values.get(columns.get(key, "")) or None for key in ("split", "id"))
        entry = Entry(where, values[columns["image"]], [values[columns["caption"]]], split, id_)
        entries.append(entry)
    return _with_numbers(without_ids_of_captions(entries))


def _header(line: str) -> tuple[str, list[str]]:
    """Return the delimiter with which a line has the most known column names, and its columns."""
    known = {name for names in COLUMNS.values() for name in names}
    split = {}
    for delimiter in DELIMITERS:
        row = next(csv.reader([line[:_LONGEST_HEADER]], delimiter=delimiter))
        split[delimiter] = [name.strip().lower() for name in row]
    best = max(split, key=lambda d: (sum(name in known for name in split[d]), len(split[d])))
    return best, split[best]


def _rows(file: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the line where each row begins, and its fields without outer spaces."""
    rows, number = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 1
    try:
        for row in rows:
            yield number, [field.strip() for field in row]
            number = rows.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{file}: line {number}: {error}; expected a field that begins with a quotation mark to"
            " end with one, and those inside doubled"
        ) from error


def _called(delimiter: str) -> str:
    return {",": "comma", ";": "semicolon", "\t": "tab"}.get(delimiter, delimiter)


def _with_numbers(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Turn ids into integers if all are: zero-padded ones, for example, are texts."""
    ids = [str(entry.id) for entry in entries if entry.id is not None]
    if not ids or not all(map(_WHOLE.fullmatch, ids)):
        return entries
    return [entry if entry.id is None else entry._replace(id=int(entry.id)) for entry in entries]


def _from_tokens(file: Path, text: str) -> Iterator[Entry]:
    for k, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        found = _TOKEN.fullmatch(line.rstrip("\r"))
        if not found:
            raise DataError(
                f"{file}: line {k}: expected a name such as 1.jpg#0, a tab and a caption; found"
                f" {excerpt(line)}"
            )
        yield Entry(f"{file}: line {k}", found[1], [found[2].strip()])
