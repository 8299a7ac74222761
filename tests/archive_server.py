"""A server that has an archive, and ways to misbehave."""

import hashlib
import io
import random
import zipfile

import pytest

from xpcap.data import download
from xpcap.data.archive import Expected
from xpcap.data.progress import no_progress
from xpcap.errors import DataError

FILES = {
    "captions.h5": random.Random(1).randbytes(40_000),
    "features.h5": bytes(100_000) + random.Random(2).randbytes(20_000),
    "urls.txt": b"http://localhost/cat.jpg\n" * 10,
}
EXPECTED = {
    name: Expected(len(content), hashlib.sha256(content).hexdigest())
    for name, content in FILES.items()
}
UNPACKED = sum(map(len, FILES.values()))


def zipped(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"coco_captioning/{name}", content)
    return file.getvalue()


ARCHIVE = zipped(FILES)
SIZE = len(ARCHIVE)


class Site:
    """What a server has, how it misbehaves, and what it was asked and sent."""

    def __init__(self):
        self.content = ARCHIVE
        self.tells_length = self.knows_ranges = True
        self.cuts = []  # after how many bytes to hang up, for one answer after the other
        self.instead = []  # what to answer first: called with the request
        self.ranges = []  # asked for
        self.sent = []
        self.address = ""

    def answer(self, request):
        asked = request.headers["Range"]
        self.ranges.append(asked)
        if self.instead:
            self.instead.pop(0)(request)
            return
        if asked and self.knows_ranges:
            start, whole = int(asked[len("bytes=") : -1]), len(self.content)
            value = f"bytes {start}-{whole - 1}/{whole}"
            self.reply(request, 206, self.content[start:], Content_Range=value)
        else:
            self.reply(request, 200, self.content)

    def reply(self, request, status, body=b"", **headers):
        cut = self.cuts.pop(0) if self.cuts else len(body)
        self.sent.append(len(body[:cut]))  # before the client hears of it and asks again
        length = {"Content-Length": str(len(body))} if self.tells_length else {}
        request.send_response(status)
        for name, value in {**length, **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body[:cut])


def get(site, out, progress=no_progress):
    download.download_coco(out, site.address, progress, EXPECTED)


def check_got(out):
    assert {path.name: path.read_bytes() for path in out.iterdir()} == FILES
    assert list(out.parent.iterdir()) == [out]


def check_refused(site, out, message, kept=0):
    """Check that a download ends with one line, and keeps what it can use and nothing else."""
    with pytest.raises(DataError, match=message) as caught:
        get(site, out)
    assert "\n" not in str(caught.value)
    assert (f"{kept} bytes are kept" in str(caught.value)) == bool(kept)
    check_kept(out, kept)


def check_kept(out, kept):
    part = out.parent / ".coco.zip.part"
    left = set(out.parent.iterdir()) if out.parent.exists() else set()
    assert left == ({part} if kept else set())
    assert not kept or part.read_bytes() == ARCHIVE[:kept]


def interrupt_at(when):
    def interrupt(what, done, total):
        if when(what, done):
            raise KeyboardInterrupt

    return interrupt
