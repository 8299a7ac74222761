import errno

import pytest

from xpcap.errors import DataError
from xpcap.files import new_file, new_folder


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
