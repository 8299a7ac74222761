import errno
import hashlib
import io
import json
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from xpcap.data.archive import Expected, read_manifest, unpack, unpacked_size
from xpcap.data.download import MANIFEST
from xpcap.data.progress import no_progress
from xpcap.errors import DataError

FILES = {"captions.h5": b"many words " * 3000, "vocab.json": b"{}", "empty.txt": b""}
EXPECTED = {
    name: Expected(len(content), hashlib.sha256(content).hexdigest())
    for name, content in FILES.items()
}


def zipped(members):
    """Zip (name or ZipInfo, content) pairs."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members:
            archive.writestr(member, content)
    return file.getvalue()


def usual(**instead):
    """Return the expected members, inside their folder, some with other contents."""
    contents = {**FILES, **{name.replace("_", "."): c for name, c in instead.items()}}
    return [(f"coco/{name}", content) for name, content in contents.items()]


def contents_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def unpacked(tmp_path):
    """Return a function that unpacks the bytes of an archive and tells what came out."""
    folder = tmp_path / "inner" / "folder"
    folder.mkdir(parents=True)

    def run(content, progress=no_progress):
        archive = tmp_path / "archive.zip"
        archive.write_bytes(content)
        try:
            unpack(archive, folder, EXPECTED, "coco", progress)
        finally:
            everything = {path for path in tmp_path.rglob("*") if path.is_file()}
            assert {path.name for path in everything} <= {*FILES, "archive.zip"}
            assert {path.parent for path in everything - {archive}} <= {folder}
        return contents_of(folder)

    return run


def refused(unpacked, content, message):
    with pytest.raises(DataError, match=message) as caught:
        unpacked(content)
    assert "\n" not in str(caught.value)


def test_files_come_out_of_the_top(unpacked):
    assert unpacked(zipped(FILES.items())) == FILES


def test_progress_counts_the_bytes_of_all_files(unpacked):
    calls = []
    unpacked(zipped(usual()), lambda *call: calls.append(call))
    total = unpacked_size(EXPECTED)
    assert total == sum(map(len, FILES.values()))
    assert {(what, all_of_it) for what, _, all_of_it in calls} == {("unpacking", total)}
    done = [done for _, done, _ in calls]
    assert done == sorted(done)
    assert done[-1] == total


def test_nothing_else_comes_out(unpacked):
    strangers = [
        "evil.txt", "../vocab.json", "/vocab.json", "coco/../vocab.json", "coco/deeper/vocab.json",
        "other/vocab.json", "coco/../../captions.h5", "/coco/captions.h5", "C:/vocab.json",
        "coco\\vocab.json", "vocab.json/", "__MACOSX/coco/._vocab.json", "coco/", "COCO/vocab.json",
    ]  # fmt: skip
    assert unpacked(zipped(usual() + [(name, b"") for name in strangers])) == FILES


@pytest.mark.parametrize("place", ["../", "/", "coco/../", "coco/deeper/", "./"])
def test_a_file_in_another_place_is_missing(unpacked, place):
    members = [*usual()[1:], (place + "captions.h5", FILES["captions.h5"])]
    refused(unpacked, zipped(members), r"captions\.h5 0 times; expected it once")


def test_a_file_is_there_twice(unpacked):
    members = [*usual(), ("vocab.json", FILES["vocab.json"])]
    refused(unpacked, zipped(members), r"vocab\.json 2 times; expected it once")


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR, stat.S_IFCHR])
def test_links_and_the_like_become_regular_files(unpacked, kind):
    infos = [(zipfile.ZipInfo(name), content) for name, content in usual()]
    for info, _ in infos:
        info.external_attr = (kind | 0o777) << 16
    assert unpacked(zipped(infos)) == FILES


def with_field(content, name, offset, value):
    """Overwrite a field of a file's entry in the central directory."""
    changed = bytearray(content)
    entry = content.rindex(f"coco/{name}".encode()) - 46
    assert content[entry : entry + 4] == b"PK\x01\x02"
    changed[entry + offset : entry + offset + len(value)] = value
    return bytes(changed)


VERSION, FLAGS, METHOD, SIZE, HEADER = 6, 8, 10, 24, 42


def test_an_encrypted_file(unpacked):
    refused(
        unpacked,
        with_field(zipped(usual()), "vocab.json", FLAGS, b"\x01\x00"),
        r"vocab\.json in the archive is damaged: File .* is encrypted",
    )


