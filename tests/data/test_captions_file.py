import gzip
import json
from pathlib import Path

import pytest
from PIL import Image

from xpcap.data.captions_file import read_captions
from xpcap.errors import ConfigurationError, DataError


def written(tmp_path, content, name="captions.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def as_rows(captions):
    return [(image.path.name, image.id, image.split, image.captions) for image in captions.images]


def rows_of(tmp_path, content, name="captions.json", **options):
    return as_rows(read_captions(written(tmp_path, content, name), **options))


def test_own_json(tmp_path):
    file = written(
        tmp_path,
        [
            {"image": "a.png", "captions": ["one", "Two."], "split": "val"},
            {"image": "deep/b.png", "captions": [], "id": 17, "split": None},
            {"image": "/absolute/c.png", "captions": ["x"], "split": "train", "id": "c", "more": 1},
        ],
    )
    assert [image.path for image in read_captions(file).images] == [
        tmp_path / "a.png",
        tmp_path / "deep" / "b.png",
        Path("/absolute/c.png"),
    ]
    assert as_rows(read_captions(file)) == [
        ("a.png", "a.png", "val", ["one", "Two."]),
        ("b.png", 17, None, []),
        ("c.png", "c", "train", ["x"]),
    ]
    assert read_captions(file, tmp_path / "else").images[0].path == tmp_path / "else" / "a.png"


def test_an_image_named_twice_has_all_its_captions(tmp_path):
    content = [
        {"image": "a.png", "captions": ["one"]},
        {"image": "b.png", "captions": ["two"]},
        {"image": "./a.png", "captions": ["three"], "split": "val"},
        {"image": "a.png", "captions": ["four"]},
    ]
    assert rows_of(tmp_path, content) == [
        ("a.png", "a.png", "val", ["one", "three", "four"]),
        ("b.png", "b.png", None, ["two"]),
    ]


LINES = [
    {"image": "a.png", "captions": ["one", "two"], "split": "val"},
    {"image": "b.png", "caption": "three"},
    {"image": "b.png", "caption": "four \u2028"},
]


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.NDJSON", "captions.txt"])
def test_json_lines_of_captions_or_of_one_each(tmp_path, name):
    content = "\ufeff" + "\r\n".join(json.dumps(line, ensure_ascii=False) for line in LINES)
    assert rows_of(tmp_path, f"{content}\r\n\r\n", name) == [
        ("a.png", "a.png", "val", ["one", "two"]),
        ("b.png", "b.png", None, ["three", "four \u2028"]),
    ]


@pytest.mark.parametrize("name", ["metadata.jsonl", "one.json"])
def test_a_single_json_line_with_other_names_of_its_keys(tmp_path, name):
    content = '{"file_name": "a.png", "Text": "one"}\n'
    assert rows_of(tmp_path, content, name) == [("a.png", "a.png", None, ["one"])]


def test_csv(tmp_path):
    content = '\ufeffimage, caption ,split\na.png,"one, two",\nb.png,Größe,val\na.png,three,\n\n'
    assert rows_of(tmp_path, content, "captions.CSV") == [
        ("a.png", "a.png", None, ["one, two", "three"]),
        ("b.png", "b.png", "val", ["Größe"]),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    ("image", "caption"),
    [
        ("Image", "Caption"),
        ("filename", "comment"),
        ("FILE_NAME", "Sentence"),
        ("image_name", "text"),
        ("path", "caption"),
    ],
)
def test_tables_with_any_delimiter_and_known_names(tmp_path, delimiter, image, caption):
    rows = [
        ["ID", caption, "more", image, "Split"],
        ["7", f'"one {delimiter} ""two"""', "", "a.png", "Train"],
        ["9", "three", "x", "b.png", "dev"],
    ]
    content = "".join(delimiter.join(row) + "\r\n" for row in rows)
    assert rows_of(tmp_path, content, "captions.txt") == [
        ("a.png", 7, "train", [f'one {delimiter} "two"']),
        ("b.png", 9, "val", ["three"]),
    ]


def test_a_column_of_that_very_name_is_preferred(tmp_path):
    content = "path,image,text,caption\n/x/a.png,a.png,TEXT,one\n"
    assert rows_of(tmp_path, content, "c.csv") == [("a.png", "a.png", None, ["one"])]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["3", "3", "10"], [3, 10]),
        (["003", "003", "010"], ["003", "010"]),
        (["a", "", "b"], ["a", "b"]),
        (["1", "2", "3"], ["a.png", "b.png"]),  # ids of the captions
    ],
)
def test_ids_of_a_table(tmp_path, ids, expected):
    images = ["a.png", "a.png", "b.png"]
    rows = [f"{id_};{image};c" for id_, image in zip(ids, images, strict=True)]
    found = rows_of(tmp_path, "\n".join(["id;image;caption", *rows]), "c.csv")
    assert [id_ for _, id_, _, _ in found] == expected


