"""Files that may be whole but cannot be read: every reader says why, as the system does."""

import builtins
import errno
import os
import sys

import h5py
import numpy
import pytest

from xpcap.data.archive import read_member
from xpcap.data.features import LazyFeatures
from xpcap.data.hdf5 import open_hdf5
from xpcap.data.images import open_picture
from xpcap.errors import DataError, XpcapError
from xpcap.exchange import import_run
from xpcap.files import read_json, read_text
from xpcap.runs.checkpoint import read_checkpoint

READERS = {
    "HDF5": open_hdf5,
    "features": LazyFeatures,
    "JSON": read_json,
    "text": read_text,
    "image": open_picture,
    "zip": lambda path: read_member(path, "a.png", 100),
    "checkpoint": read_checkpoint,
    "weights": lambda path: import_run(path, path.with_name("run")),
}


@pytest.fixture(params=READERS)
def read(request):
    return READERS[request.param]


@pytest.fixture
def features(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["features"] = numpy.ones((5, 3), "f4")
    return path


def refused(read, path, message):
    with pytest.raises(XpcapError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(read, tmp_path):
    refused(read, tmp_path / "a", "cannot read .*: No such file or directory$")


def test_a_folder(read, tmp_path):
    refused(read, tmp_path, "is not a plain file but a folder$")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
def test_a_pipe_that_never_ends(read, tmp_path):
    os.mkfifo(tmp_path / "a")
    refused(read, tmp_path / "a", "is not a plain file$")


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.EACCES, "Permission denied"), (errno.EBUSY, "(Device|Resource).* busy")],
)
def test_a_file_that_the_system_refuses(read, features, monkeypatch, number, reason):
    """Another program may use it: on Windows that is a missing permission."""
    opened = builtins.open

    def refuse(file, *rest, **options):
        if file == features:
            raise OSError(number, os.strerror(number), str(file))
        return opened(file, *rest, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    refused(read, features, f"cannot read .*: {reason}$")


@pytest.mark.parametrize("name", ["HDF5", "features", "JSON", "image", "checkpoint", "weights"])
def test_an_empty_file_is_called_empty(name, tmp_path):
    (tmp_path / "a").touch()
    refused(READERS[name], tmp_path / "a", "is empty")


@pytest.mark.skipif(sys.platform == "win32", reason="locks as POSIX does")
def test_a_locked_hdf5_file(features, monkeypatch):
    import fcntl

    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    with open(features, "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        refused(open_hdf5, features, r"a\.h5 is locked by another program, which may be writing it")
    open_hdf5(features).close()


@pytest.mark.parametrize(
    ("place", "content", "message"),
    [
        (8, b"\x09", "is damaged, or of a newer HDF5 format than h5py reads here: .*version"),
        (0, b"text", "is not an HDF5 file; expected a whole HDF5 file"),
    ],
)
def test_other_formats_than_hdf5_reads(features, place, content, message):
    whole = features.read_bytes()
    features.write_bytes(whole[:place] + content + whole[place + len(content) :])
    refused(open_hdf5, features, message)


def test_features_on_a_disk_that_fails(features, monkeypatch):
    lazy = LazyFeatures(features)

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    if not hasattr(os, "preadv"):
        pytest.skip("reads through HDF5")
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(DataError, match=r"cannot read .*a\.h5: Input/output error"):
        lazy[:]
