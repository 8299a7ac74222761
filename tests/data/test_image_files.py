import pytest

from xpcap.data.image_files import find_images
from xpcap.errors import DataError


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("a.jpg", "photos/10.png", "photos/2.PNG", "photos/more/1.jpeg", "photos/.x.png",
                 "photos/notes.txt", "photos/.hidden/1.png", "empty/readme.md"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["a.jpg"], ["a.jpg"]),
        (["photos"], ["photos/2.PNG", "photos/10.png", "photos/more/1.jpeg"]),
        (["photos/*.png"], ["photos/10.png"]),
        (["photos/more", "a.jpg", "photos/*", "a.jpg"],
         ["photos/more/1.jpeg", "a.jpg", "photos/2.PNG", "photos/10.png", "photos/notes.txt"]),
        (["**/*.jp*g"], ["a.jpg", "photos/more/1.jpeg"]),
        (["absent.jpg"], ["absent.jpg"]),  # opening it names it
    ],
)  # fmt: skip
def test_files_folders_and_patterns(place, arguments, found):
    assert [path.as_posix() for path in find_images(arguments)] == found


def test_a_file_whose_name_looks_like_a_pattern(place):
    (place / "[1].png").touch()
    assert [path.name for path in find_images(["[1].png"])] == ["[1].png"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("https://example.org/a.jpg", "is a URL; expected a file"),
        ("empty", "has no image"),
        ("*.gif", r"no file matches \*.gif"),
        ("x" * 300 + ".jpg", r"^cannot read x*\.jpg: File name too long$"),
    ],
)
def test_what_names_no_image(place, argument, message):
    with pytest.raises(DataError, match=message):
        find_images([argument])