FLICKR8K_TOKEN = """\
1000268201_693b08cb0e.jpg#0\tA red kite , high up .
1000268201_693b08cb0e.jpg#1\tSomebody says " go " .
2258277193_586949ec62.jpg.1#0\tA boat .
"""


def test_flickr8k_and_flickr30k_tokens(tmp_path):
    for name in ("Flickr8k.token.txt", "results_20130124.token"):
        assert rows_of(tmp_path, FLICKR8K_TOKEN, name) == [
            (
                "1000268201_693b08cb0e.jpg",
                "1000268201_693b08cb0e.jpg",
                None,
                ["A red kite , high up .", 'Somebody says " go " .'],
            ),
            ("2258277193_586949ec62.jpg.1", "2258277193_586949ec62.jpg.1", None, ["A boat ."]),
        ]


@pytest.mark.parametrize("first", ["[1] dog.jpg", "{1}.jpg", '["a"].jpg'])
def test_names_in_brackets_are_no_json(tmp_path, first):
    content = f"{first}#0\tA dog .\n{first}#1\tIt runs .\n2.jpg#0\tA cat .\n"
    found = rows_of(tmp_path, content, "results.token")
    assert [row[0] for row in found] == [first, "2.jpg"]


def test_flickr8k_as_on_kaggle(tmp_path):
    content = (
        "image,caption\n"
        "1000268201_693b08cb0e.jpg,A red kite high up .\n"
        '1000268201_693b08cb0e.jpg,"A red kite , high up ."\n'
        '1001773457_577c3a7d70.jpg,"""Go"" , she says ."\n'
    )
    assert rows_of(tmp_path, content, "captions.txt") == [
        (
            "1000268201_693b08cb0e.jpg",
            "1000268201_693b08cb0e.jpg",
            None,
            ["A red kite high up .", "A red kite , high up ."],
        ),
        (
            "1001773457_577c3a7d70.jpg",
            "1001773457_577c3a7d70.jpg",
            None,
            ['"Go" , she says .'],
        ),
    ]


def test_flickr30k_as_on_kaggle(tmp_path):
    content = (
        "image_name| comment_number| comment\n"
        "1000092795.jpg| 0| Two kites , one of them red .\n"
        '1000092795.jpg| 1| " Go " , she says .\n'
        "2199200615.jpg| 3| A kite over the grass .\n"
        "2199200615.jpg| 4   A kite crosses the grass .\n"  # as its authors wrote this line
    )
    assert rows_of(tmp_path, content, "results.csv") == [
        (
            "1000092795.jpg",
            "1000092795.jpg",
            None,
            ["Two kites , one of them red .", '" Go " , she says .'],
        ),
        (
            "2199200615.jpg",
            "2199200615.jpg",
            None,
            ["A kite over the grass .", "A kite crosses the grass ."],
        ),
    ]


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
    found = read_captions(written(tmp_path, content))
    assert as_rows(found) == [
        ("40.jpg", 40, None, ["two"]),
        ("7.jpg", 7, None, ["one", "three"]),
    ]
    assert [image.url for image in found.images] == ["http://localhost/40", ""]


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
            image("1.jpg", "restval", filepath="val2014", cocoid=11, imgid=0),
            image("2.jpg", "train", imgid=1),
            image("3.jpg", "test"),
        ],
    }
    found = read_captions(written(tmp_path, content))
    assert as_rows(found) == [
        ("1.jpg", 11, "train", ["A.", "B"]),
        ("2.jpg", 1, "train", ["A.", "B"]),
        ("3.jpg", "3.jpg", "test", ["A.", "B"]),
    ]
    assert found.images[0].path == tmp_path / "val2014" / "1.jpg"


def test_every_form_may_be_compressed(tmp_path):
    for name, content in (
        ("c.csv.gz", "image,caption\na.png,one\n"),
        ("c.jsonl.gz", '{"image": "a.png", "captions": ["one"]}'),
        ("c.json.gz", '[{"image": "a.png", "captions": ["one"]}]'),
        ("c.token.gz", "a.png#0\tone\n"),
        ("c.tsv", "image\tcaption\na.png\tone\n"),  # recognized without the ending
    ):
        (tmp_path / name).write_bytes(gzip.compress(content.encode()))
        assert as_rows(read_captions(tmp_path / name)) == [("a.png", "a.png", None, ["one"])]


