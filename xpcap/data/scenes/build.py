"""Making the data folder of the scenes, and reading the files that only it has.

In addition to the files of every data folder (`xpcap.data.folder`) there are

    pictures.zip     train/00000.png ... val/00499.png, 64 x 64
    scenes.json      for each split a list of images, each a list of its things:
                     [{"shape": "ring", "colour": "red", "size": "small", "place": "top left"}]
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy

from xpcap.data import folder as layout
from xpcap.data.encoding import encode
from xpcap.data.extractors import FilterBank
from xpcap.data.images import open_packed
from xpcap.data.pca import fit_components
from xpcap.data.progress import Progress, no_progress
from xpcap.data.scenes.drawing import draw
from xpcap.data.scenes.grammar import captions
from xpcap.data.scenes.world import COLOURS, PLACES, SHAPES, SIZES, Scene, Thing, random_scene
from xpcap.errors import DataError
from xpcap.files import explained, new_folder, read_json
from xpcap.options import check_counts

PICTURES = "pictures.zip"
SCENES = "scenes.json"
COMPONENTS = 512
"""Features per image after PCA; fewer if the training set is smaller."""

_FEATURES = "a fixed bank of oriented, colour-opponent filters on 8 x 8 cells"
_REPORTED = 100  # images between two calls of progress
_DOING = {"train": "training images", "val": "validation images"}


def make_scenes(
    out: Path,
    seed: int = 0,
    train: int = 2000,
    val: int = 500,
    output: str | None = None,
    progress: Progress = no_progress,
) -> None:
    """Draw, caption and extract the scenes, and write them as a new data folder.

    The same arguments give the same bytes, on one installation with one number of BLAS threads.
    `train` and `val` are numbers of images; every other one has two things. Features are those of
    `FilterBank`, reduced by PCA; or of the cells of its `output` `"grid"`, as they are. If a number
    is out of range a `ConfigurationError` is raised, and if `out` exists or cannot be written a
    `DataError`; nothing is left behind.
    """
    bank = FilterBank(output)
    check_counts(2, train=train)
    check_counts(val=val)
    check_counts(0, math.inf, seed=seed)
    counts = {"train": train, "val": val}
    scenes, images, captioned, features = {}, {}, {}, {}
    with new_folder(out) as folder:
        for number, (split, count) in enumerate(counts.items()):
            rng = numpy.random.default_rng([seed, number])
            scenes[split] = [random_scene(rng, 1 + index % 2) for index in range(count)]
            images[split] = numpy.stack([draw(scene, rng) for scene in scenes[split]])
            captioned[split] = [
                layout.CaptionedImage(k, f"{PICTURES}/{_member(split, k)}", captions(scene, rng))
                for k, scene in enumerate(scenes[split])
            ]
            features[split] = {"fc7": _extract(bank, images[split], _DOING[split], progress)}
        if not output:
            fc7 = features["train"]["fc7"]
            pca, _ = fit_components(fc7, min(COMPONENTS, train - 1), progress=progress)
            pca.write(folder / layout.PCA)
            for by_kind in features.values():
                by_kind["pca"] = pca.transform(by_kind["fc7"])
        sentences = (c for part in captioned.values() for image in part for c in image.captions)
        longest = max(len(sentence.split()) for sentence in sentences)
        encoded = encode(out, captioned, str.split, None, 1, longest)
        contents = {
            split: replace(part, features=features[split]) for split, part in encoded.splits.items()
        }
        description = {
            "name": "scenes",
            "seed": seed,
            "features": _FEATURES if output else f"{_FEATURES}; PCA of these",
            "extractor": bank.describe(),
            "pictures": PICTURES,
        }
        layout.write_contents(folder, encoded.vocabulary, contents, description)
        _write_images(folder / PICTURES, images)
        truth = {
            split: [
                [{**asdict(thing), "place": str(thing.place)} for thing in scene.things]
                for scene in part
            ]
            for split, part in scenes.items()
        }
        layout.write_text(folder / SCENES, json.dumps(truth))


def built_in_scenes(draw: Callable[[Path, str | None], None], output: str | None = None) -> Path:
    """Return the folder of the built-in scenes, which `draw` makes if it does not exist.

    `output` is that of the `FilterBank`; `draw` is called with the folder and it.
    Of several processes that draw them at the same time, the first to finish makes the folder.
    """
    folder = scenes_folder()
    if output is not None:
        folder = folder.with_name(f"{folder.name}-{output}")
    if not folder.exists():
        try:
            draw(folder, output)
        except DataError:
            if not folder.exists():
                raise
    return folder


def scenes_folder() -> Path:
    """Return `datasets/scenes` in a checkout of xpcap, else a folder in the user's cache."""
    if Path("xpcap/data/scenes/build.py").is_file() and Path("datasets").is_dir():
        return Path("datasets") / "scenes"
    return cache_folder() / "scenes"


def cache_folder() -> Path:
    """Return xpcap's folder in the user's cache of the platform; it need not exist."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "xpcap"


def _extract(
    bank: FilterBank, images: numpy.ndarray, doing: str, progress: Progress
) -> numpy.ndarray:
    features = numpy.empty((len(images), *bank.shape), numpy.float32)
    for start in range(0, len(images), _REPORTED):
        progress(doing, start, len(images))
        features[start : start + _REPORTED] = bank(images[start : start + _REPORTED])
    progress(doing, len(images), len(images))
    return features


def _member(split: str, index: int) -> str:
    return f"{split}/{index:05d}.png"


def _write_images(path: Path, images: Mapping[str, numpy.ndarray]) -> None:
    """Write images `(N, 64, 64, 3)` uint8 of each split."""
    from PIL import Image

    with explained(path, "write"), zipfile.ZipFile(path, "w") as archive:
        for split, part in images.items():
            for index, image in enumerate(part):
                png = io.BytesIO()
                Image.fromarray(image).save(png, "PNG")
                # a new ZipInfo has a fixed date, so that the bytes are always the same
                archive.writestr(zipfile.ZipInfo(_member(split, index)), png.getvalue())


def read_scenes(folder: Path) -> dict[str, list[Scene]]:
    """Read the scenes of `"train"` and `"val"` from a folder that `make_scenes` made."""
    path = folder / SCENES
    truth = read_json(path)
    try:
        return {
            split: [
                Scene(tuple(_read_thing(**thing) for thing in things)) for things in truth[split]
            ]
            for split in layout.SPLITS
        }
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not hold the scenes of train and val: {error!r}") from error


def _read_thing(shape: str, colour: str, size: str, place: str) -> Thing:
    for word, known in ((shape, SHAPES), (colour, COLOURS), (size, SIZES)):
        if word not in known:
            raise ValueError(f"expected one of {', '.join(known)}, got {word}")
    return Thing(shape, colour, size, PLACES[place])


def read_picture(folder: Path, split: str, index: int) -> numpy.ndarray:
    """Read an image `(64, 64, 3)` uint8 from a folder that `make_scenes` made."""
    return numpy.array(open_packed(folder / PICTURES, _member(split, index)))
