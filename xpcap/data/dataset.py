"""Opening a data folder: captions, features and vocabulary, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy

from xpcap.data import folder as layout
from xpcap.data.encoding import LONGEST
from xpcap.data.features import Features, LazyFeatures, read_features
from xpcap.data.hdf5 import open_hdf5, read_array, whole
from xpcap.data.vocabulary import NULL, START, Vocabulary, has_words
from xpcap.data.web import is_url
from xpcap.errors import DataError
from xpcap.files import SMALL, explained, read_bytes, read_json


@dataclass(frozen=True)
class Split:
    """The training, the validation or the test split, on the host."""

    captions: numpy.ndarray  # (M, T) int32, word indices
    image_idxs: numpy.ndarray  # (M,) int32, rows of features and urls
    features: Features  # (images, D) or (images, L, D)
    urls: Sequence[str]

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True, repr=False)
class Dataset:
    """An open data folder with the splits `"train"`, `"val"` and, if it has one, `"test"`."""

    folder: Path
    vocabulary: Vocabulary
    splits: Mapping[str, Split]
    kind: str  # of the features: "pca" or "fc7"
    description: Mapping[str, Any]  # dataset.json: name, features in words, extractor if any

    def __repr__(self) -> str:
        extractor = (self.description.get("extractor") or {}).get("name", "its files")
        lines = [
            f"  {name}: {split.features.shape[0]} images, {len(split)} captions"
            for name, split in self.splits.items()
        ]
        words, shape = self.vocabulary, " x ".join(map(str, self.feature_shape))
        what = f"{len(words)} {words.tokens}, {shape} features ({self.kind})"
        return "\n".join([f"Dataset({str(self.folder)!r}): {what} of {extractor}", *lines])

    @property
    def feature_dim(self) -> int:
        """D, features per image or region."""
        return self.feature_shape[-1]

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Features per image: `(D,)`, or `(L, D)` of L regions."""
        return tuple(self.splits["train"].features.shape[1:])

    @property
    def max_words(self) -> int:
        """The most words that a training caption has room for, without `<START>` and `<END>`."""
        width: int = self.splits["train"].captions.shape[1]
        return min(max(1, width - 2), LONGEST)

    def split(self, name: str) -> Split:
        """Return a split, or raise a `DataError` that names those that there are."""
        if name not in self.splits:
            raise DataError(
                f"{self.folder} has no split '{name}'; expected {' or '.join(self.splits)}"
            )
        return self.splits[name]

    def address(self, name: str, row: int) -> str:
        """Return where an image of a split is: a web address, or an absolute path.

        The path is that of a file, or leads into a zip file; see `images.open_stored`. Paths that
        are relative in the data folder are relative to it.
        """
        url = self.splits[name].urls[row]
        return url if not url or is_url(url) else str(self.folder.absolute() / url)

    def references(self, name: str) -> list[list[str]]:
        """Return the captions that hold a word of each image of a split, as text.

        They come from `references.json` if there is one, else they are decoded.
        """
        split, known = self.split(name), self._described(name)
        if known is not None:
            captions = [image["captions"] for image in known]
        else:
            captions = [[] for _ in range(split.features.shape[0])]
            sentences = self.vocabulary.sentences(split.captions)
            for image, sentence in zip(split.image_idxs.tolist(), sentences, strict=True):
                captions[image].append(sentence)
        return [list(filter(has_words, of_image)) for of_image in captions]

    def image_ids(self, name: str) -> list[int | str]:
        """Return the id of each image of a split from `references.json`, or else its index."""
        known = self._described(name)
        if known is None:
            return list(range(self.split(name).features.shape[0]))
        return [image.get("id", place) for place, image in enumerate(known)]

    @cached_property
    def _references(self) -> Any:
        """Contents of `references.json`, read once."""
        return read_json(self.folder / layout.REFERENCES)

    def _described(self, name: str) -> list[dict[str, Any]] | None:
        """Return the images of a split in `references.json`, or None without that file."""
        path = self.folder / layout.REFERENCES
        if not path.exists():
            return None
        return described(path, self._references, name, self.split(name).features.shape[0])


