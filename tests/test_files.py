import errno
import os
import stat

import pytest

from xpcap.errors import DataError
from xpcap.files import append, new_file, new_folder, remove_parts


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a" / "file"
    for content in ("one", "two"):
        with new_file(path) as temporary:
            temporary.write_text(content)
            assert temporary.parent == path.parent
        assert path.read_text() == content
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(DataError, match=r"cannot write .*file: no space left"):
        with new_file(path) as temporary:
            temporary.write_text("half")
            full()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with new_folder(tmp_path / "good") as folder:
        (folder / "x").touch()
        assert not (tmp_path / "good").exists()
    with pytest.raises(DataError, match="no space left"):
        with new_folder(tmp_path / "bad") as folder:
            (folder / "x").touch()
            full()
    with pytest.raises(DataError, match=r"cannot write .*[/\\]bad[/\\]y: no space left"):
        with new_folder(tmp_path / "bad") as folder, new_file(folder / "y"):
            full()
    assert [p.name for p in tmp_path.iterdir()] == ["good"]
    assert [p.name for p in (tmp_path / "good").iterdir()] == ["x"]


def test_what_comes_as_soon_as_a_folder_is_made_leaves_none(tmp_path, monkeypatch):
    """A signal, for one: it may come between any two operations."""
    make = os.mkdir

    def interrupted(*args, **kwargs):
        make(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    with new_folder(tmp_path / "mine") as folder:
        (folder / "x").touch()
    with pytest.raises(DataError, match="exists and is not an empty folder"):
        with new_folder(tmp_path / "mine"):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="exists and is not an empty folder"):
        with new_folder(tmp_path / "file"):
            pass


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write .*file/out"):
        with new_folder(tmp_path / "file" / "out"):
            pass


def test_what_is_added_is_added_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    append(path, b"one\n")
    append(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
    append(path, b"three\n", 4)  # what follows is dropped
    assert path.read_bytes() == b"one\nthree\n"
    for where in ("os.fsync", "os.truncate"):  # and then not even that can be taken back
        monkeypatch.setattr(where, full)
        with pytest.raises(DataError, match=r"cannot write .*file: no space left"):
            append(path, b"four\n")
        assert path.read_bytes().startswith(b"one\nthree\n")
        if where == "os.fsync":
            assert path.read_bytes() == b"one\nthree\n"
    monkeypatch.undo()
    append(path, b"five\n", 10)
    assert path.read_bytes() == b"one\nthree\nfive\n"
    append(path, b"six\n", 1000)  # as long as it never was
    assert path.read_bytes() == b"one\nthree\nfive\nsix\n"


def test_parts_of_the_dead_are_removed(tmp_path):
    parts = [".a.1.part", ".b-1.7.part", ".b-22.8.part"]
    others = ["a", "a.part", ".a.part", ".ab.1.part", ".c.1.part", ".a.1.parts", ".bak"]
    for name in parts + others:
        (tmp_path / name).touch()
    for name in ("a", "b-*"):
        remove_parts(tmp_path, name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_a_file_system_that_cannot_wait_for_a_folder_is_put_up_with(tmp_path, monkeypatch):
    def unable(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("os.fsync", unable)
    with new_file(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "file").read_text() == "whole"
