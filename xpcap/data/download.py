"""Downloading the COCO captioning data set of CS231n, resumable over an unreliable connection."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
import urllib.error
from http.client import HTTPMessage, HTTPResponse, InvalidURL
from pathlib import Path

from xpcap.data.archive import Manifest, read_manifest, unpack, unpacked_size
from xpcap.data.progress import Progress, no_progress
from xpcap.data.web import FAILURES, check_web, open_url, reason_of
from xpcap.errors import DataError
from xpcap.files import check_new_folder, explained, lock, new_file, new_folder, read_json

ADDRESS = "http://cs231n.stanford.edu/coco_captioning.zip"
FOLDER = "coco_captioning"
MANIFEST = Path(__file__).with_name("coco_manifest.json")

LARGEST = 4 * 2**30
TIMEOUT = 30.0
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each retry; the sequence restarts whenever bytes have arrived."""
PIECE = 2**18


def download_coco(
    out: Path,
    url: str = ADDRESS,
    progress: Progress = no_progress,
    manifest: Manifest | None = None,
) -> None:
    """Download the COCO captioning archive of CS231n, verify it, and unpack it into a new folder.

    A partial download is kept in a hidden file beside `out`, and the next call resumes it. Progress
    is in bytes; if the server does not tell the total, it is the number so far. The files expected
    are those of `manifest`, by default of `coco_manifest.json`. A `DataError` is raised if `out`
    exists or the disk is too full, the archive cannot be fetched, or it has other contents; `out`
    is then not made.
    """
    out, manifest = out.absolute(), manifest or read_manifest(MANIFEST)
    check_web(url)
    check_new_folder(out)
    part = Part(out.with_name(f".{out.name}.zip.part"), url)
    fetch(part, unpacked_size(manifest), progress)
    with new_folder(out) as folder:
        try:
            unpack(part.path, folder, manifest, FOLDER, progress)
        except DataError as error:
            part.remove()
            raise DataError(f"{url}: {error}; it is removed, the next call starts over") from error
    part.remove()


class Part:
    """A partial download of `url` at `path`, and beside it a note of version and size."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self.url = url
        self.version = ""
        self.total: int | None = None
        self._note = path.with_name(f"{path.name}.json")
        with contextlib.suppress(DataError):
            match read_json(self._note):
                case {"url": self.url, "version": str(version), "total": int(total)}:
                    self.version, self.total = version, total

    @property
    def have(self) -> int:
        """Number of bytes that can be kept; 0 without a version to resume from."""
        if not self.version or self.total is None or not self.path.is_file():
            return 0
        size = self.path.stat().st_size
        return size if size <= self.total else 0

    @property
    def headers(self) -> dict[str, str]:
        """Headers that request the rest, if the version is the same, or else the whole file."""
        if not self.have:
            return {}
        return {"Range": f"bytes={self.have}-", "If-Range": self.version}

    def is_followed_by(self, headers: HTTPMessage) -> bool:
        """Return whether an answer with these headers continues this part."""
        follows = rf"bytes {self.have}-\d+/{self.total}"
        same = _version(headers) in ("", self.version)
        return same and re.fullmatch(follows, headers.get("Content-Range", "")) is not None

    def begin(self, answer: HTTPResponse) -> None:
        """Start over with a whole file."""
        self.remove()
        self.version, self.total = _version(answer.headers), answer.length
        note = {"url": self.url, "version": self.version, "total": self.total}
        with new_file(self._note) as temporary:
            temporary.write_text(json.dumps(note))

    def remove(self) -> None:
        """Remove the partial download and its note."""
        with explained(self.path, "remove"):
            self.path.unlink(missing_ok=True)
            self._note.unlink(missing_ok=True)
        self.version, self.total = "", None


def _version(headers: HTTPMessage) -> str:
    """Return a strong identifier of the file's version, or an empty string."""
    tag = headers.get("ETag", "")
    version = tag if tag.startswith('"') else headers.get("Last-Modified", "")
    return version if version.isascii() and version.isprintable() else ""


class _CutError(Exception):
    """A failure that a retry may overcome."""


def fetch(part: Part, spare: int, progress: Progress) -> None:
    """Download the rest of a file, retrying if the connection is cut.

    `spare` bytes must stay free on its disk. A `DataError` is raised if the file cannot be fetched;
    what can be resumed is kept.
    """
    pauses, most = list(PAUSES), part.have
    while True:
        try:
            _fetch_rest(part, spare, progress)
            return
        except _CutError as cut:
            if part.have > most:
                pauses, most = list(PAUSES), part.have
            if not pauses:
                kept = f"; {part.have} of {part.total} bytes are kept, the next call resumes there"
                raise DataError(
                    f"cannot fetch {part.url}: {cut}{kept if part.have else ''}"
                ) from cut
        time.sleep(pauses.pop(0))


def _fetch_rest(part: Part, spare: int, progress: Progress) -> None:
    if part.have and part.have == part.total:
        _check_room(part, spare)
        return
    with _ask(part) as answer:
        if answer.status == 200:
            part.begin(answer)
        elif not part.is_followed_by(answer.headers):
            part.remove()
            raise _CutError("the server sends another range than requested")
        try:
            _check_room(part, spare)
            _append(answer, part, progress)
        except BaseException:
            if not part.have:  # cannot be resumed
                part.remove()
            raise


def _ask(part: Part) -> HTTPResponse:
    try:
        answer = open_url(part.url, TIMEOUT, part.headers)
    except FAILURES as error:
        reason = reason_of(error)
        status = error.code if isinstance(error, urllib.error.HTTPError) else None
        if part.have and status == 416:  # the file is shorter than before
            part.remove()
            raise _CutError(reason) from error
        if _is_transient(error, status):
            raise _CutError(reason) from error
        raise DataError(f"cannot fetch {part.url}: {reason}") from error
    if answer.status not in (200, 206):
        answer.close()
        raise DataError(f"cannot fetch {part.url}: the server answers {answer.status}")
    return answer


def _is_transient(error: Exception, status: int | None) -> bool:
    if status is not None:
        return status >= 500 or status in (408, 429)
    return not isinstance(error, (ValueError, InvalidURL))


def _check_room(part: Part, spare: int) -> None:
    if part.total is not None and part.total > LARGEST:
        raise DataError(f"{part.url} is {part.total} bytes; expected at most {LARGEST}")
    folder = part.path.parent
    needed = spare + (part.total or 0) - part.have
    with explained(folder, "write"):
        free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder} has {free / 1e9:.2f} GB free; {part.url} needs {needed / 1e9:.2f} GB"
        )


def _append(answer: HTTPResponse, part: Part, progress: Progress) -> None:
    done, total = part.have, part.total
    most = LARGEST if total is None else total
    with explained(part.path, "write"), open(part.path, "ab") as file:
        lock(file, part.path)
        while done <= most and (piece := _read(answer)):
            done += len(piece)
            file.write(piece)
            progress("downloading", done, total or done)
    if done > most:
        raise DataError(f"{part.url} is longer than {most} bytes")
    if total is not None and done < total:
        raise _CutError("the connection was cut")


def _read(answer: HTTPResponse) -> bytes:
    try:
        return answer.read1(PIECE)
    except FAILURES as error:
        raise _CutError(reason_of(error)) from error
