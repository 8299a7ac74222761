import json

import h5py
import numpy
import pytest
from tiny import make_tiny

import xpcap
from xpcap.data.coco import load_coco_data
from xpcap.data.dataset import open_dataset
from xpcap.data.features import LazyFeatures, read_features
from xpcap.data.minibatch import sample_coco_minibatch
from xpcap.errors import DataError


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "tiny", kinds=("fc7", "pca"))


def replace(path, key, value):
    with h5py.File(path, "a") as file:
        if key in file:
            del file[key]
        if value is not None:
            file[key] = value


def test_a_folder_opens_with_what_was_written(tiny):
    dataset = open_dataset(tiny)
    train = dataset.splits["train"]
    assert dataset.kind == "pca"
    assert (len(train), len(dataset.splits["val"]), dataset.feature_dim) == (48, 24, 7)
    assert train.captions.dtype == train.image_idxs.dtype == numpy.int32
    assert train.features.dtype == numpy.float32
    assert train.features[13].tolist() == [1, 0, 0, 0, 0, 1, 0]
    assert train.urls[13] == "http://localhost/train/13.png"
    assert dataset.references("val")[1] == ["a red square", "there is a red square"]


def test_references_are_decoded_without_references_json(tiny):
    stored = open_dataset(tiny).references("val")
    (tiny / "references.json").unlink()
    (tiny / "dataset.json").unlink()
    dataset = open_dataset(tiny)
    assert dataset.references("val") == stored
    assert dataset.description == {"name": "tiny"}


def test_stored_references_are_read_once(tiny):
    dataset = open_dataset(tiny)
    first = dataset.references("val")
    first[0].clear()  # a list of the caller's own
    (tiny / "references.json").write_text("[")
    assert dataset.references("val")[0] == ["a red circle", "there is a red circle"]
    assert dataset.references("train")[1] == ["a red square", "there is a red square"]
    assert dataset.image_ids("val") == list(range(12))


def test_the_kind_of_features_is_chosen_or_found(tiny):
    assert open_dataset(tiny, "fc7").kind == "fc7"
    for split in ("train", "val"):
        (tiny / f"{split}2014_vgg16_fc7_pca.h5").unlink()
    assert open_dataset(tiny).kind == "fc7"
    with pytest.raises(DataError, match=r"has no pca features .*only fc7"):
        open_dataset(tiny, "pca")
    with pytest.raises(DataError, match="expected auto, pca or fc7"):
        open_dataset(tiny, "resnet")


def test_large_features_are_read_in_blocks(tmp_path, monkeypatch):
    values = numpy.arange(70, dtype="float32").reshape(10, 7)
    replace(tmp_path / "features.h5", "features", values)
    monkeypatch.setattr("xpcap.data.features.BLOCK_BYTES", 3 * 7 * 4)
    numpy.testing.assert_array_equal(read_features(tmp_path / "features.h5"), values)


def test_a_draw_of_training_captions_is_seeded_and_without_repetition(tiny):
    def draw(seed):
        rng = numpy.random.default_rng(seed)
        return open_dataset(tiny, max_train=10, rng=rng).splits["train"]

    whole = open_dataset(tiny).splits["train"]
    drawn = draw(1)
    assert drawn.captions.tolist() == draw(1).captions.tolist() != draw(2).captions.tolist()
    pairs = set(zip(map(tuple, whole.captions.tolist()), whole.image_idxs.tolist(), strict=True))
    found = list(zip(map(tuple, drawn.captions.tolist()), drawn.image_idxs.tolist(), strict=True))
    assert len(set(found)) == 10
    assert set(found) <= pairs
    for count in (0, 49):
        with pytest.raises(DataError, match=rf"max-train {count} is not in 1\.\.48"):
            open_dataset(tiny, max_train=count)


CAPTIONS, FC7 = "coco2014_captions.h5", "train2014_vgg16_fc7.h5"
ROWS = numpy.array([[1, 4, 2], [1, 5, 2]], numpy.int32)


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        (CAPTIONS, "train_captions", None, "no 'train_captions' in it, only train_image_idxs, val"),
        (CAPTIONS, "train_captions", ROWS[0], "is int32 of shape .3,.; expected a 2-dimensional"),
        (CAPTIONS, "train_captions", ROWS.astype(float), "is float64 .*2-dimensional integer"),
        (CAPTIONS, "train_captions", ROWS, "has 2 rows and 'train_image_idxs' 48"),
        (CAPTIONS, "val_captions", numpy.full((24, 3), 99), "indices 99 to 99; expected 0 to 14"),
        (CAPTIONS, "val_captions", numpy.full((24, 3), -1), "indices -1 to -1; expected 0 to 14"),
        (CAPTIONS, "val_captions", numpy.full((24, 3), 4), "row 0 does not begin with <START>"),
        (
            CAPTIONS,
            "val_captions",
            numpy.eye(24, 3, dtype=int)[[0] * 24],
            "row 0 has no word after",
        ),
        (CAPTIONS, "val_image_idxs", numpy.full(24, 12), "has 12 rows, but 'val_image_idxs'.*12"),
        (CAPTIONS, "val_image_idxs", numpy.full(24, -1), "names images -1 to -1"),
        (FC7, "features", None, "no 'features' in it, only nothing"),
        (FC7, "features", numpy.ones((24, 7), int), "is int64 of shape .*2-dimensional floating"),
        (FC7, "features", numpy.ones((9, 7)), "has 9 rows, but 'train_image_idxs'"),
        (FC7, "features", numpy.full((24, 7), numpy.nan), "NaN or infinite"),
        (FC7, "features", numpy.full((24, 7), numpy.inf), "NaN or infinite"),
        (FC7, "features", numpy.ones((24, 8)), "'train': 8, 'val': 7.*expected the same"),
    ],
)
def test_a_wrong_key_is_one_line_that_names_it(tiny, file, key, value, message):
    replace(tiny / file, key, value)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(tiny, "fc7")
    assert str(tiny) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_split_is_refused(tiny):
    replace(tiny / CAPTIONS, "val_captions", numpy.zeros((0, 5), int))
    replace(tiny / CAPTIONS, "val_image_idxs", numpy.zeros(0, int))
    with pytest.raises(DataError, match=r"'val_captions' is .0, 5.; expected at least one"):
        open_dataset(tiny)


