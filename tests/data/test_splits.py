import json

import pytest

from xpcap.data.captions_file import read_captions
from xpcap.errors import ConfigurationError, DataError

NAMES = ["1_a.jpg", "2_b.jpg", "3_c.jpg", "4_d.jpg"]


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "Flickr8k.token.txt"
    path.write_text("".join(f"{name}#{k}\tsome words .\n" for name in NAMES for k in range(5)))
    return path


def splits_of(source, **options):
    return [image.split for image in read_captions(source, **options).images]


@pytest.mark.parametrize(
    "names",
    [
        ("Flickr_8k.trainImages.txt", "Flickr_8k.devImages.txt", "Flickr_8k.testImages.txt"),
        ("flickr30k_train.txt", "flickr30k_val.txt", "flickr30k_test.txt"),
        ("train.txt", "valid.txt", "test.txt"),
        ("train_images.txt", "validation-images.txt", "Test_Images.TXT"),
    ],
)
@pytest.mark.parametrize("ending", [".jpg", ""])
def test_lists_of_images_beside_the_captions_name_splits(tmp_path, token, names, ending):
    for name, listed in zip(names, (["1_a", "3_c"], ["2_b"], ["4_d"]), strict=True):
        (tmp_path / name).write_bytes("".join(f"{image}{ending}\r\n" for image in listed).encode())
    (tmp_path / "train.csv").write_text("1_a.jpg\n")
    (tmp_path / "captions_test.txt").write_text("image,caption\n4_d.jpg,one\n")  # names no image
    found = read_captions(token)
    assert [image.split for image in found.images] == ["train", "val", "train", "test"]
    assert sorted(file.name for file in found.lists) == sorted(names)


def test_images_in_no_list_have_no_split(tmp_path, token):
    (tmp_path / "trainImages.txt").write_text("1_a.jpg\n\n2_b.jpg")
    assert splits_of(token) == ["train", "train", None, None]
    assert splits_of(token, splits={"none": "test"}) == ["train", "train", "test", "test"]


def test_lists_are_not_read_where_the_captions_name_splits(tmp_path):
    (tmp_path / "train.txt").write_text("b.jpg\nunknown.jpg\n")
    records = [{"image": name, "captions": ["x"], "split": "val"} for name in ("a.jpg", "b.jpg")]
    (tmp_path / "c.json").write_text(json.dumps(records))
    found = read_captions(tmp_path / "c.json")
    assert [image.split for image in found.images] == ["val", "val"]
    assert found.lists == ()


def test_names_in_lists_may_leave_out_folders(tmp_path):
    rows = "".join(f"photos/{name},one\n" for name in NAMES)
    (tmp_path / "c.csv").write_text(f"image,caption\n{rows}")
    (tmp_path / "train.txt").write_text("photos/1_a.jpg\nphotos/2_b\n3_c.jpg\n4_d\n")
    assert splits_of(tmp_path / "c.csv") == ["train"] * 4


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (
            {"train.txt": "1_a.jpg\n\n5_e.jpg\n"},
            r"train\.txt: line 3: no image is called '5_e.jpg' in \S*token\.txt; expected one",
        ),
        (
            {"train.txt": "1_a.jpg\n", "testImages.txt": "2_b.jpg\n1_a\n"},
            r"train\.txt: line 1: 1_a\.jpg is in the splits test and train; expected one",
        ),
    ],
)
def test_a_wrong_line_of_a_list_is_named(tmp_path, token, lists, message):
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_captions(token)


def test_a_name_of_several_images_is_refused(tmp_path):
    (tmp_path / "c.csv").write_text("image,caption\np/a.png,one\nq/a.png,two\n")
    (tmp_path / "train.txt").write_text("p/a.png\na.png\n")
    with pytest.raises(DataError, match=r"line 2: several images are called 'a\.png' in"):
        read_captions(tmp_path / "c.csv")


def test_other_names_are_mapped(tmp_path):
    given = ["eval", "Holdout", "", None, "none", " VAL ", "restval"]
    records = [
        {"image": f"{k}.png", "captions": ["x"], "split": split} for k, split in enumerate(given)
    ]
    file = tmp_path / "c.json"
    file.write_text(json.dumps(records))
    mapped = {"eval": "test", "holdout": "val"}
    assert splits_of(file, splits=mapped) == ["test", "val", None, None, None, "val", "train"]
    mapped |= {"none": "train", "val": "test"}
    assert splits_of(file, splits=mapped) == [
        "test", "val", "train", "train", "train", "test", "train",
    ]  # fmt: skip
    with pytest.raises(ConfigurationError, match="'eval' cannot mean 'dev'; expected train or val"):
        read_captions(file, splits={"eval": "dev"})
