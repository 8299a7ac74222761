import json
import shutil

import h5py
import numpy
import pytest
from own import own

from xpcap.data.extractors import FilterBank
from xpcap.data.prepare import prepare
from xpcap.data.summary import summarize
from xpcap.data.vocabulary import Vocabulary
from xpcap.errors import DataError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("summary")
    file, _ = own(folder)
    prepare(file, folder / "out", extractor=FilterBank())
    return folder / "out"


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "data")


def change(path, key, function):
    with h5py.File(path, "r+") as file:
        values = file[key][...]
        function(values)
        file[key][...] = values


def test_summary_of_a_valid_folder(folder):
    told = []
    found = summarize(folder, lambda *args: told.append(args))
    assert found["problems"] == []
    assert found["name"] == "out"
    assert found["features"] == "by filter-bank"
    assert found["extractor"] == {"name": "filter-bank", "version": 1}
    assert found["vocabulary"] == 4 + 9
    train = found["splits"]["train"]
    assert (train["images"], train["captions"], train["unknown"]) == (23, 46, 0.0)
    assert train["lengths"] == {3: 46}
    assert train["features"] == {
        "fc7": {
            "shape": [23, 4096],
            "dtype": "float32",
            "bytes": (folder / "train2014_vgg16_fc7.h5").stat().st_size,
        }
    }
    assert told[-1] == ("val2014_vgg16_fc7.h5", 2, 2)
    assert json.loads(json.dumps(found))


def test_lengths_and_unknown_words_are_counted(folder):
    def unknown(values):
        values[:] = 0
        values[:, 0] = 1
        values[0, 1:4] = 3, 3, 2
        values[1, 1:7] = 3, 5, 6, 7, 8, 2
        values[2, 1:4] = 5, 6, 2
        values[3:, 1:3] = 5, 2

    change(folder / "coco2014_captions.h5", "val_captions", unknown)
    val = summarize(folder)["splits"]["val"]
    assert val["lengths"] == {1: 1, 2: 2, 5: 1}
    assert val["unknown"] == pytest.approx(3 / 10)
    assert summarize(folder)["problems"] == ["<UNK> is 30% of the words of 'val'"]


def change_references(folder, captions):
    path = folder / "references.json"
    references = json.loads(path.read_text())
    references["val"][1]["captions"] = captions
    path.write_text(json.dumps(references))


def test_captions_that_are_too_long_to_train_on_are_captions(tmp_path):
    file, records = own(tmp_path)
    records[3]["captions"] = ["a very long caption of one picture"]
    file.write_text(json.dumps(records))
    prepare(file, tmp_path / "out", extractor=FilterBank(), max_words=5)
    assert summarize(tmp_path / "out")["problems"] == []


def test_the_test_split_is_summarized_and_compared(tmp_path):
    file, _ = own(tmp_path, splits=["train", "val", "test"])
    prepare(file, tmp_path / "out", extractor=FilterBank())
    found = summarize(tmp_path / "out")
    assert found["problems"] == []
    assert {name: split["images"] for name, split in found["splits"].items()} == {
        "train": 9, "val": 8, "test": 8,
    }  # fmt: skip
    urls = (tmp_path / "out" / "train2014_urls.txt").read_text().splitlines()
    (tmp_path / "out" / "test2014_urls.txt").write_text("\n".join(urls[:8]))
    (problem,) = summarize(tmp_path / "out")["problems"]
    assert problem.startswith("8 images are in both 'train' and 'test': ")
    (tmp_path / "out" / "test2014_vgg16_fc7.h5").unlink()
    problems = summarize(tmp_path / "out")["problems"]
    assert problems == ["no features for 'test'; expected test2014_vgg16_fc7.h5"]


FC7, CAPTIONS = "train2014_vgg16_fc7.h5", "coco2014_captions.h5"


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda f: (f / "coco2014_vocab.json").unlink(), r"coco2014_vocab\.json: No such file"),
        (lambda f: (f / CAPTIONS).write_bytes(b"x"), r"coco2014_captions\.h5 is not an HDF5 file"),
        (lambda f: (f / FC7).unlink(), "no features for 'train'; expected train2014_vgg16_fc7.h5"),
        (lambda f: (f / FC7).write_bytes((f / FC7).read_bytes()[:-9]), "fc7.h5 is truncated"),
        (lambda f: change(f / FC7, "features", lambda v: v[3].fill(numpy.nan)), "holds NaN"),
        (lambda f: change(f / FC7, "features", lambda v: v[3:5].fill(0)), "2 of 23 images have ze"),
        (lambda f: (f / "val2014_urls.txt").write_text("one\n"), "has 1 lines; expected 2"),
        (
            lambda f: (f / "val2014_urls.txt").write_text(
                (f / "train2014_urls.txt").read_text().split()[0] + "\nelse\n"
            ),
            "1 images are in both 'train' and 'val': ",
        ),
        (
            lambda f: change(f / CAPTIONS, "train_image_idxs", lambda v: v.__setitem__(0, 99)),
            "names images 0 to 99",
        ),
        (
            lambda f: (
                (f / "references.json").unlink(),
                change(f / CAPTIONS, "train_image_idxs", lambda v: v.fill(0)),
            ),
            "22 of 23 images of 'train' have no caption",
        ),
        (lambda f: change_references(f, ["...", "🙂"]), "1 of 2 images of 'val' have no caption"),
        (lambda f: change_references(f, [3]), "references.json: expected 'val', a list of objects"),
        (
            lambda f: (f / "references.json").write_text("["),
            "references.json is not JSON: Expecting value: line 1 column 2 (char 1)",
        ),
        (
            lambda f: change(f / CAPTIONS, "val_captions", lambda v: v[0, 2:3].fill(1)),
            "captions of 'val' have <START> after the first",
        ),
        (
            lambda f: change(f / CAPTIONS, "val_captions", lambda v: v[0, 2:3].fill(0)),
            "captions of 'val' have <NULL> before a word",
        ),
        (lambda f: (f / "dataset.json").write_text("[]"), r"dataset\.json: expected an object"),
    ],
)
def test_each_problem_is_listed_and_the_rest_is_summarized(folder, spoil, problem):
    spoil(folder)
    found = summarize(folder)
    (said,) = found["problems"]
    assert problem.replace("\\", "") in said
    assert set(found["splits"]) == {"train", "val"}


