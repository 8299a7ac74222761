"""Finding image files: single ones, all of a folder, or those of a pattern."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from xpcap.data.web import is_url
from xpcap.errors import DataError
from xpcap.files import explained

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".tif", ".tiff", ".bmp",
    ".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".avif",
)  # fmt: skip
"""Names that are images in a folder; HEIC and AVIF are among them to be refused by name."""


def find_images(arguments: Iterable[str | Path]) -> list[Path]:
    """Return the image files of arguments, in their order, each once.

    An argument is a file, whatever its name; a folder, of which all images are taken, recursively
    and in the natural order of their names (`2.jpg` before `10.jpg`); or a pattern such as `*.png`
    or `**/*.jpg`. Hidden files and folders are left out.

    Raises
    ------
    DataError
        If an argument is a URL, or a folder or pattern without an image. A file that does not exist
        is found, and opening it fails.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        found.update(dict.fromkeys(_of(str(argument))))
    return list(found)


def slashed(name: str) -> str:
    r"""Return a path with slashes for the backslashes of Windows: `images\a.jpg`."""
    return name.replace("\\", "/")


def _of(argument: str) -> Iterator[Path]:
    if is_url(argument):
        raise DataError(f"{argument} is a URL; expected a file: download it first")
    path = Path(argument)
    with explained(path, "read"):
        is_folder, exists = path.is_dir(), path.exists()
    if is_folder:
        images = [image for image in _below(path) if image.suffix.lower() in SUFFIXES]
        if not images:
            raise DataError(f"{path} has no image; expected one of {' '.join(SUFFIXES)}")
        yield from images
    elif exists or not glob.has_magic(argument):
        yield path
    else:
        matches = sorted(glob.glob(argument, recursive=True), key=_natural)
        images = [Path(match) for match in matches if os.path.isfile(match)]
        if not images:
            raise DataError(f"no file matches {argument}")
        yield from images


def _below(folder: Path) -> Iterator[Path]:
    for above, folders, files in os.walk(folder):
        folders[:] = sorted((name for name in folders if name[0] != "."), key=_natural)
        for name in sorted(files, key=_natural):
            if name[0] != ".":
                yield Path(above, name)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that compares numbers in names by their value."""
    return [
        (int(part), part) if part.isdecimal() else (-1, part.casefold())
        for part in re.findall(r"\d+|\D+", name)
    ]
