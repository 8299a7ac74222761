import json

import pytest

from xpcap.data.captions_file import read_captions
from xpcap.errors import DataError


def written(tmp_path, content, name="captions.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def as_rows(images):
    return [(image.path.name, image.id, image.split, image.captions) for image in images]


def test_own_json(tmp_path):
    file = written(
        tmp_path,
        [
            {"image": "a.png", "captions": ["one", "Two."], "split": "val"},
            {"image": "deep/b.png", "captions": []},
            {"image": "/absolute/c.png", "captions": ["x"], "split": "train", "more": 1},
        ],
    )
    images = read_captions(file)
    assert [image.path for image in images] == [
        tmp_path / "a.png",
        tmp_path / "deep" / "b.png",
        tmp_path.__class__("/absolute/c.png"),
    ]
    assert as_rows(images) == [
        ("a.png", 0, "val", ["one", "Two."]),
        ("b.png", 1, None, []),
        ("c.png", 2, "train", ["x"]),
    ]
    assert read_captions(file, tmp_path / "else")[0].path == tmp_path / "else" / "a.png"


def test_an_image_named_twice_has_all_its_captions(tmp_path):
    file = written(
        tmp_path,
        [
            {"image": "a.png", "captions": ["one"]},
            {"image": "b.png", "captions": ["two"]},
            {"image": "a.png", "captions": ["three"], "split": "val"},
            {"image": "a.png", "captions": ["four"]},
        ],
    )
    assert as_rows(read_captions(file)) == [
        ("a.png", 0, "val", ["one", "three", "four"]),
        ("b.png", 1, None, ["two"]),
    ]


def test_csv(tmp_path):
    content = '\ufeffimage, caption ,split\na.png,"one, two",\nb.png,Größe,val\na.png,three,\n'
    assert as_rows(read_captions(written(tmp_path, content, "captions.CSV"))) == [
        ("a.png", 0, None, ["one, two", "three"]),
        ("b.png", 1, "val", ["Größe"]),
    ]


def test_csv_without_splits(tmp_path):
    file = written(tmp_path, "caption;image\n".replace(";", ",") + "one,a.png\n", "c.csv")
    assert as_rows(read_captions(file)) == [("a.png", 0, None, ["one"])]


def test_coco(tmp_path):
    content = {
        "images": [
            {"id": 40, "file_name": "40.jpg", "coco_url": "http://localhost/40"},
            {"id": 7, "file_name": "7.jpg"},
        ],
        "annotations": [
            {"image_id": 7, "caption": "one"},
            {"image_id": 40, "caption": "two"},
            {"image_id": 7, "caption": "three"},
        ],
    }
    images = read_captions(written(tmp_path, content))
    assert as_rows(images) == [
        ("40.jpg", 40, None, ["two"]),
        ("7.jpg", 7, None, ["one", "three"]),
    ]
    assert [image.url for image in images] == ["http://localhost/40", ""]


def test_karpathy(tmp_path):
    def image(name, split, **more):
        return {
            "filename": name,
            "split": split,
            "sentences": [{"raw": "A."}, {"raw": "B"}],
            **more,
        }

    content = {
        "dataset": "coco",
        "images": [
            image("1.jpg", "restval", filepath="val2014", cocoid=11),
            image("2.jpg", "train"),
            image("3.jpg", "test"),
        ],
    }
    images = read_captions(written(tmp_path, content))
    assert as_rows(images) == [
        ("1.jpg", 11, "train", ["A.", "B"]),
        ("2.jpg", 1, "train", ["A.", "B"]),
        ("3.jpg", 2, "test", ["A.", "B"]),
    ]
    assert images[0].path == tmp_path / "val2014" / "1.jpg"


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ([], "c.json", "names no image"),
        ("{", "c.json", "is not JSON"),
        (3, "c.json", "expected a list of objects with 'image'"),
        ({"pictures": []}, "c.json", "expected a list of objects"),
        ([3], "c.json", r"entry 0: expected 'image', a text"),
        ([{"image": "a", "captions": "one"}], "c.json", r"entry 0: expected 'captions', a list"),
        ([{"image": "a", "captions": [1]}], "c.json", r"entry 0: expected 'captions', a list"),
        ([{"image": " ", "captions": []}], "c.json", "not a valid file name"),
        ([{"image": "a\nb", "captions": []}], "c.json", "not a valid file name"),
        ([{"image": "a\0b", "captions": []}], "c.json", "not a valid file name"),
        ([{"image": "a", "captions": [], "split": "dev"}], "c.json", "split is 'dev'; expected tr"),
        ([{"image": "a", "captions": [], "split": []}], "c.json", r"split is \[\]"),
        (
            [{"image": "a", "captions": [], "split": s} for s in ("train", "val")],
            "c.json",
            "is in the splits train and val",
        ),
        ("picture,caption\n", "c.csv", "no column 'image'"),
        ("", "c.csv", "no column 'caption'"),
        ("image,caption\na\n", "c.csv", "line 2: expected 'caption'"),
        ('image,caption\na,"b\n', "c.csv", "is not a CSV file"),
        ("image,caption\na,b c,d\n", "c.csv", 'line 2 has more fields .* in "quotes"'),
        ([{"image": "a\u2028b", "captions": []}], "c.json", "not a valid file name"),
        ('[{"image": "a\\ud800", "captions": []}]', "c.json", "not a valid file name"),
        (
            [
                {"image": i, "captions": [], "split": s}
                for i, s in (("p/1", "val"), ("p/../p/1", "train"))
            ],
            "c.json",
            "is in the splits val and train",
        ),
        ({"images": 3, "annotations": []}, "c.json", "expected 'images', a list"),
        (
            {"images": [{"id": 1}], "annotations": []},
            "c.json",
            r"images\[0\]: expected 'file_name'",
        ),
        (
            {"images": [{"id": "1", "file_name": "a"}], "annotations": []},
            "c.json",
            r"images\[0\]: expected 'id', an integer",
        ),
        (
            {"images": [{"id": 1, "file_name": n} for n in "ab"], "annotations": []},
            "c.json",
            "id 1 occurs twice",
        ),
        (
            {"images": [], "annotations": [{"image_id": 1, "caption": "a"}]},
            "c.json",
            "image 1 is not among",
        ),
        ({"images": {}}, "c.json", "expected 'images', a list"),
        ({"images": [{"filename": "a"}]}, "c.json", r"images\[0\]: expected 'split'"),
        (
            {"images": [{"filename": "a", "split": "val", "sentences": [{}]}]},
            "c.json",
            r"sentences\[0\]: expected 'raw'",
        ),
    ],
)
def test_an_invalid_record_is_named(tmp_path, content, name, message):
    with pytest.raises(DataError, match=message) as caught:
        read_captions(written(tmp_path, content, name))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_in_another_encoding(tmp_path):
    (tmp_path / "c.csv").write_bytes("image,caption\na,Größe\n".encode("latin-1"))
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        read_captions(tmp_path / "c.csv")
    with pytest.raises(DataError, match="No such file"):
        read_captions(tmp_path / "none.csv")
