"""Reading untrusted zip archives: all files of a manifest, or a single file."""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from xpcap.data.progress import Progress
from xpcap.errors import DataError
from xpcap.files import check_plain, explained, read_json

PIECE = 2**20

_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError)


class Expected(NamedTuple):
    """Expected size in bytes and hexadecimal SHA-256 of a file."""

    size: int
    sha256: str


Manifest = Mapping[str, Expected]
"""Expected files by name."""


def read_manifest(path: Path) -> Manifest:
    """Read the sizes and checksums of files from a JSON file."""
    files = read_json(path)["files"]
    return {name: Expected(file["bytes"], file["sha256"]) for name, file in files.items()}


def unpacked_size(manifest: Manifest) -> int:
    """Return the total size of all files in bytes."""
    return sum(expected.size for expected in manifest.values())


def unpack(
    archive: Path, folder: Path, manifest: Manifest, inside: str, progress: Progress
) -> None:
    """Extract the files of the manifest, and no others, from an archive into a folder.

    They are in the folder `inside` of the archive, or at its top level, and become regular files.
    If it is damaged, or a file is missing, duplicate, encrypted, or not the expected one, a
    `DataError` is raised, and an `OSError` if one cannot be written; the folder may then contain
    some of them.
    """
    with _opened(archive) as opened:
        members = []
        for name, expected in manifest.items():  # all are checked before any is written
            member = _find(opened, name, f"{inside}/{name}")
            if member.file_size != expected.size:
                raise DataError(
                    f"{name} in the archive is {member.file_size} bytes; expected {expected.size}"
                )
            members.append((member, name, expected))
        done, total = 0, unpacked_size(manifest)
        for member, name, expected in members:
            digest = hashlib.sha256()
            with open(folder / name, "xb") as file:
                for piece in _pieces(opened, member, expected.size):
                    file.write(piece)
                    digest.update(piece)
                    done += len(piece)
                    progress("unpacking", done, total)
            if digest.hexdigest() != expected.sha256:
                raise DataError(
                    f"{name} in the archive has the SHA-256 {digest.hexdigest()[:12]}...;"
                    f" expected {expected.sha256[:12]}..."
                )


def read_member(archive: Path, name: str, most: int) -> bytes:
    """Read one file of at most `most` bytes from an archive; raises as `unpack` does."""
    check_plain(archive)
    with explained(archive, "read"):
        try:
            with _opened(archive) as opened:
                member = _find(opened, name)
                if member.file_size > most:
                    raise DataError(
                        f"{name} in the archive is {member.file_size} bytes; expected at most"
                        f" {most}"
                    )
                return b"".join(_pieces(opened, member, member.file_size))
        except DataError as error:
            raise DataError(f"{archive}: {error}") from error


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    with open(archive, "rb") as file:
        try:
            opened = zipfile.ZipFile(file)
        except _DAMAGED as error:
            raise DataError(f"the archive is not a whole zip file: {error}") from error
        with opened:
            yield opened


def _find(opened: zipfile.ZipFile, name: str, *others: str) -> zipfile.ZipInfo:
    """Find a file by its exact path, so that no name in the archive can lead elsewhere."""
    found = [member for member in opened.infolist() if member.filename in (name, *others)]
    if len(found) != 1:
        raise DataError(f"the archive holds {name} {len(found)} times; expected it once")
    member = found[0]
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{name} in the archive is not compressed by deflate, as expected")
    return member


def _pieces(opened: zipfile.ZipFile, member: zipfile.ZipInfo, size: int) -> Iterator[bytes]:
    """Read `size` bytes of a file, even if it decompresses to more."""
    try:
        with opened.open(member) as file:
            while size:
                piece = file.read(min(size, PIECE))
                if not piece:
                    raise EOFError
                size -= len(piece)
                yield piece
    except _DAMAGED as error:
        reason = str(error) or "it ends early"
        raise DataError(f"{member.filename} in the archive is damaged: {reason}") from error
