import json
import math

import numpy
import pytest

from xpcap.data.coco_json import build_from_coco
from xpcap.data.dataset import open_dataset
from xpcap.data.vocabulary import decode_captions, plain
from xpcap.errors import ConfigurationError, DataError


def annotation_files(folder, count=10):
    """Ten images of 100 x 50, ids descending; image 5 (position 4) has two cats and a dog."""
    ids = list(range(count, 0, -1))
    captions = {
        "images": [
            {"id": k, "width": 100, "height": 50, "coco_url": f"http://localhost/{k}"} for k in ids
        ],
        "annotations": [
            {"image_id": k, "caption": caption}
            for k in ids
            for caption in (f"A cat, number {k}!", "one two three four five", "...")
        ],
    }
    instances = {
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            {"image_id": 5, "category_id": 4, "bbox": [10, 10, 20, 20], "area": 400},
            {"image_id": 5, "category_id": 4, "bbox": [60, 0, 40, 50], "area": 2000.0},
            {"image_id": 5, "category_id": 9, "bbox": [0, 40, 10, 10], "area": 100},
            {"image_id": 777, "category_id": 9, "bbox": [0, 0, 1, 1], "area": 1},
        ],
    }
    paths = folder / "captions.json", folder / "instances.json"
    for path, content in zip(paths, (captions, instances), strict=True):
        path.write_text(json.dumps(content))
    return paths, captions, instances


def test_every_fifth_image_in_ascending_id_is_for_validation(tmp_path):
    paths, *_ = annotation_files(tmp_path)
    report = build_from_coco(*paths, tmp_path / "out", min_count=1, max_words=4)
    dataset = open_dataset(tmp_path / "out")
    assert dataset.splits["val"].urls == ["http://localhost/5", "http://localhost/10"]
    assert [url[-1] for url in dataset.splits["train"].urls] == list("12346789")
    assert report.images == {"train": 8, "val": 2}
    assert report.captions == {"train": 8, "val": 2}
    assert (report.too_long, report.empty) == (10, 10)
    # 5 and 10 occur in validation captions only: 2 of 40 words, <END> not counted
    assert report.unknown == pytest.approx(2 / 40)
    said = decode_captions(dataset.splits["val"].captions, dataset.vocabulary.idx_to_word)
    assert [plain(s) for s in said] == ["a cat number <UNK>", "a cat number <UNK>"]
    assert dataset.splits["train"].captions.shape == (8, 6)


def test_references_keep_every_caption_as_written(tmp_path):
    paths, *_ = annotation_files(tmp_path)
    build_from_coco(*paths, tmp_path / "out", max_words=4)
    stored = json.loads((tmp_path / "out" / "references.json").read_text())
    assert stored["val"][0] == {
        "id": 5,
        "captions": ["A cat, number 5!", "one two three four five", "..."],
    }


def test_box_features_by_hand(tmp_path):
    paths, *_ = annotation_files(tmp_path)
    build_from_coco(*paths, tmp_path / "out")
    features = open_dataset(tmp_path / "out").splits["val"].features
    cat = [math.log(3), math.sqrt(2000 / 5000), math.sqrt(2400 / 5000), 80 / 100, 25 / 50]
    dog = [math.log(2), math.sqrt(100 / 5000), math.sqrt(100 / 5000), 5 / 100, 45 / 50]
    numpy.testing.assert_allclose(features[0], cat + dog, rtol=1e-6)
    assert not features[1].any()


