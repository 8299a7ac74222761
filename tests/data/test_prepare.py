import json

import numpy
import pytest
from own import own
from PIL import Image

from xpcap.backend import open_backend
from xpcap.data.dataset import open_dataset
from xpcap.data.extractors import FilterBank
from xpcap.data.images import open_picture
from xpcap.data.prepare import prepare
from xpcap.data.vocabulary import Vocabulary, decode_captions, plain
from xpcap.errors import ConfigurationError, DataError
from xpcap.runs import open_run
from xpcap.training import Schedule
from xpcap.training.run import RunOptions, train_run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_tenth_image_is_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr("xpcap.data.extraction._BLOCK", 4)  # features are written in blocks
    file, _ = own(tmp_path)
    report = prepare(file, tmp_path / "out", extractor=FilterBank())
    dataset = open_dataset(tmp_path / "out")
    assert report.built.images == {"train": 23, "val": 2}
    assert report.built.captions == {"train": 46, "val": 4}
    assert report.min_count == 1
    urls = dataset.splits["val"].urls
    assert urls == [str(tmp_path / "photos" / f"{k}.png") for k in (9, 19)]
    captions = decode_captions(dataset.splits["val"].captions, dataset.vocabulary.idx_to_word)
    assert [plain(caption) for caption in captions][:2] == ["a black picture", "it is black"]
    assert dataset.references("val")[0] == ["A black picture.", "it is black"]
    for name, rows in (("val", [9, 19]), ("train", [k for k in range(25) if k not in (9, 19)])):
        pictures = [open_picture(tmp_path / "photos" / f"{k}.png") for k in rows]
        bank = FilterBank()
        expected = bank(numpy.stack([bank.prepare(picture) for picture in pictures]))
        numpy.testing.assert_allclose(dataset.splits[name].features, expected, rtol=1e-6)
    assert names(tmp_path) == ["captions.json", "out", "photos"]


def test_few_images_have_one_held_out(tmp_path):
    file, _ = own(tmp_path, 2)
    report = prepare(file, tmp_path / "out")
    assert report.built.images == {"train": 1, "val": 1}


def test_splits_of_the_file_and_images_without_one(tmp_path):
    file, _ = own(tmp_path, splits=["train", "test", "val", None, "test"])
    report = prepare(file, tmp_path / "out", extractor=FilterBank())
    assert report.built.images == {"train": 5, "val": 5, "test": 10}
    assert (report.without_split, report.held_out) == (5, False)
    dataset = open_dataset(tmp_path / "out")
    assert list(dataset.splits) == ["train", "val", "test"]
    test = dataset.splits["test"]
    rows = [k for k in range(25) if k % 5 in (1, 4)]
    assert list(test.urls) == [str(tmp_path / "photos" / f"{k}.png") for k in rows]
    assert dataset.image_ids("test") == [f"photos/{k}.png" for k in rows]
    pictures = [open_picture(tmp_path / "photos" / f"{k}.png") for k in rows]
    bank = FilterBank()
    expected = bank(numpy.stack([bank.prepare(picture) for picture in pictures]))
    numpy.testing.assert_allclose(test.features[:], expected, rtol=1e-6)
    report = prepare(file, tmp_path / "more", splits={"none": "train", "test": "train"})
    assert report.built.images == {"train": 20, "val": 5}
    assert report.without_split == 0


def test_the_vocabulary_comes_from_the_training_captions_only(tmp_path):
    file, records = own(tmp_path, splits=["train", "val", "test"])
    records[1]["captions"], records[2]["captions"] = ["a validated picture"], ["a tested picture"]
    file.write_text(json.dumps(records))
    prepare(file, tmp_path / "out")
    words = json.loads((tmp_path / "out" / "coco2014_vocab.json").read_text())["word_to_idx"]
    assert "picture" in words
    assert not {"validated", "tested"} & words.keys()


