"""Making the scenes' data folder, and reading back what only this data set has.

Beside the files of every data folder (`xpcap.data.folder`) there are

    pictures.zip     train/00000.png ... val/00499.png, 64 x 64
    scenes.json      for each split a list of pictures, each a list of its things:
                     [{"shape": "ring", "colour": "red", "size": "small", "place": "top left"}]
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy

from xpcap.data import folder as data_folder
from xpcap.data.archive import read_member
from xpcap.data.extractors import FilterBank
from xpcap.data.folder import SplitContents
from xpcap.data.images import LARGEST_FILE, decode_picture
from xpcap.data.pca import PCA
from xpcap.data.progress import Progress, say_nothing
from xpcap.data.scenes.drawing import draw
from xpcap.data.scenes.grammar import CAPTIONS, captions
from xpcap.data.scenes.world import COLOURS, PLACES, SHAPES, SIZES, Scene, Thing, random_scene
from xpcap.data.vocabulary import Vocabulary
from xpcap.errors import DataError
from xpcap.files import explained, new_folder, read_json

PICTURES = "pictures.zip"
SCENES = "scenes.json"
COMPONENTS = 512
"""Numbers an image has after PCA; fewer where the training set is too small for so many."""

_FEATURES = "a fixed bank of oriented, colour-opponent filters on 8 x 8 cells; PCA of these"
_REPORTED = 100  # pictures between two calls of progress


def make_scenes(
    out: Path, seed: int = 0, train: int = 2000, val: int = 500, progress: Progress = say_nothing
) -> None:
    """Draw, describe and extract the scenes, and write them as a data folder.

    The same arguments give the same bytes, on one installation with one number of BLAS threads.

    Parameters
    ----------
    out
        The folder to make: a new name, or an empty folder.
    seed
        Decides every scene, picture and caption; each split has a generator of its own.
    train, val
        How many pictures; every other one has two things.
    progress
        Told how far it is.

    Raises
    ------
    DataError
        If a number cannot be used, or `out` is taken or cannot be written; nothing is left behind.
    """
    if train < 2 or val < 1 or seed < 0:
        raise DataError(
            f"cannot make {train} and {val} pictures from seed {seed};"
            " expected 2 and 1 or more, from a seed of 0 or more"
        )
    with new_folder(out) as folder:
        splits = {
            split: _make_split(split, count, numpy.random.default_rng([seed, number]), progress)
            for number, (split, count) in enumerate((("train", train), ("val", val)))
        }
        fc7 = {split: made.features for split, made in splits.items()}
        progress("components", 0, 1)
        pca = PCA.fit(fc7["train"], min(COMPONENTS, train - 1))
        pca.write(folder / data_folder.PCA)
        progress("components", 1, 1)
        words = {
            split: [caption.split() for said in made.captions for caption in said]
            for split, made in splits.items()
        }
        vocabulary = Vocabulary.build(words["train"])
        length = 2 + max(len(caption) for split in words.values() for caption in split)
        contents = {
            split: SplitContents(
                captions=numpy.stack(
                    [vocabulary.encode(caption, length) for caption in words[split]]
                ),
                image_idxs=numpy.repeat(numpy.arange(len(made.scenes)), CAPTIONS),
                features={"fc7": made.features, "pca": pca.transform(made.features)},
                urls=[f"{PICTURES}/{_member(split, index)}" for index in range(len(made.scenes))],
                ids=range(len(made.scenes)),
                references=made.captions,
            )
            for split, made in splits.items()
        }
        description = {
            "name": "scenes",
            "seed": seed,
            "features": _FEATURES,
            "extractor": FilterBank().describe(),
            "pictures": PICTURES,
        }
        data_folder.write_contents(folder, vocabulary, contents, description)
        _write_pictures(folder / PICTURES, splits)
        _write_scenes(folder / SCENES, splits)


@dataclass(frozen=True)
class _Split:
    scenes: list[Scene]
    pictures: numpy.ndarray  # (images, 64, 64, 3) uint8
    captions: list[list[str]]
    features: numpy.ndarray  # (images, 4096) float32


def _make_split(split: str, count: int, rng: numpy.random.Generator, progress: Progress) -> _Split:
    scenes = [random_scene(rng, 1 + index % 2) for index in range(count)]
    pictures = numpy.stack([draw(scene, rng) for scene in scenes])
    said = [captions(scene, rng) for scene in scenes]
    doing = {"train": "training pictures", "val": "validation pictures"}[split]
    bank = FilterBank()
    features = numpy.empty((count, bank.dim), numpy.float32)
    for start in range(0, count, _REPORTED):
        progress(doing, start, count)
        features[start : start + _REPORTED] = bank(pictures[start : start + _REPORTED])
    progress(doing, count, count)
    return _Split(scenes, pictures, said, features)


def _member(split: str, index: int) -> str:
    return f"{split}/{index:05d}.png"


def _write_pictures(path: Path, splits: Mapping[str, _Split]) -> None:
    from PIL import Image

    with explained(path, "write"), zipfile.ZipFile(path, "w") as archive:
        for split, made in splits.items():
            for index, picture in enumerate(made.pictures):
                png = io.BytesIO()
                Image.fromarray(picture).save(png, "PNG")
                # a ZipInfo of its own has a fixed date, so that the bytes are always the same
                archive.writestr(zipfile.ZipInfo(_member(split, index)), png.getvalue())


def _write_scenes(path: Path, splits: Mapping[str, _Split]) -> None:
    truth = {
        split: [
            [{**asdict(thing), "place": str(thing.place)} for thing in scene.things]
            for scene in made.scenes
        ]
        for split, made in splits.items()
    }
    data_folder.write_text(path, json.dumps(truth))


def read_scenes(folder: Path) -> dict[str, list[Scene]]:
    """Read the truth about every picture of a folder that `make_scenes` made.

    Returns
    -------
    dict
        The scenes of `"train"` and `"val"`, in the pictures' order.

    Raises
    ------
    DataError
        If the folder has no such file, or it holds something else.
    """
    path = folder / SCENES
    truth = read_json(path)
    try:
        return {
            split: [
                Scene(tuple(_read_thing(**thing) for thing in things)) for things in truth[split]
            ]
            for split in data_folder.SPLITS
        }
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not hold the scenes of train and val: {error!r}") from error


def _read_thing(shape: str, colour: str, size: str, place: str) -> Thing:
    for word, known in ((shape, SHAPES), (colour, COLOURS), (size, SIZES)):
        if word not in known:
            raise ValueError(f"{word} is none of {', '.join(known)}")
    return Thing(shape, colour, size, PLACES[place])


def read_picture(folder: Path, split: str, index: int) -> numpy.ndarray:
    """Read one picture of a folder that `make_scenes` made.

    Returns
    -------
    numpy.ndarray
        `(64, 64, 3)` uint8.

    Raises
    ------
    DataError
        If the folder has no such picture, or its file is damaged.
    """
    path, member = folder / PICTURES, _member(split, index)
    png = read_member(path, member, LARGEST_FILE)
    return numpy.array(decode_picture(png, f"{path}/{member}"))