@pytest.mark.parametrize(
    ("offset", "value"), [(FLAGS, b"\x20\x00"), (FLAGS, b"\x40\x00"), (VERSION, b"\x63\x00")]
)
def test_a_file_in_a_way_that_python_does_not_know(unpacked, offset, value):
    content = with_field(zipped(usual()), "vocab.json", offset, value)
    refused(unpacked, content, "in the archive is damaged|not a whole zip file")


def test_another_kind_of_compression(unpacked):
    refused(
        unpacked,
        with_field(zipped(usual()), "vocab.json", METHOD, struct.pack("<H", zipfile.ZIP_LZMA)),
        r"vocab\.json .* not compressed by deflate",
    )


@pytest.mark.parametrize("declared", [0, 32999, 33001, 2**32 - 2])
def test_another_size_is_declared(unpacked, tmp_path, declared):
    content = with_field(zipped(usual()), "captions.h5", SIZE, struct.pack("<I", declared))
    refused(unpacked, content, rf"captions\.h5 in the archive is {declared} bytes; expected 33000")
    assert not any((tmp_path / "inner" / "folder").iterdir())  # before anything is written


def test_a_bomb_that_declares_the_right_size(unpacked, tmp_path):
    bomb = zipped(usual(captions_h5=b"x" * 5_000_000))
    content = with_field(bomb, "captions.h5", SIZE, struct.pack("<I", 33000))
    refused(unpacked, content, r"captions\.h5 in the archive is damaged: Bad CRC-32")
    assert (tmp_path / "inner" / "folder" / "captions.h5").stat().st_size <= 33000


def test_a_file_that_ends_before_its_declared_size(unpacked):
    short = zipped(usual(captions_h5=b"x" * 100))
    content = with_field(short, "captions.h5", SIZE, struct.pack("<I", 33000))
    refused(unpacked, content, r"captions\.h5 in the archive is damaged")


def test_a_file_with_other_bytes(unpacked):
    content = zipped(usual(vocab_json=b"[]"))
    found, expected = (hashlib.sha256(b).hexdigest()[:12] for b in (b"[]", b"{}"))
    refused(unpacked, content, rf"vocab\.json .* SHA-256 {found}\.\.\.; expected {expected}\.\.\.")


@pytest.mark.parametrize("value", [b"\xf0\x00\x00\x00", b"\xfe\xff\xff\xff"])
def test_a_file_that_is_said_to_be_where_it_is_not(unpacked, value):
    content = with_field(zipped(usual()), "captions.h5", HEADER, value)
    refused(unpacked, content, "in the archive is damaged|not a whole zip file")


def test_a_directory_that_is_said_to_be_larger_than_the_archive(unpacked):
    content = bytearray(zipped(usual()))
    content[-10:-6] = b"\xff\xff\xff\x7f"
    refused(unpacked, bytes(content), "not a whole zip file")


def test_a_name_in_no_encoding(unpacked):
    content = zipped([*usual(), ("strängé", b"")]).replace("äng".encode(), b"\xff\xffng")
    refused(unpacked, content, "not a whole zip file")


def test_flipped_bits_in_the_compressed_bytes(unpacked):
    content = bytearray(zipped(usual()))
    for at in range(60, 90):
        content[at] ^= 0xFF
    refused(unpacked, bytes(content), r"captions\.h5 in the archive is damaged")


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>Not here</html>", b"PK\x05\x06", zipped(usual())[:-30], zipped(usual())[:50]],
    ids=["empty", "page", "mark", "short", "shorter"],
)
def test_files_that_are_not_zip_archives(unpacked, content):
    refused(unpacked, content, "the archive is not a whole zip file")


def test_an_archive_that_the_disk_cannot_read(unpacked, monkeypatch):
    def fail(file, size):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(zipfile.ZipExtFile, "read", fail)
    refused(unpacked, zipped(usual()), "in the archive is damaged: .*Input/output error")


def test_no_file_is_overwritten(tmp_path):
    archive = tmp_path / "archive.zip"
    archive.write_bytes(zipped(usual()))
    (tmp_path / "captions.h5").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        unpack(archive, tmp_path, EXPECTED, "coco", no_progress)
    assert not (tmp_path / "elsewhere").exists()


def test_the_manifest_of_the_data_set():
    manifest = read_manifest(MANIFEST)
    assert len(manifest) == 10
    assert unpacked_size(manifest) == 2_329_610_490
    assert manifest["coco2014_vocab.json"].size == 24226
    assert all(len(bytes.fromhex(expected.sha256)) == 32 for expected in manifest.values())
    assert all(Path(name).name == name for name in manifest)
    assert set(json.loads(MANIFEST.read_text())) == {"_about", "archive", "files"}
