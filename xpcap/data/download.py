"""Downloading the COCO captioning data set of CS231n."""

from __future__ import annotations

from pathlib import Path

from xpcap.data.archive import Manifest, read_manifest, unpack, unpacked_size
from xpcap.data.fetch import Part, fetch
from xpcap.data.progress import Progress, no_progress
from xpcap.data.web import check_web
from xpcap.errors import DataError
from xpcap.files import check_new_folder, new_folder

ADDRESS = "http://cs231n.stanford.edu/coco_captioning.zip"
FOLDER = "coco_captioning"
MANIFEST = Path(__file__).with_name("coco_manifest.json")


def download_coco(
    out: Path,
    url: str = ADDRESS,
    progress: Progress = no_progress,
    manifest: Manifest | None = None,
) -> None:
    """Download the COCO captioning archive of CS231n, verify it, and unpack it into a new folder.

    A partial download is kept in a hidden file beside `out`, and the next call resumes it. Progress
    is in bytes; if the server does not tell the total, it is the number so far. The files expected
    are those of `manifest`, by default of `coco_manifest.json`.

    Raises
    ------
    DataError
        If `out` exists or the disk is too full, the archive cannot be fetched, or it has other
        contents than expected; `out` is then not made.
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