def test_damaged_and_bomblike_compressed_files_are_refused(tmp_path):
    whole = gzip.compress(b"image,caption\n" + b"a.png,one\n" * 1000)
    bomb = gzip.compress(bytes(2**26 + 1))
    for content, message in (
        (whole[:-20], r"c\.csv\.gz is damaged or truncated"),
        (whole[:40] + b"\0" * 9 + whole[49:], r"c\.csv\.gz is damaged or truncated"),
        (bomb, r"c\.csv\.gz would take \d+ bytes of memory.*expected at most 100 times"),
    ):
        (tmp_path / "c.csv.gz").write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_captions(tmp_path / "c.csv.gz")


def make_images(folder, texts):
    """Write images, and the captions of those that have some beside them."""
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
        if text is not None:
            path.with_suffix(".txt").write_bytes(text)


def test_a_folder_of_images_with_texts_beside_them(tmp_path):
    texts = {
        "10.png": b"ten\n",
        "2.jpg": "\ufeffzwölf\r\n\r\n and one more \r\n".encode(),
        "more/3.png": None,
    }
    make_images(tmp_path, texts)
    (tmp_path / "README.txt").write_text("of no image")
    found = read_captions(tmp_path)
    assert sorted(as_rows(found)) == [
        ("10.png", "10.png", None, ["ten"]),
        ("2.jpg", "2.jpg", None, ["zwölf", "and one more"]),
        ("3.png", "more/3.png", None, []),
    ]
    assert {image.path for image in found.images} == {tmp_path / name for name in texts}


def test_folders_name_splits(tmp_path):
    names = ["train/a.png", "Validation/cats/b.png", "photos/test/c.png", "d.png"]
    make_images(tmp_path, dict.fromkeys(names, b"one"))
    found = {image.name: image.split for image in read_captions(tmp_path).images}
    assert found == dict(zip(names, ["train", "val", "test", None], strict=True))
    mapped = read_captions(tmp_path, splits={"none": "test", "photos": "train"}).images
    assert {image.name: image.split for image in mapped} == dict(
        zip(names, ["train", "val", "train", "test"], strict=True)
    )


def test_a_folder_without_texts_says_what_would_be_read(tmp_path):
    make_images(tmp_path, {"Images/a.png": None})
    with pytest.raises(DataError, match=r"found 1 images, none .* such as dog\.jpg and dog\.txt"):
        read_captions(tmp_path)
    written(tmp_path, "image,caption\na.png,one\n", "captions.txt")
    written(tmp_path, "a.png\n", "train.txt")
    with pytest.raises(DataError, match=r"is a folder; expected a captions file: \S*captions.txt$"):
        read_captions(tmp_path)
    with pytest.raises(ConfigurationError, match="--images goes with a captions file"):
        read_captions(tmp_path, tmp_path)


def test_images_are_found_beside_the_captions_or_in_a_folder_there(tmp_path):
    make_images(tmp_path, dict.fromkeys(["a.png", "images/a.png", "images/b.png"]))
    make_images(tmp_path / "else", dict.fromkeys(["b.png"]))
    file = written(tmp_path, "".join(f"{name}.png#0\tone\n" for name in "abc"), "c.token")

    def paths(images=None):
        found = read_captions(file, images).images
        return [str(image.path.relative_to(tmp_path)) for image in found]

    assert paths() == ["a.png", "images/b.png", "c.png"]
    assert paths(tmp_path / "else") == ["else/a.png", "else/b.png", "else/c.png"]
    (tmp_path / "images").rename(tmp_path / "Images")
    assert paths()[1].casefold() == "images/b.png"


