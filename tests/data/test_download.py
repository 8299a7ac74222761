import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from archive_server import (
    ARCHIVE,
    EXPECTED,
    FILES,
    SIZE,
    UNPACKED,
    check_got,
    check_kept,
    check_refused,
    get,
    interrupt_at,
    zipped,
)

from xpcap.data import download
from xpcap.data.archive import Expected
from xpcap.errors import DataError


def test_the_command_downloads_coco(site, out, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "read_manifest", lambda path: EXPECTED)
    download.download_coco(out, site.address)
    check_got(out)
    assert site.ranges == [None]


def test_an_empty_folder_is_filled(site, out):
    out.mkdir(parents=True)
    get(site, out)
    check_got(out)


@pytest.mark.parametrize(
    ("inside", "name"), [("data", "coco"), ("data/coco", "."), (".", "data/coco")]
)
def test_the_folder_is_named_from_where_one_is(site, out, monkeypatch, tmp_path, inside, name):
    (tmp_path / inside).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / inside)
    get(site, Path(name))
    check_got(out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>Sign in to use this network</html>", "not a whole zip file"),
        (zipped({"captions.h5": FILES["captions.h5"]}), r"features\.h5 0 times"),
        (zipped({**FILES, "urls.txt": b"?" * 250}), r"urls\.txt .* SHA-256"),
        (zipped({**FILES, "urls.txt": b""}), r"urls\.txt in the archive is 0 bytes; expected 250"),
    ],
)
def test_a_wrong_archive_is_removed(site, out, content, message):
    site.content = content
    check_refused(site, out, f"zip: .*{message}.*; it is removed, the next call starts over$")
    site.content = ARCHIVE
    get(site, out)
    check_got(out)
    assert site.ranges == [None, None]


def test_a_changed_byte_in_a_complete_part(site, out):
    with pytest.raises(KeyboardInterrupt):
        get(site, out, interrupt_at(lambda what, done: what == "unpacking"))
    part = out.with_name(".coco.zip.part")
    part.write_bytes(ARCHIVE[:200] + b"????" + ARCHIVE[204:])
    check_refused(site, out, r"captions\.h5 in the archive is damaged.*; it is removed")


def disk_with(monkeypatch, free):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))


def test_a_disk_that_is_too_full(site, out, monkeypatch):
    big = {"big.h5": Expected(2_500_000_000, "")}
    disk_with(monkeypatch, 2_400_000_000)
    message = r"data has 2\.40 GB free; http://127.* needs 2\.50 GB"
    with pytest.raises(DataError, match=message) as caught:
        download.download_coco(out, site.address, manifest=big)
    assert "\n" not in str(caught.value)
    check_kept(out, 0)


@pytest.mark.parametrize("kept", [0, 20_000])
def test_how_much_of_a_disk_is_needed(site, out, monkeypatch, kept):
    if kept:
        site.cuts = [kept]
        with pytest.raises(KeyboardInterrupt):
            get(site, out, interrupt_at(lambda what, done: done >= kept))
    needed = SIZE - kept + UNPACKED
    disk_with(monkeypatch, needed - 1)
    with pytest.raises(DataError, match=r"GB free; .* needs 0\.00 GB"):
        get(site, out)
    check_kept(out, kept)
    disk_with(monkeypatch, needed)
    get(site, out)
    check_got(out)


def limited(size, call):
    """Call with files limited to a size, which fails as a full disk does."""
    resource = pytest.importorskip("resource")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def test_a_disk_that_fills_up_while_fetching(site, out):
    with pytest.raises(DataError, match=r"cannot write .*\.coco\.zip\.part: File too large"):
        limited(30_000, lambda: get(site, out))
    kept = out.with_name(".coco.zip.part").stat().st_size
    check_kept(out, kept)
    get(site, out)
    check_got(out)
    assert site.ranges == [None, f"bytes={kept}-"]


def test_a_disk_that_fills_up_while_unpacking(site, out):
    with pytest.raises(DataError, match=r"cannot write .*data/coco: File too large"):
        limited(100_000, lambda: get(site, out))
    check_kept(out, SIZE)
    get(site, out)
    check_got(out)
    assert site.ranges == [None]


def test_a_folder_that_is_taken_is_named_before_the_download(site, out):
    out.mkdir(parents=True)
    (out / "mine").write_text("keep")
    with pytest.raises(DataError, match="coco exists and is not an empty folder"):
        get(site, out)
    assert site.ranges == []
    assert [path.name for path in out.parent.rglob("*")] == ["coco", "mine"]


def test_a_file_in_the_way(site, out):
    out.parent.mkdir()
    out.write_text("keep")
    with pytest.raises(DataError, match="coco exists and is not an empty folder"):
        get(site, out)
    assert site.ranges == []


def test_a_place_that_cannot_be_written(site, out):
    out.parent.write_text("a file")
    with pytest.raises(DataError, match=r"cannot .*data.*Not a directory") as caught:
        get(site, out)
    assert "\n" not in str(caught.value)
    assert out.parent.read_text() == "a file"


def test_pauses_grow(site, out, monkeypatch):
    monkeypatch.setattr(download, "PAUSES", (1.0, 2.0, 4.0))
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    site.cuts = [0, 0, 20_000, 0]
    get(site, out)
    assert slept == [1.0, 2.0, 1.0, 2.0]