def described(path: Path, content: Any, name: str, count: int) -> list[dict[str, Any]]:
    """Check the contents of `references.json`, and return its `count` images of a split."""
    images = content.get(name) if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(map(_is_described, images)):
        raise DataError(
            f"{path}: expected '{name}', a list of objects with 'captions', each a list of texts,"
            " and 'id', if any, a whole number or a text"
        )
    if len(images) != count:
        raise DataError(
            f"{path}: '{name}' has {len(images)} images; expected {count} as the features have"
        )
    return images


def _is_described(image: Any) -> bool:
    captions = image.get("captions") if isinstance(image, dict) else None
    return (
        isinstance(captions, list)
        and all(isinstance(caption, str) for caption in captions)
        and type(image.get("id", 0)) in (int, str)
    )


def open_dataset(
    folder: Path,
    features: str = "auto",
    *,
    lazy: bool = False,
    dtype: str = "float32",
    max_train: int | None = None,
    rng: numpy.random.Generator | None = None,
) -> Dataset:
    """Open a data folder (`xpcap.data.folder`): the original CS231n one, or one made by xpcap.

    Features are `"pca"`, `"fc7"`, or by `"auto"` pca if there are any, else fc7; if `lazy`, they
    stay in their files, and those of the test split always do. Of the training captions `rng` draws
    `max_train` without replacement. A `DataError` is raised if a file is missing, damaged or has
    other contents.
    """
    check_folder(folder)
    if not any((folder / name).exists() for name in (layout.CAPTIONS, layout.VOCABULARY)):
        raise DataError(
            f"{folder} is not a data folder: it has no {layout.CAPTIONS}; expected one made by"
            " xpcap data prepare (xpcap data --help)"
        )
    kind = _choose_features(folder, features)
    vocabulary = Vocabulary.read(folder / layout.VOCABULARY)
    splits = {}
    with open_hdf5(folder / layout.CAPTIONS) as file:
        for name in splits_in(file, folder / layout.CAPTIONS):
            captions, image_idxs = read_split_captions(
                file, folder / layout.CAPTIONS, name, vocabulary
            )
            path = feature_path(folder, name, kind)
            stays = lazy or name == layout.TEST  # training does not need the test split
            values = LazyFeatures(path, dtype) if stays else read_features(path, dtype)
            check_images(folder, name, image_idxs, path, values.shape[0])
            urls = read_urls(folder / layout.urls_file(name), values.shape[0])
            splits[name] = Split(captions, image_idxs.astype(numpy.int32), values, urls)
    check_widths(folder, kind, {name: split.features.shape for name, split in splits.items()})
    if max_train is not None:
        splits["train"] = _draw(splits["train"], max_train, rng or numpy.random.default_rng())
    return Dataset(folder, vocabulary, splits, kind, read_description(folder))


def splits_in(file: Any, path: Path) -> tuple[str, ...]:
    """Return the splits of an open captions file: `SPLITS`, and `TEST` if it has its captions."""
    key = f"{layout.TEST}_captions"
    with whole(path, key, "found in it"):
        has_test = key in file
    return (*layout.SPLITS, layout.TEST) if has_test else layout.SPLITS


def check_folder(folder: Path) -> None:
    """Raise a `DataError` unless there is such a folder."""
    with explained(folder, "read"):
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder; expected a data folder (xpcap data --help)")


def read_description(folder: Path) -> dict[str, Any]:
    """Read `dataset.json`; without one, the data set has the name of its folder."""
    path = folder / layout.DESCRIPTION
    if not path.exists():
        return {"name": folder.resolve().name}
    description = read_json(path, SMALL)
    if (
        not isinstance(description, dict)
        or not isinstance(description.get("name"), str)
        or not isinstance(description.get("features", ""), str)
        or not isinstance(description.get("extractor", {}), dict)
        or not _is_plain_name(description.get("pictures", "pictures"))
    ):
        raise DataError(
            f"{path}: expected an object with 'name', a text; and, if any, 'features', a text,"
            " 'extractor', an object, and 'pictures', the name of a file beside it"
        )
    return description


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and name == Path(name).name


def feature_kinds(folder: Path) -> list[str]:
    """Return which features a data folder has: `"pca"`, `"fc7"`, both or none."""
    return [
        kind
        for kind in layout.FEATURE_KINDS
        if any((folder / layout.features_file(name, kind)).exists() for name in layout.SPLITS)
    ]