@pytest.mark.parametrize("splits", [None, ["train", "test", None]])
def test_without_val_every_tenth_usable_training_image_is_held_out(tmp_path, splits):
    file, records = own(tmp_path, 75, splits)
    step = 3 if splits else 1
    train = records[::step]
    train[9]["captions"] = ["..."]  # no caption
    train[10]["captions"] = ["much too long a caption"]
    (tmp_path / train[11]["image"]).write_bytes(b"broken")
    (tmp_path / train[12]["image"]).unlink()
    file.write_text(json.dumps(records))
    out = tmp_path / "out"
    report = prepare(file, out, extractor=FilterBank(), max_words=3, skip_broken=True)
    assert report.held_out
    assert report.without_captions == 1
    assert [broken.path.name for broken in report.broken] == [
        train[k]["image"].removeprefix("photos/") for k in (11, 12)
    ]
    usable = [image for k, image in enumerate(train) if k not in (9, 10, 11, 12)]
    dataset = open_dataset(out)
    assert dataset.image_ids("val") == [image["image"] for image in usable[9::10]]
    assert train[10]["image"] in dataset.image_ids("train")  # it has a caption, for evaluation
    assert report.built.images["train"] == len(train) - 3 - len(usable) // 10
    assert report.built.images.get("test", 0) == (25 if splits else 0)


@pytest.mark.parametrize("name", ["val", "test"])
def test_splits_that_are_named_are_not_replaced(tmp_path, name):
    file, records = own(tmp_path, splits=["train", name])
    for record in records[1::2]:
        record["captions"] = ["🙂", ""]
    file.write_text(json.dumps(records))
    if name == "val":
        with pytest.raises(DataError, match="no image with a caption for 'val'"):
            prepare(file, tmp_path / "out")
    else:
        report = prepare(file, tmp_path / "out")
        assert report.built.images == {"train": 12, "val": 1}
        assert report.without_captions == 12


def test_lists_of_images_give_the_splits(tmp_path):
    own(tmp_path)
    rows = [f"{k}.png#{j}\tA picture .\n" for k in range(25) for j in range(5)]
    (tmp_path / "Flickr8k.token.txt").write_text("".join(rows) + "7.png.1#0\tNo such picture .\n")
    for name, some in (("train", range(20)), ("dev", range(20, 22)), ("test", range(22, 25))):
        lines = "".join(f"{k}.png\n" for k in some)
        (tmp_path / f"Flickr_8k.{name}Images.txt").write_text(lines)
    token, options = tmp_path / "Flickr8k.token.txt", {"images": tmp_path / "photos"}
    report = prepare(token, tmp_path / "out", extractor=FilterBank(), **options)
    assert report.built.images == {"train": 20, "val": 2, "test": 3}
    assert report.without_split == 1
    assert [file.name for file in report.lists] == [
        f"Flickr_8k.{name}Images.txt" for name in ("dev", "test", "train")
    ]


def test_a_folder_of_images_and_texts(tmp_path):
    own(tmp_path)
    for k in range(25):
        (tmp_path / "photos" / f"{k}.txt").write_text(f"Picture {k}.\nA picture.\n")
    report = prepare(tmp_path / "photos", tmp_path / "out", extractor=FilterBank())
    assert report.built.images == {"train": 23, "val": 2}
    dataset = open_dataset(tmp_path / "out")
    assert dataset.image_ids("val") == ["9.png", "19.png"]
    assert dataset.references("val")[0] == ["Picture 9.", "A picture."]


def test_captions_without_a_word_count_nowhere(tmp_path):
    file, records = own(tmp_path, 4, splits=["train", "val"])
    records[0]["captions"] = ["...", "a red picture", "🙂"]
    records[1]["captions"] = ["..."]
    file.write_text(json.dumps(records))
    report = prepare(file, tmp_path / "out", extractor=FilterBank())
    assert report.without_captions == 1
    assert report.built.images == {"train": 2, "val": 1}
    dataset = open_dataset(tmp_path / "out")
    assert dataset.references("train")[0] == ["a red picture"]
    stored = json.loads((tmp_path / "out" / "references.json").read_text())
    assert stored["train"][0]["captions"] == ["...", "a red picture", "🙂"]  # as written


