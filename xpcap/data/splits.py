"""The names of splits in files of captions, and lists of the images of each split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from xpcap.data import folder as layout
from xpcap.data.image_files import SUFFIXES, slashed
from xpcap.errors import ConfigurationError, DataError
from xpcap.files import SMALL, explained, read_text

ALL = (*layout.SPLITS, layout.TEST)
NAMES = {
    "train": "train",
    "restval": "train",
    "val": "val",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "test": "test",
}
NONE = "none"
"""What `--splits` calls images without a split."""


def split_names(changes: Mapping[str, str]) -> dict[str, str]:
    """Return the split of each name: those of `NAMES`, and `changes`.

    A `ConfigurationError` is raised if one is not train, val or test.
    """
    for name, split in changes.items():
        if split not in ALL:
            raise ConfigurationError(
                f"splits: '{name}' cannot mean '{split}'; expected {' or '.join(ALL)}"
            )
    return {**NAMES, **{name.lower(): split for name, split in changes.items()}}


def parse_splits(text: str) -> dict[str, str]:
    """Return the pairs of a text such as `"none=train,eval=test"`."""
    pairs = [pair.strip().partition("=") for pair in text.split(",")]
    for name, equals, split in pairs:
        if not (name and equals and split):
            raise ConfigurationError(
                f"splits: '{name}{equals}{split}'; expected pairs such as none=train"
            )
    return {name.strip(): split.strip() for name, _, split in pairs}


def split_of(where: str, name: Any, names: Mapping[str, str]) -> str | None:
    """Return the split called `name`, in any case; None if there is no name, or it is "none"."""
    key = name.strip().lower() if isinstance(name, str) else ""
    if name in (None, "") or key == NONE:
        return None
    if key not in names:
        raise DataError(
            f"{where}: split is {name!r}; expected {', '.join(NAMES)}, or a name that means one of"
            f" them (splits={{'{key or 'NAME'}': 'train'}})"
        )
    return names[key]


def read_lists(
    folder: Path, source: Path, images: Sequence[str], names: Mapping[str, str]
) -> tuple[dict[int, str], list[Path]]:
    """Return the split of images by index, from lists in a folder, and the lists.

    A list is a text file such as `Flickr_8k.trainImages.txt`, `flickr30k_dev.txt` or `test.txt`,
    one name of `images` per line, as written or without folders or ending. Without any known name
    it is ignored; an unknown one among them is a `DataError`, and so is an image in two splits.
    """
    exact, bare = _by_name(images)
    splits: dict[int, str] = {}
    used: list[Path] = []
    pattern = re.compile(rf"(?:.*[._-])?({'|'.join(map(re.escape, names))})(?:[._-]?images)?\.txt")
    with explained(folder, "read"):
        paths = sorted(folder.iterdir())
    for path in paths:
        match = pattern.fullmatch(path.name.lower())
        if not match or not path.is_file():
            continue
        lines = [line.strip() for line in read_text(path, SMALL).split("\n")]
        found = [exact.get(name) or bare.get(name) for name in map(slashed, lines)]
        if not any(found):
            continue
        used.append(path)
        for k, (line, places) in enumerate(zip(lines, found, strict=True), 1):
            if not line:
                continue
            if places is None or len(places) > 1:
                problem = "several images are" if places else "no image is"
                raise DataError(
                    f"{path}: line {k}: {problem} called {line!r} in {source}; expected one on each"
                    " line"
                )
            split = splits.setdefault(places[0], names[match[1]])
            if split != names[match[1]]:
                raise DataError(
                    f"{path}: line {k}: {line} is in the splits {split} and {names[match[1]]};"
                    " expected one"
                )
    return splits, used


def _by_name(images: Sequence[str]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Return the indices of images by their names, and by those without ending."""
    exact: dict[str, list[int]] = {}
    bare: dict[str, list[int]] = {}
    for k, image in enumerate(map(slashed, images)):
        path = PurePosixPath(image)
        for name in {image, str(path), path.name}:
            exact.setdefault(name, []).append(k)
        if path.suffix.lower() in SUFFIXES:
            for name in {str(path.with_suffix("")), path.stem}:
                bare.setdefault(name, []).append(k)
    return exact, bare