def _choose_features(folder: Path, features: str) -> str:
    found = feature_kinds(folder)
    if features == "auto":
        return found[0] if found else "fc7"
    if features not in layout.FEATURE_KINDS:
        raise DataError(f"features '{features}' are unknown; expected auto, pca or fc7")
    if found and features not in found:
        wanted = layout.features_file("train", features)
        raise DataError(f"{folder} has no {features} features ({wanted}), only {found[0]}")
    return features


def feature_path(folder: Path, split: str, kind: str) -> Path:
    """Return the path of a split's features; if they are missing, a `DataError` says what helps."""
    path = folder / layout.features_file(split, kind)
    with explained(path, "read"):
        exists = path.exists()
    if not exists:
        making = f"xpcap data pca {folder} --replace makes them"
        if kind == "fc7":
            making = "xpcap data prepare --extractor NAME computes them, see datasets/README.md"
        raise DataError(f"{folder} has no features of '{split}' ({path.name}): {making}")
    return path


def read_split_captions(
    file: Any, path: Path, name: str, vocabulary: Vocabulary
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Read and check a split's captions `(M, T)` int32 and image indices `(M,)`."""
    key = f"{name}_captions"
    hint = "" if name == "train" else f"; xpcap data prepare makes a split '{name}'"
    captions = read_array(file, path, key, 2, "iu", hint)
    image_idxs = read_array(file, path, f"{name}_image_idxs", 1, "iu")
    if len(captions) != len(image_idxs):
        raise DataError(
            f"{path}: '{key}' has {len(captions)} rows and '{name}_image_idxs' {len(image_idxs)};"
            " expected the same number"
        )
    if captions.size == 0 or captions.shape[1] < 2:
        raise DataError(
            f"{path}: '{key}' is {captions.shape}; expected at least one caption of two words"
        )
    if captions.min() < 0 or captions.max() >= len(vocabulary):
        raise DataError(
            f"{path}: '{key}' holds word indices {captions.min()} to {captions.max()}; expected"
            f" 0 to {len(vocabulary) - 1} as {layout.VOCABULARY} has {len(vocabulary)} words"
        )
    places = vocabulary.word_to_idx
    for wrong, problem in (
        (captions[:, 0] != places[START], f"does not begin with {START}, as all must"),
        ((captions[:, 1:] == places[NULL]).all(axis=1), f"has no word after {START}"),
    ):
        if wrong.any():
            raise DataError(f"{path}: '{key}' row {int(numpy.argmax(wrong))} {problem}")
    return captions.astype(numpy.int32), image_idxs


def check_images(
    folder: Path, name: str, image_idxs: numpy.ndarray, path: Path, images: int
) -> None:
    """Check that the image indices are rows of the feature file `path` of `images` rows."""
    if image_idxs.min() < 0 or image_idxs.max() >= images:
        raise DataError(
            f"{path} has {images} rows, but '{name}_image_idxs' in {folder / layout.CAPTIONS}"
            f" names images {image_idxs.min()} to {image_idxs.max()}"
        )


def check_widths(folder: Path, kind: str, shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that the features of all splits have the same shape per image."""
    widths = {
        split: shape[1] if len(shape) == 2 else (*shape[1:],) for split, shape in shapes.items()
    }
    if len(set(widths.values())) > 1:
        raise DataError(
            f"{folder}: {kind} features per image are {widths}; expected the same number"
        )


def read_urls(path: Path, images: int | None) -> list[str]:
    """Read a file of one line per image, and check their number, if it is known."""
    urls = read_bytes(path).decode("utf-8", "replace").splitlines()
    if images is not None and len(urls) != images:
        raise DataError(f"{path} has {len(urls)} lines; expected {images}, one per image")
    return [url.strip() for url in urls]


def _draw(split: Split, count: int, rng: numpy.random.Generator) -> Split:
    if not 1 <= count <= len(split):
        raise DataError(f"max-train {count} is not in 1..{len(split)}, the training captions")
    rows = numpy.sort(rng.choice(len(split), count, replace=False))
    return Split(split.captions[rows], split.image_idxs[rows], split.features, split.urls)