def test_without_an_extractor_there_are_no_features(tmp_path):
    file, _ = own(tmp_path)
    prepare(file, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*fc7*"))
    with pytest.raises(DataError, match=r"train2014_vgg16_fc7_pca\.h5"):
        open_dataset(tmp_path / "out")
    assert "extractor" not in json.loads((tmp_path / "out" / "dataset.json").read_text())


def test_urls_are_cocos_without_an_extractor(tmp_path):
    content = {
        "images": [
            {"id": k, "file_name": f"{k}.jpg", "coco_url": f"http://localhost/{k}"}
            for k in range(12)
        ],
        "annotations": [{"image_id": k, "caption": "a thing"} for k in range(12)],
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    prepare(tmp_path / "c.json", tmp_path / "out")
    assert (tmp_path / "out" / "val2014_urls.txt").read_text() == "http://localhost/9\n"
    stored = json.loads((tmp_path / "out" / "references.json").read_text())
    assert stored["val"] == [{"id": 9, "captions": ["a thing"]}]


def test_images_and_captions_left_out_are_counted(tmp_path):
    file, records = own(tmp_path, 30)
    records[0]["captions"] = []
    records[1]["captions"] = ["...", "one two three four five six", "a red picture"]
    (tmp_path / "photos" / "2.png").write_bytes(b"broken")
    (tmp_path / "photos" / "29.png").unlink()
    file.write_text(json.dumps(records))
    report = prepare(file, tmp_path / "out", extractor=FilterBank(), skip_broken=True, max_words=5)
    assert report.without_captions == 1
    assert (report.built.empty, report.built.too_long) == (1, 1)
    assert [broken.path.name for broken in report.broken] == ["2.png", "29.png"]
    dataset = open_dataset(tmp_path / "out")
    assert sum(report.built.images.values()) == 27
    assert not any("/2.png" in url for url in dataset.splits["train"].urls)
    bank = FilterBank()
    for split in dataset.splits.values():
        for url, row in zip(split.urls, split.features, strict=True):
            expected = bank(bank.prepare(open_picture(tmp_path.__class__(url)))[None])[0]
            numpy.testing.assert_allclose(row, expected, rtol=1e-6)


@pytest.mark.parametrize(("count", "wanted"), [(None, 1), (30, 30)])
def test_min_count_of_words(tmp_path, count, wanted):
    file, _ = own(tmp_path, 40)
    report = prepare(file, tmp_path / "out", min_count=count)
    assert report.min_count == wanted
    assert (report.built.unknown > 0.2) == (count is not None)


def test_many_captions_drop_rare_words(tmp_path):
    records = [{"image": f"{k}.png", "captions": ["a thing"] * 90} for k in range(70)]
    records[0]["captions"] = ["rare thing"] * 4 + ["frequent thing"] * 5
    (tmp_path / "c.json").write_text(json.dumps(records))
    report = prepare(tmp_path / "c.json", tmp_path / "out")
    assert report.min_count == 5
    words = json.loads((tmp_path / "out" / "coco2014_vocab.json").read_text())["word_to_idx"]
    assert "frequent" in words
    assert "rare" not in words


def test_a_vocabulary_can_be_given(tmp_path):
    file, _ = own(tmp_path)
    prepare(file, tmp_path / "first")
    report = prepare(file, tmp_path / "out", vocabulary=tmp_path / "first" / "coco2014_vocab.json")
    assert report.built.unknown == 0


def test_captions_in_other_scripts_keep_their_words(tmp_path):
    said = ["Größere Äpfel", "больше яблок", "बड़े सेब", "más manzanas"]
    records = [{"image": f"{k}.png", "captions": said} for k in range(3)]
    (tmp_path / "c.json").write_text(json.dumps(records), encoding="utf-8")
    prepare(tmp_path / "c.json", tmp_path / "out")
    vocabulary = json.loads((tmp_path / "out" / "coco2014_vocab.json").read_text())
    said_words = {word for caption in said for word in caption.lower().split()}
    assert said_words <= set(vocabulary["word_to_idx"])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            lambda r: r[3].update(image="photos/none.png"),
            {},
            r"none\.png, which does not exist; expected .*--images; --skip-br",
        ),
        (lambda r: [i.update(image=i["image"] + "x") for i in r], {}, r"\(and 24 more\)"),
        (lambda r: r.__delitem__(slice(1, None)), {}, "no image with a caption for 'train'"),
        (lambda r: [i.update(captions=[]) for i in r], {}, "no image with a caption for 'train'"),
        (
            lambda r: r[0].update(split="test"),
            {},
            "no image with a caption for 'train'; .*; 24 have no split: --splits none=train",
        ),
        (
            lambda r: [i.update(captions=["!"]) for i in r],
            {},
            "no image with a caption for 'train'",
        ),
        (
            lambda r: None,
            {"max_words": 1},
            r"no training image has a caption of 1 to 1 words; expected .*\(--max-words\)",
        ),
        (lambda r: None, {"min_count": 0}, "min-count must be at least 1, got 0"),
        (lambda r: None, {"max_words": 0}, "max-words must be in 1"),
        (lambda r: None, {"splits": {"a": "dev"}}, "'a' cannot mean 'dev'; expected train or"),
    ],
)
def test_invalid_input_is_named_and_nothing_is_left(tmp_path, change, options, message):
    file, records = own(tmp_path)
    change(records)
    file.write_text(json.dumps(records))
    with pytest.raises((DataError, ConfigurationError), match=message) as caught:
        prepare(file, tmp_path / "out", extractor=FilterBank(), **options)
    assert "\n" not in str(caught.value)
    assert "out" not in names(tmp_path)