NULL, START, END, UNK = range(4)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda v: v[v == END].fill(0) or numpy.putmask(v, v == END, NULL), "46 of 46 * no <END>"),
        (lambda v: v[3, 4:].fill(9), "1 of 46 * no <END>: what learns from them does not stop"),
        (lambda v: v[3, 2:3].fill(END), "1 of 46 captions of 'train' have a word after <END>"),
        (lambda v: v[3:5, 5:7].fill(END), "2 of 46 captions of 'train' have a word after <END>"),
        (lambda v: v[3, 6:7].fill(9), "1 of 46 captions of 'train' have <NULL> before a word"),
        (lambda v: v[3, 2:4].fill(START), "1 of 46 captions of 'train' have <START> after"),
        (lambda v: v[3, 1:].fill(END), "1 of 46 captions of 'train' have no word"),
        (lambda v: v[3].fill(NULL), "row 3 does not begin with <START>"),
        (lambda v: v[3, :1].fill(9), "row 3 does not begin with <START>"),
        (lambda v: v[3, 1:].fill(NULL), "row 3 has no word after <START>"),
        (lambda v: v[:, 1:4].fill(UNK), "<UNK> is 100% of the words of 'train'"),
        (lambda v: numpy.copyto(v, v[0].copy()), "all 46 captions of 'train' are the same"),
    ],
)
def test_captions_that_never_end_or_teach_nothing_are_problems(folder, spoil, problem):
    change(folder / CAPTIONS, "train_captions", spoil)
    said = [message.partition(": ")[2] or message for message in summarize(folder)["problems"]]
    assert any(all(part in message for part in problem.split("*")) for message in said), said


def exchanged(folder):
    """Exchange two words that nearly all captions have with two others."""
    path = folder / "coco2014_vocab.json"
    words = json.loads(path.read_text())["idx_to_word"]
    Vocabulary([*words[:4], *words[:3:-1]]).write(path)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (exchanged, "references.json: of 138 words of captions of 'train' 74"),
        (lambda f: change(f / CAPTIONS, "train_image_idxs", lambda v: v.sort()), None),
        (
            lambda f: change(f / FC7, "features", lambda v: numpy.copyto(v, v[0].copy())),
            "train2014_vgg16_fc7.h5: all 23 images have the same features",
        ),
        (
            lambda f: (f / FC7).write_bytes((f / FC7.replace("train", "val")).read_bytes()),
            "has 23 lines; expected 2, one per image",
        ),
    ],
)
def test_files_that_do_not_belong_together_are_problems(folder, spoil, problem):
    spoil(folder)
    said = summarize(folder)["problems"]
    if problem is None:
        assert said == []
    else:
        assert any(problem in message for message in said), said


def test_features_of_different_sizes_are_problems(folder):
    for name, shape in (("train", (23, 8)), ("val", (2, 7))):
        with h5py.File(folder / f"{name}2014_vgg16_fc7_pca.h5", "w") as file:
            file["features"] = 1 + numpy.arange(numpy.prod(shape), dtype="f").reshape(shape)
    assert summarize(folder)["problems"] == [
        f"{folder}: pca features per image are {{'train': 8, 'val': 7}}; expected the same number"
    ]
    with h5py.File(folder / "val2014_vgg16_fc7_pca.h5", "w") as file:
        file["features"] = numpy.ones((3, 8), numpy.float32)
    assert summarize(folder)["problems"][0] == (
        "features of 'val' have {'pca': 3, 'fc7': 2} images; expected the same number"
    )


def test_an_empty_and_a_missing_folder(tmp_path):
    assert len(summarize(tmp_path)["problems"]) == 4
    with pytest.raises(DataError, match="is not a folder"):
        summarize(tmp_path / "none")