@pytest.mark.parametrize("file", [CAPTIONS, FC7])
def test_missing_truncated_and_other_files_are_named(tiny, file):
    path = tiny / file
    whole = path.read_bytes()
    for content, message in (
        (whole[: len(whole) // 2], "is truncated"),
        (b"not at all", "is not an HDF5 file"),
        (None, "No such file"),
    ):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            open_dataset(tiny, "fc7") if file == CAPTIONS else read_features(path)
        assert str(path) in str(caught.value)


def test_other_files_are_checked_too(tiny):
    (tiny / "val2014_urls.txt").write_text("one\n")
    with pytest.raises(DataError, match="has 1 lines; expected 12"):
        open_dataset(tiny)
    with pytest.raises(DataError, match="is not a folder"):
        open_dataset(tiny / "nowhere")


def add_test_split(tiny):
    """Make the validation split the test split as well."""
    with h5py.File(tiny / CAPTIONS, "a") as file:
        for key in ("captions", "image_idxs"):
            file[f"test_{key}"] = file[f"val_{key}"][...]
    for path in list(tiny.glob("val2014_*")):
        (tiny / path.name.replace("val", "test")).write_bytes(path.read_bytes())
    references = json.loads((tiny / "references.json").read_text())
    references["test"] = [{**image, "id": f"n{image['id']}"} for image in references["val"]]
    (tiny / "references.json").write_text(json.dumps(references))


def test_a_test_split_is_optional(tiny):
    with pytest.raises(DataError, match=r"tiny has no split 'test'; expected train or val$"):
        open_dataset(tiny).references("test")
    add_test_split(tiny)
    dataset = open_dataset(tiny)
    val, test = dataset.splits["val"], dataset.split("test")
    assert isinstance(test.features, LazyFeatures)  # training does not read them
    numpy.testing.assert_array_equal(test.features[:], val.features)
    numpy.testing.assert_array_equal(test.captions, val.captions)
    assert dataset.references("test") == dataset.references("val")
    assert dataset.image_ids("test") == [f"n{k}" for k in range(12)]
    (tiny / "test2014_vgg16_fc7.h5").unlink()
    with pytest.raises(DataError, match=r"test2014_vgg16_fc7\.h5: No such file"):
        open_dataset(tiny, "fc7")


def test_the_course_dictionary_has_the_test_split(tiny, backend):
    add_test_split(tiny)
    with xpcap.use_backend(backend):
        data = load_coco_data(tiny)
        captions, features, urls = sample_coco_minibatch(data, 5, "test")
        with pytest.raises(DataError, match="'dev' is unknown; expected train or val or test"):
            sample_coco_minibatch(data, 5, "dev")
    assert xpcap.namespace(data["test_features"]) is backend.xp
    assert (captions.shape, features.shape, len(urls)) == ((5, 8), (5, 7), 5)


def test_references_without_a_word_are_none(tiny):
    path = tiny / "references.json"
    references = json.loads(path.read_text())
    references["val"][2]["captions"] = ["...", "🙂", "", "a cat"]
    path.write_text(json.dumps(references))
    assert open_dataset(tiny).references("val")[2] == ["a cat"]
    path.unlink()
    with h5py.File(tiny / CAPTIONS, "a") as file:
        rows = file["val_captions"]
        rows[4] = rows[5] = [1, 2, 0, 0, 0, 0, 0, 0]  # <START> <END>
    assert open_dataset(tiny).references("val")[2] == []


def test_bad_references_are_named(tiny):
    for content, message in (
        ("[", "is not JSON"),
        ("{}", "expected 'train'"),
        ('{"train": []}', "has 0 images; expected 24"),
        ('{"train": [{"captions": [], "id": 1.5}]}', "'id', if any, a whole number or a text"),
    ):
        (tiny / "references.json").write_text(content)
        with pytest.raises(DataError, match=message):
            open_dataset(tiny).references("train")


def test_the_course_dictionary_lives_on_the_default_backend(tiny, backend):
    with xpcap.use_backend(backend):
        data = load_coco_data(tiny, pca_features=False)
    assert set(data) == {
        f"{split}_{part}"
        for split in ("train", "val")
        for part in ("captions", "image_idxs", "features", "urls")
    } | {"idx_to_word", "word_to_idx"}
    for key in ("train_captions", "val_image_idxs", "train_features"):
        assert xpcap.namespace(data[key]) is backend.xp
    assert data["train_captions"].dtype == numpy.int32
    assert data["train_features"].dtype == numpy.float32
    assert data["val_urls"][3] == "http://localhost/val/3.png"
    numpy.random.seed(0)
    assert load_coco_data(str(tiny), max_train=5)["train_captions"].shape == (5, 8)