def test_an_existing_folder_is_refused_before_extraction(tmp_path):
    file, _ = own(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.txt").write_text("kept")

    class Never(FilterBank):
        def __call__(self, images):
            raise AssertionError

    with pytest.raises(DataError, match="exists and is not an empty folder"):
        prepare(file, tmp_path / "out", extractor=Never())
    assert names(tmp_path / "out") == ["kept.txt"]


def test_a_broken_image_is_refused_and_finished_rows_are_kept(tmp_path):
    file, _ = own(tmp_path, 80)
    broken = tmp_path / "photos" / "70.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-30])
    with pytest.raises(DataError, match=r"70\.png cannot be opened as an image"):
        prepare(file, tmp_path / "out", extractor=FilterBank())
    assert "out" not in names(tmp_path)
    broken.write_bytes(whole)
    told = []
    prepare(file, tmp_path / "out", extractor=FilterBank(), progress=lambda *a: told.append(a))
    assert told[0][1] > 32  # the pictures before were not opened once more
    assert names(tmp_path) == ["captions.json", "out", "photos"]


def test_own_images_train_a_run_that_captions_a_new_one(tmp_path):
    file, _ = own(tmp_path, 60, captions=1)
    prepare(file, tmp_path / "out", extractor=FilterBank())
    options = RunOptions(
        schedule=Schedule(epochs=40), hidden=24, wordvec=12, batch_size=16, lr=1e-2
    )
    train_run(tmp_path / "out", tmp_path / "run", options, open_backend("cpu"))
    run = open_run(tmp_path / "run", "cpu")
    for colour in ("red", "blue"):
        Image.new("RGB", (123, 77), colour).save(tmp_path / "new.png")
        features = run.features_of([tmp_path / "new.png"])
        assert run.caption(features) == [f"a {colour} picture"]


def test_images_of_another_folder_are_refused(tmp_path):
    file, _ = own(tmp_path)
    (tmp_path / "else").mkdir()
    for skip, message in ((False, r"\(and 24 more\)"), (True, "none of its 25 images can be open")):
        with pytest.raises(DataError, match=message):
            options = {"images": tmp_path / "else", "skip_broken": skip}
            prepare(file, tmp_path / "out", extractor=FilterBank(), **options)
        assert "out" not in names(tmp_path)


def test_a_vocabulary_of_none_of_the_words_is_refused(tmp_path):
    file, _ = own(tmp_path)
    Vocabulary.build([["größere", "äpfel"]]).write(tmp_path / "v.json")
    message = "no word of its 50 captions is among the 6 entries of the vocabulary; expected"
    with pytest.raises(DataError, match=message):
        prepare(file, tmp_path / "out", vocabulary=tmp_path / "v.json")
    with pytest.raises(DataError, match=r"among the 4 entries .* or a lower --min-count"):
        prepare(file, tmp_path / "out", min_count=1000)
