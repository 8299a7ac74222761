import errno
import io
import itertools
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy
import pytest
from PIL import Image

from xpcap.data.extractors import FilterBank
from xpcap.data.pca import PCA
from xpcap.data.scenes import (
    Scene,
    Thing,
    captions,
    draw,
    is_true,
    make_scenes,
    random_scene,
    read_picture,
    read_scenes,
)
from xpcap.data.scenes.world import COLOURS, PLACES, SHAPES, SIZES
from xpcap.data.vocabulary import Vocabulary, decode_captions, plain
from xpcap.errors import DataError


def thing(words: str, place: str) -> Thing:
    size, colour, shape = words.split()
    return Thing(shape, colour, size, PLACES[place])


RING = Scene((thing("small orange ring", "top left"),))
PAIR = Scene((thing("large red circle", "middle left"), thing("small blue star", "bottom right")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "made"
    make_scenes(out, train=40, val=10)
    return out


def some_scenes(count: int) -> list[Scene]:
    rng = numpy.random.default_rng(11)
    return [random_scene(rng, 1 + index % 2) for index in range(count)]


@pytest.mark.parametrize(
    "sentence",
    [
        "there is a small orange ring at the top left",
        "this is an orange ring",
        "an orange ring in the upper left corner",
        "on the left there is a little orange ring",
        "at the top of the picture you see an orange ring",
        "There is an orange ring, in the top left corner.",
    ],
)
def test_true_of_one_thing(sentence: str) -> None:
    assert is_true(sentence, RING)


@pytest.mark.parametrize(
    "sentence",
    [
        "this is a orange ring",
        "this is an small orange ring",
        "this is an orange circle",
        "this is a red ring",
        "this is a large orange ring",
        "an orange ring at the bottom left",
        "an orange ring on the right",
        "an orange ring in the middle",
        "an orange ring in the centre",
        "an orange ring and an orange ring",
        "orange ring",
        "an orange ring an orange ring",
        "this is an orange ring this is an orange ring",
        "there is",
        "",
    ],
)
def test_not_true_of_one_thing(sentence: str) -> None:
    assert not is_true(sentence, RING)


@pytest.mark.parametrize(
    "sentence",
    [
        "a red circle and a blue star",
        "a blue star and a red circle",
        "a red circle above a blue star",
        "a large red circle is left of a small blue star",
        "a blue star to the right of a big red circle",
        "below a red circle there is a blue star",
        "a red circle with a blue star to its right",
        "a red circle with a blue star below it",
        "a blue star with a red circle above it",
        "there is a red circle and a small blue star",
        "this is a blue star",
    ],
)
def test_true_of_two_things(sentence: str) -> None:
    assert is_true(sentence, PAIR)


@pytest.mark.parametrize(
    "sentence",
    [
        "a blue circle and a red star",
        "a red star and a blue circle",
        "a red circle and a red circle",
        "a red circle below a blue star",
        "a red circle is right of a blue star",
        "above a red circle there is a blue star",
        "a red circle with a blue star to its left",
        "a red circle with a blue star above it",
        "there is a red circle and a large blue star",
        "a red circle and a big blue star",
        "a red circle and a blue star and a red circle",
    ],
)
def test_not_true_of_two_things(sentence: str) -> None:
    assert not is_true(sentence, PAIR)


def test_things_in_one_row_are_neither_above_nor_below() -> None:
    row = Scene((thing("large red circle", "top left"), thing("small blue star", "top right")))
    assert is_true("a red circle left of a blue star", row)
    for relation in ("above", "below", "right of"):
        assert not is_true(f"a red circle {relation} a blue star", row)


def test_every_caption_is_true_of_its_scene() -> None:
    rng = numpy.random.default_rng(2)
    for scene in some_scenes(300):
        said = captions(scene, rng)
        assert len(set(said)) == len(said) == 5
        for sentence in said:
            assert is_true(sentence, scene), (sentence, scene)
            assert 5 <= len(sentence.split()) <= 14
            assert sentence == sentence.lower()


def test_captions_are_mostly_false_of_other_scenes() -> None:
    rng = numpy.random.default_rng(2)
    scenes = some_scenes(200)
    said = [captions(scene, rng) for scene in scenes]
    judged = [
        is_true(sentence, other)
        for sentences, other in zip(said, scenes[2:], strict=False)
        for sentence in sentences
    ]
    assert numpy.mean(judged) < 0.02


def test_a_caption_is_false_of_other_shapes_and_colours() -> None:
    """Each sentence names shape and colour, so it is false once either is another everywhere."""
    rng = numpy.random.default_rng(4)
    for scene in some_scenes(100):
        sentences = captions(scene, rng)
        for attribute, values in (("shape", SHAPES), ("colour", COLOURS)):
            for index, one in enumerate(scene.things):
                others = [value for value in values if value != getattr(one, attribute)]
                things = list(scene.things)
                things[index] = replace(one, **{attribute: others[rng.integers(len(others))]})
                for sentence in sentences:
                    assert not is_true(sentence, Scene(tuple(things)))


def test_a_caption_is_true_of_the_right_size_only() -> None:
    for scene in some_scenes(20):
        for one in scene.things:
            article = "an" if one.colour == "orange" else "a"
            assert is_true(f"this is {article} {one.colour} {one.shape}", scene)
            for size in SIZES:
                sentence = f"this is a {size} {one.colour} {one.shape}"
                assert is_true(sentence, scene) == (size == one.size)


def test_random_scenes_cover_all_attributes() -> None:
    scenes = some_scenes(2000)
    things = [one for scene in scenes for one in scene.things]
    assert {one.shape for one in things} == set(SHAPES)
    assert {one.colour for one in things} == set(COLOURS)
    assert {one.size for one in things} == set(SIZES)
    assert {one.place for one in things} == set(PLACES.values())
    for scene in scenes[1::2]:
        first, second = scene.things
        assert first.colour != second.colour
        assert first.place != second.place
        assert (first.size, second.size) == ("large", "small")


def test_things_are_drawn_in_their_place_and_nowhere_else() -> None:
    for shape, colour, size, place in itertools.product(
        SHAPES, ("red", "white"), SIZES, PLACES.values()
    ):
        scene = Scene((Thing(shape, colour, size, place),))
        picture = draw(scene, numpy.random.default_rng(0)).astype(int)
        assert picture.shape == (64, 64, 3)
        seen = picture[..., 0] > 200
        rows, columns = numpy.nonzero(seen)
        centre = numpy.array([13, 32, 51])[[place.row, place.column]]
        assert abs((rows.min() + rows.max()) / 2 - centre[0]) < 3
        assert abs((columns.min() + columns.max()) / 2 - centre[1]) < 3
        width = columns.max() - columns.min() + 1
        assert width > 14 if size == "large" else 7 < width < 14


def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    make_scenes(tmp_path / "again", train=40, val=10)
    make_scenes(tmp_path / "other", seed=1, train=40, val=10)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert "pictures.zip" in names
    for name in names:
        whole = (folder / name).read_bytes()
        assert whole == (tmp_path / "again" / name).read_bytes(), name
        if not name.endswith("urls.txt"):
            assert whole != (tmp_path / "other" / name).read_bytes(), name


def test_scenes_with_features_of_regions(tmp_path: Path) -> None:
    make_scenes(tmp_path / "made", train=4, val=2, output="grid")
    description = json.loads((tmp_path / "made" / "dataset.json").read_text())
    assert description["extractor"] == FilterBank("grid").describe()
    assert "PCA" not in description["features"]
    assert not list((tmp_path / "made").glob("*pca*"))
    pictures = numpy.stack([read_picture(tmp_path / "made", "train", k) for k in range(4)])
    with h5py.File(tmp_path / "made" / "train2014_vgg16_fc7.h5") as file:
        found = file["features"][()]
    assert (found.shape, found.dtype) == ((4, 64, 64), numpy.float16)
    numpy.testing.assert_allclose(found, FilterBank("grid")(pictures), rtol=1e-3, atol=1e-6)


def test_each_thing_is_seen_in_the_cells_where_it_is() -> None:
    """Its colour is the strongest there, which no window over all of the image would tell."""
    scene = Scene((thing("large red circle", "top left"), thing("small blue star", "bottom right")))
    grid = FilterBank("grid")(draw(scene, numpy.random.default_rng(0))[None])[0].reshape(8, 8, 64)
    coarse, fine = grid[..., 24:32], grid[..., 56:]
    assert coarse[1, 1].argmax() == 0  # red
    assert fine[6, 6].argmax() == COLOURS.index("blue")
    assert coarse[6, 6].max() < 0.1 * coarse[1, 1].max()
    assert fine[1, 1].max() < 0.1 * fine[6, 6].max()


def test_the_folder_holds_what_its_parts_say(folder: Path) -> None:
    vocabulary = Vocabulary.read(folder / "coco2014_vocab.json")
    pca = PCA.read(folder / "pca.h5")
    scenes = read_scenes(folder)
    references = json.loads((folder / "references.json").read_text())
    description = json.loads((folder / "dataset.json").read_text())
    assert description["extractor"] == FilterBank().describe()
    assert description["name"] == "scenes"
    with h5py.File(folder / "coco2014_captions.h5") as file:
        encoded = {key: file[key][()] for key in file}
    assert encoded["train_captions"].shape[1] == encoded["val_captions"].shape[1]
    longest = max(
        len(said.split())
        for split in references.values()
        for image in split
        for said in image["captions"]
    )
    assert encoded["train_captions"].shape[1] == longest + 2
    for split, count in (("train", 40), ("val", 10)):
        urls = (folder / f"{split}2014_urls.txt").read_text().splitlines()
        assert urls[3] == f"pictures.zip/{split}/00003.png"
        assert len(urls) == len(scenes[split]) == len(references[split]) == count
        assert [image["id"] for image in references[split]] == list(range(count))
        pictures = numpy.stack([read_picture(folder, split, index) for index in range(count)])
        features = FilterBank()(pictures)
        with h5py.File(folder / f"{split}2014_vgg16_fc7.h5") as file:
            numpy.testing.assert_array_equal(file["features"][()], features)
        with h5py.File(folder / f"{split}2014_vgg16_fc7_pca.h5") as file:
            numpy.testing.assert_allclose(
                file["features"][()], pca.transform(features), rtol=1e-4, atol=1e-4
            )
        said = [
            plain(line)
            for line in decode_captions(encoded[f"{split}_captions"], vocabulary.idx_to_word)
        ]
        for index, image in enumerate(encoded[f"{split}_image_idxs"]):
            assert said[index] == references[split][image]["captions"][index % 5]
            assert is_true(said[index], scenes[split][image])
            assert len(scenes[split][image].things) == 1 + image % 2


def test_the_images_of_both_splits_differ(folder: Path) -> None:
    train = {read_picture(folder, "train", index).tobytes() for index in range(40)}
    val = {read_picture(folder, "val", index).tobytes() for index in range(10)}
    assert len(train | val) == 50


def test_progress_is_told_to_its_end(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    make_scenes(tmp_path / "out", train=3, val=1, progress=lambda *what: told.append(what))
    assert {doing: (done, of) for doing, done, of in told} == {
        "training images": (3, 3),
        "validation images": (1, 1),
        "components": (1, 1),
    }
    assert all(0 <= done <= of for _, done, of in told)


def test_nothing_is_left_behind_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(DataError, match="no space left"):
        make_scenes(tmp_path / "out", train=3, val=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("numbers", [{"train": 1}, {"val": 0}, {"seed": -1}])
def test_invalid_numbers_are_refused(tmp_path: Path, numbers: dict[str, int]) -> None:
    with pytest.raises(DataError, match="cannot make"):
        make_scenes(tmp_path / "out", **{"train": 4, "val": 2, **numbers})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        "[]",
        '{"train": []}',
        '{"train": [[{"shape": "ring"}]], "val": []}',
        '{"train": [[{"shape": "ring", "colour": "red", "size": "huge", "place": "top left"}]],'
        ' "val": []}',
        '{"train": [[{"shape": "ring", "colour": "red", "size": "small", "place": "here"}]],'
        ' "val": []}',
    ],
)
def test_other_scenes_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "scenes.json").write_text(content)
    with pytest.raises(DataError, match=r"scenes\.json (is not JSON|does not hold the scenes)"):
        read_scenes(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"scenes\.json: No such file"):
        read_scenes(tmp_path)
    with pytest.raises(DataError, match=r"pictures\.zip: No such file"):
        read_picture(tmp_path, "train", 0)


def test_an_image_that_is_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train/00040\.png"):
        read_picture(folder, "train", 40)
    (tmp_path / "pictures.zip").write_bytes((folder / "pictures.zip").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"pictures\.zip"):
        read_picture(tmp_path, "train", 0)


def test_the_images_are_ordinary_png_files(folder: Path) -> None:
    with zipfile.ZipFile(folder / "pictures.zip") as archive:
        assert archive.namelist()[0] == "train/00000.png"
        assert archive.testzip() is None
        image = Image.open(io.BytesIO(archive.read("val/00009.png")))
        assert (image.format, image.size, image.mode) == ("PNG", (64, 64), "RGB")
