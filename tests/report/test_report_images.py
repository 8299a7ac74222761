import base64
import io
import os
from dataclasses import replace

import numpy
import pytest
from own import own
from PIL import Image
from tiny import make_tiny

from xpcap.data.coco_json import AnnotatedImage, box_features, object_features
from xpcap.data.dataset import Dataset, Split, open_dataset
from xpcap.data.extractors import FilterBank
from xpcap.data.prepare import prepare
from xpcap.data.scenes import make_scenes, read_picture
from xpcap.report.images import THUMBNAIL, boxes_of, categories_of, name_of, open_image, view


def view_of(dataset, row):
    return view(dataset, "val", row, open_image(dataset, "val", row))


def opened(address):
    kind, content = address.split(",", 1)
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == f"data:image/{picture.format.lower()};base64"
    return picture


def test_images_of_scenes_are_embedded_without_loss(tmp_path):
    make_scenes(tmp_path / "scenes", train=4, val=3)
    dataset = open_dataset(tmp_path / "scenes")
    for row in (2, 0):
        found = view_of(dataset, row)
        expected = read_picture(tmp_path / "scenes", "val", row)
        assert numpy.array_equal(numpy.array(opened(found.data)), expected)
        assert not found.link
        assert not found.boxes


@pytest.fixture
def mine(tmp_path):
    file, _ = own(tmp_path, count=6)
    prepare(file, tmp_path / "data", extractor=FilterBank())
    return open_dataset(tmp_path / "data")


def test_large_images_are_scaled_down(mine):
    path = mine.splits["val"].urls[0]
    Image.new("RGB", (2000, 500), "green").save(path)
    picture = opened(view_of(mine, 0).data)
    assert picture.size == (THUMBNAIL, THUMBNAIL // 4)
    assert picture.format == "JPEG"
    red, green, blue = picture.getpixel((9, 9))
    assert green > 100
    assert red < 20
    assert blue < 20


@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_a_missing_or_broken_image_is_left_out(mine, damage, tmp_path):
    path = tmp_path / mine.splits["val"].urls[0]
    path.unlink() if damage == "missing" else path.write_bytes(b"no picture")
    assert view_of(mine, 0).data == ""


def test_web_images_are_linked(tmp_path):
    dataset = open_dataset(make_tiny(tmp_path / "tiny"))
    found = view_of(dataset, 1)
    assert found.link == "http://localhost/val/1.png"
    assert not found.data
    assert categories_of(dataset) == []


def test_images_are_called_by_their_files_scenes_and_web_images_by_their_ids(mine, tmp_path):
    assert name_of(mine, mine.splits["val"].urls[0], 9) == "5.png"
    scenes = replace(mine, description={"name": "scenes", "pictures": "pictures.zip"})
    assert name_of(scenes, "pictures.zip/val/00007.png", 7) == "Scene 7"
    assert (
        name_of(mine, "http://images.cocodataset.org/val2017/000000000139.jpg", 139) == "Image 139"
    )


def test_boxes_are_decoded_from_the_features():
    image = AnnotatedImage(1, "")
    image.boxes = [(7, 0.04, 0.2, 0.3), (7, 0.25, 0.5, 0.6), (9, 0.36, 0.4, 0.4)]
    features = box_features(image, [3, 7, 9]).astype(numpy.float32)
    dog, cat = boxes_of(features, ["person", "cat", "dog"])
    assert (dog.category, cat.category) == ("dog", "cat")
    assert (dog.x, dog.y, dog.width, dog.height) == pytest.approx((0.4, 0.4, 0.6, 0.6))
    assert (cat.x, cat.y, cat.width, cat.height) == pytest.approx((0.5, 0.6, 0.5, 0.5))


@pytest.mark.skipif(os.name == "nt", reason="backslashes are no part of names there")
def test_backslashes_in_addresses_separate_folders_as_in_windows(tmp_path):
    file, _ = own(tmp_path, count=6)
    prepare(file, tmp_path / "data", extractor=FilterBank())
    (tmp_path / "photos").rename(tmp_path / "data" / "photos")
    urls = tmp_path / "data" / "val2014_urls.txt"
    urls.write_text("photos\\5.png\n")
    dataset = open_dataset(tmp_path / "data")
    assert opened(view_of(dataset, 0).data).size == (35, 20)
    assert name_of(dataset, dataset.splits["val"].urls[0], 1) == "5.png"
    make_scenes(tmp_path / "scenes", train=4, val=3)
    urls = tmp_path / "scenes" / "val2014_urls.txt"
    urls.write_text(urls.read_text().replace("/", "\\"))
    assert view_of(open_dataset(tmp_path / "scenes"), 2).data


def test_boxes_of_objects_are_decoded_in_their_order(tmp_path):
    images = [AnnotatedImage(1, ""), AnnotatedImage(2, "")]
    images[0].boxes = [(7, 0.04, 0.2, 0.3, 0.1, 0.4), (9, 0.36, 0.4, 0.4, 0.9, 0.4)]
    images[1].boxes = [(7, 0.1, 0.5, 0.5, 0.5, 0.2)]
    features = object_features(images, [3, 7, 9], 2)
    dog, cat = boxes_of(features[0], ["person", "cat", "dog"])
    assert (dog.category, dog.x, dog.y) == ("dog", pytest.approx(0.4), pytest.approx(0.4))
    assert (cat.category, cat.width, cat.height) == ("cat", pytest.approx(0.1), pytest.approx(0.4))
    assert [box.category for box in boxes_of(features[1], ["person", "cat", "dog"])] == ["cat"]
    split = Split(None, None, features, [])
    data = Dataset(tmp_path, None, {"train": split}, "fc7", {"categories": list("abc")})
    assert categories_of(data) == list("abc")
    assert categories_of(replace(data, description={"categories": list("abcd")})) == []
