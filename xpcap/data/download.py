"""Downloading the COCO captioning data set of CS231n."""

from __future__ import annotations

from pathlib import Path

from xpcap.data.archive import Manifest, read_manifest, unpack, unpacked_size
from xpcap.data.fetch import Part, fetch
from xpcap.data.progress import Progress, say_nothing
from xpcap.data.web import check_web
from xpcap.errors import DataError
from xpcap.files import check_new_folder, new_folder

ADDRESS = "http://cs231n.stanford.edu/coco_captioning.zip"
FOLDER = "coco_captioning"
MANIFEST = Path(__file__).with_name("coco_manifest.json")


def download_coco(out: Path, url: str = ADDRESS, progress: Progress = say_nothing) -> None:
    """Download the COCO captioning archive of CS231n, check it, and unpack it.

    What was fetched when a call ends early stays beside `out`, in a hidden file; the next call
    goes on from there.

    Parameters
    ----------
    out
        The folder to make: a new name, or an empty folder.
    url
        An http or https address of the archive.
    progress
        Told how far it is, in bytes. Where the server does not say how many there are, it is told
        as many as there are so far.

    Raises
    ------
    DataError
        If `out` is taken or the disk too full, the archive cannot be fetched, or it holds other
        bytes than expected; `out` is then not made.
    """
    download_archive(out, url, read_manifest(MANIFEST), progress)


def download_archive(out: Path, url: str, manifest: Manifest, progress: Progress) -> None:
    """Download an archive as `download_coco` does, with other files expected in it."""
    out = out.absolute()
    check_web(url)
    check_new_folder(out)
    part = Part(out.with_name(f".{out.name}.zip.part"), url)
    fetch(part, unpacked_size(manifest), progress)
    with new_folder(out) as folder:
        try:
            unpack(part.path, folder, manifest, FOLDER, progress)
        except DataError as error:
            part.remove()
            raise DataError(f"{url}: {error}; it is removed, the next try starts anew") from error
    part.remove()
