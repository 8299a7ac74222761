"""Downloading the COCO captioning data set of CS231n, resumable over an unreliable connection."""

from __future__ import annotations

import re
import shutil
import time
import urllib.error
import zipfile
from http.client import HTTPResponse, InvalidURL
from pathlib import Path

from xpcap.data.archive import Manifest, read_manifest, unpack, unpacked_size
from xpcap.data.progress import Progress, no_progress
from xpcap.data.web import FAILURES, check_web, open_url, reason_of
from xpcap.errors import DataError
from xpcap.files import check_new_folder, explained, lock, new_folder

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
    part = out.with_name(f".{out.name}.zip.part")
    if not zipfile.is_zipfile(part):
        fetch(url, part, unpacked_size(manifest), progress)
    with new_folder(out) as folder:
        try:
            unpack(part, folder, manifest, FOLDER, progress)
        except DataError as error:
            _remove(part)
            raise DataError(f"{url}: {error}; it is removed, the next call starts over") from error
    _remove(part)


class _CutError(Exception):
    """A failure that a retry may overcome."""


def fetch(url: str, part: Path, spare: int, progress: Progress) -> None:
    """Download what a partial file lacks, retrying if the connection is cut.

    The caller checks the contents: bytes of another version of the file are kept, too. `spare`
    bytes must stay free on its disk. A `DataError` is raised if the file cannot be fetched; what
    can be resumed is kept.
    """
    pauses, most = list(PAUSES), _size(part)
    while True:
        try:
            _fetch_rest(url, part, spare, progress)
            return
        except _CutError as cut:
            have = _size(part)
            if have > most:
                pauses, most = list(PAUSES), have
            if not pauses:
                kept = f"; {have} bytes are kept, the next call resumes there" if have else ""
                raise DataError(f"cannot fetch {url}: {cut}{kept}") from cut
        time.sleep(pauses.pop(0))


def _size(part: Path) -> int:
    with explained(part, "read"):
        return part.stat().st_size if part.is_file() else 0


def _remove(part: Path) -> None:
    with explained(part, "remove"):
        part.unlink(missing_ok=True)


def _fetch_rest(url: str, part: Path, spare: int, progress: Progress) -> None:
    have = _size(part)
    with _ask(url, part, have) as answer:
        total = answer.length
        if answer.status == 200:
            _remove(part)
            have = 0
        else:
            sent = answer.headers.get("Content-Range", "")
            follows = re.fullmatch(rf"bytes {have}-\d+/(\d+)", sent)
            if not follows:
                _remove(part)
                raise _CutError("the server sends another range than requested")
            total = int(follows[1])
        _check_room(url, part.parent, total, spare - have)
        _append(answer, url, part, have, total, progress)


def _ask(url: str, part: Path, have: int) -> HTTPResponse:
    """Request what comes after the `have` bytes of a part."""
    try:
        answer = open_url(url, TIMEOUT, {"Range": f"bytes={have}-"} if have else {})
    except FAILURES as error:
        reason = reason_of(error)
        status = error.code if isinstance(error, urllib.error.HTTPError) else None
        if have and status == 416:  # the file is shorter
            _remove(part)
            raise _CutError(reason) from error
        if _is_transient(error, status):
            raise _CutError(reason) from error
        raise DataError(f"cannot fetch {url}: {reason}") from error
    if answer.status not in (200, 206):
        answer.close()
        raise DataError(f"cannot fetch {url}: the server answers {answer.status}")
    return answer


def _is_transient(error: Exception, status: int | None) -> bool:
    if status is not None:
        return status >= 500 or status in (408, 429)
    return not isinstance(error, (ValueError, InvalidURL))


def _check_room(url: str, folder: Path, total: int | None, more: int) -> None:
    """Check that there is room for a file and for `more` bytes, and create its folder."""
    if total is not None and total > LARGEST:
        raise DataError(f"{url} is {total} bytes; expected at most {LARGEST}")
    needed = (total or 0) + more
    with explained(folder, "write"):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(f"{folder} has {free / 1e9:.2f} GB free; {url} needs {needed / 1e9:.2f} GB")


def _append(
    answer: HTTPResponse, url: str, part: Path, have: int, total: int | None, progress: Progress
) -> None:
    most = LARGEST if total is None else total
    try:
        with explained(part, "write"), open(part, "ab") as file:
            lock(file, part)
            while have <= most and (piece := _read(answer)):
                have += len(piece)
                file.write(piece)
                progress("downloading", have, total or have)
    finally:
        if not 0 < have <= most:
            _remove(part)
    if have > most:
        raise DataError(f"{url} is longer than {most} bytes")
    if have < (total or 1):
        raise _CutError("the connection was cut")


def _read(answer: HTTPResponse) -> bytes:
    try:
        return answer.read1(PIECE)
    except FAILURES as error:
        raise _CutError(reason_of(error)) from error