def test_words_need_their_count_in_training_captions(tmp_path):
    paths, *_ = annotation_files(tmp_path)
    build_from_coco(*paths, tmp_path / "out", min_count=8)
    words = open_dataset(tmp_path / "out").vocabulary.idx_to_word[4:]
    assert set(words) == {"a", "cat", "number", "one", "two", "three", "four", "five"}


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (0, lambda c: c.pop("images"), "expected 'images', a list"),
        (0, lambda c: c["images"][3].pop("id"), r"images\[3\]: expected 'id', an integer"),
        (0, lambda c: c["images"][0].update(width=0), r"images\[0\]: expected 'width' and"),
        (
            0,
            lambda c: c["annotations"][2].update(caption=7),
            r"annotations\[2\]: expected 'caption'",
        ),
        (0, lambda c: c["annotations"][0].update(image_id=99), "image 99 is not among 'images'"),
        (0, lambda c: c.update(annotations=[]), "no training image has a caption of 1 to 15"),
        (
            1,
            lambda c: c["annotations"][1].update(category_id=1),
            "category 1 is not in 'categories'",
        ),
        (
            1,
            lambda c: c["annotations"][0].update(bbox=[1, 2]),
            r"annotations\[0\]: expected 'bbox'",
        ),
        (1, lambda c: c["annotations"][0].update(area=math.nan), "finite numbers"),
        (1, lambda c: c["annotations"][0].update(area="1"), "expected 'area', a number"),
    ],
)
def test_a_wrong_record_is_named_and_nothing_is_left(tmp_path, file, change, message):
    paths, *contents = annotation_files(tmp_path)
    change(contents[file])
    paths[file].write_text(json.dumps(contents[file]))
    with pytest.raises(DataError, match=message) as caught:
        build_from_coco(*paths, tmp_path / "out")
    assert str(paths[file]) in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["captions.json", "instances.json"]


def test_other_invalid_input(tmp_path):
    paths, *_ = annotation_files(tmp_path)
    with pytest.raises(ConfigurationError, match="min-count must be at least 1"):
        build_from_coco(*paths, tmp_path / "out", min_count=0)
    paths[1].write_text("[]")
    with pytest.raises(DataError, match="expected 'categories', a list"):
        build_from_coco(*paths, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    annotation_files(tmp_path)
    with pytest.raises(DataError, match="exists and is not an empty folder"):
        build_from_coco(*paths, tmp_path / "full")


def test_the_real_files(coco_dir, tmp_path):
    report = build_from_coco(
        coco_dir / "captions_val2017.json",
        coco_dir / "instances_val2017.json",
        tmp_path / "coco",
        vocabulary=coco_dir / "coco2014_vocab.json",
    )
    assert report.images == {"train": 4000, "val": 1000}
    assert sum(report.captions.values()) + report.too_long + report.empty == 25014
    dataset = open_dataset(tmp_path / "coco")
    assert dataset.feature_dim == 400
    assert dataset.splits["train"].captions.shape[1] == 17
    features = numpy.concatenate([s.features for s in dataset.splits.values()])
    assert (features == 0).all(axis=1).sum() == 48  # images without any object


def test_annotations_of_other_images_are_refused(tmp_path):
    paths, captions, instances = annotation_files(tmp_path)

    def refused(message):
        paths[1].write_text(json.dumps(instances))
        with pytest.raises(DataError, match=message):
            build_from_coco(*paths, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    instances["images"] = captions["images"][:7]  # ids 10 to 4
    refused(r"instances.json: 'images' lacks 3 of the 10 images of .*captions.json, such as id 1;")
    instances["images"] = [{"id": k} for k in range(1, 30)]
    for box in instances["annotations"]:
        box["image_id"] += 100
    refused("none of its 4 boxes is in one of the 10 images of .*captions.json; expected annot")


def test_images_held_out_have_captions_to_train_on(tmp_path):
    paths, captions, _ = annotation_files(tmp_path)
    for note in captions["annotations"]:
        if note["image_id"] in (5, 10):
            note["caption"] = "..."
    paths[0].write_text(json.dumps(captions))
    build_from_coco(*paths, tmp_path / "out", min_count=1)
    assert open_dataset(tmp_path / "out").image_ids("val") == [6]
    paths, *_ = annotation_files(tmp_path, 3)
    instances = json.loads(paths[1].read_text())
    instances["annotations"][0]["image_id"] = 2
    paths[1].write_text(json.dumps(instances))
    report = build_from_coco(*paths, tmp_path / "few", min_count=1)
    assert report.images == {"train": 2, "val": 1}