def entry(**more):
    return {"image": "a", "captions": [], **more}


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ([], "c.json", "names no image"),
        ("{", "c.json", "is not JSON"),
        (3, "c.json", "line 1: found the columns '3'; expected one called image or filename"),
        (
            {"pictures": []},
            "c.json",
            "expected a list of objects with .*found only pictures",
        ),
        ([3], "c.json", r"entry 0: expected 'image', a text; found 3"),
        ([{"photo": "a", "captions": []}], "c.json", "'image', a text; found only photo, captions"),
        ([{"image": "a", "captions": "one"}], "c.json", r"entry 0: expected 'captions', a list"),
        ([{"image": "a", "captions": [1]}], "c.json", r"entry 0: expected 'captions', a list"),
        ([{"image": "a", "caption": ["1"]}], "c.json", r"entry 0: expected 'caption', a text"),
        ([entry(id=1.5)], "c.json", "expected 'id', an integer or a text; found 1.5"),
        ([entry(id=True)], "c.json", "expected 'id', an integer or a text; found True"),
        ([entry(id=1), entry(id=1, image="b")], "c.json", "/a and .*/b have the same id 1"),
        (
            [{"path": "b", "filename": "c", "captions": []}],
            "c.json",
            "entry 0: 'path' and 'filename' both hold the image; expected one column, 'image'",
        ),
        ('{"image": "a", "caption": "b"}\n{"image"\n', "c.txt", "line 2 is not JSON"),
        ('{"image"\n{"image": "a", "caption": "b"}\n', "c.jsonl", "line 1 is not JSON"),
        ('{"image": "a", "caption": "b"}\n\n{"image": 3}', "c.txt", "line 3: expected 'image'"),
        ([{"image": " ", "captions": []}], "c.json", "not a valid file name"),
        ([{"image": "a\nb", "captions": []}], "c.json", "not a valid file name"),
        ([{"image": "a\0b", "captions": []}], "c.json", "not a valid file name"),
        (
            [entry(split="eval")],
            "c.json",
            "0: split is 'eval'; expected .*--splits eval=train",
        ),
        ([entry(split=[])], "c.json", r"split is \[\]; expected train.*--splits NAME=train"),
        ([entry(split=s) for s in ("train", "val")], "c.json", "entry 1: .* train and val"),
        ("picture,comment\n", "c.csv", "line 1: found the columns 'picture', 'comment'; expected"),
        ("\n\na|b|caption\n", "c.csv", "line 3: found the columns 'a', 'b', 'caption'; expected"),
        ("just words\n", "c.txt", "line 1: found the columns 'just words'; expected one called"),
        ("image,text,comment\n", "c.csv", "line 1: 'text' and 'comment' both hold the caption"),
        ("image,caption,Caption\n", "c.csv", "line 1: 'caption' and 'caption' both hold"),
        ("", "c.csv", "is empty; expected images and captions"),
        (" \n", "c.json", "is empty; expected images and captions"),
        ("image,caption\na\n", "c.csv", "line 2: expected 'caption', a text; found 1 of 2 fields"),
        ('image,caption\nc,d\na,"b\n', "c.csv", "line 3: unexpected end of data; expected a field"),
        ('image,caption\na,"b" c\n', "c.csv", "line 2: ',' expected after '\"'; expected a field"),
        ("image,caption\na,b c,d\n", "c.csv", "line 2 has 3 fields.* contains a comma must be in"),
        ("image\tcaption\na\tb\tc\n", "c.tsv", "line 2 has 3 fields.* contains a tab must be in"),
        ("image,caption,split\na,b,eval\n", "c.csv", "line 2: split is 'eval'"),
        ("image|caption|id\na|b|1\nc|d|1", "c.csv", "have the same id 1"),
        ("a.jpg#0\tone\na.jpg#1 two\n", "c.token", r"line 2: .* 1\.jpg#0, a tab .*'a\.jpg#1 two'"),
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
            r"images\[0\]: expected 'id', an integer; found '1'",
        ),
        (
            {"images": [{"id": 1, "file_name": n} for n in "ab"], "annotations": []},
            "c.json",
            "id 1 occurs twice",
        ),
        (
            {"images": [{"id": k, "file_name": "a"} for k in (1, 2)], "annotations": []},
            "c.json",
            r"images\[1\]: .*a has the ids 1 and 2; expected one",
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
    with pytest.raises(DataError, match=r"c\.csv: line 2 is not text in UTF-8"):
        read_captions(tmp_path / "c.csv")
    with pytest.raises(DataError, match="No such file"):
        read_captions(tmp_path / "none.csv")
    make_images(tmp_path / "folder", {"a.png": "Größe".encode("latin-1")})
    with pytest.raises(DataError, match=r"a\.txt: line 1 is not text in UTF-8"):
        read_captions(tmp_path / "folder")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_with_any_line_ends(end, tmp_path):
    rows = ["image,caption", "a.jpg,a dog", '"b.jpg","a cat, asleep"', ""]
    (tmp_path / "captions.csv").write_bytes(end.join(rows).encode())
    found = read_captions(tmp_path / "captions.csv").images
    assert [image.captions for image in found] == [["a dog"], ["a cat, asleep"]]
