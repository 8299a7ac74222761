"""The data folder of the CS231n assignment: its files, and how they are written.

The names are the assignment's, so that its folder opens unchanged and its code reads ours.
`dataset.json` adds where the features come from, and how the data set was made.

    coco2014_captions.h5               train_captions (M, T), train_image_idxs (M,), val_... ; int32
    coco2014_vocab.json                idx_to_word, word_to_idx; tokens, if they are characters
    {train,val}2014_vgg16_fc7.h5       features (images, D) float32, or (images, L, D) float16
    {train,val}2014_vgg16_fc7_pca.h5   features (images, 512) float32, or (images, L, 512) float16
    {train,val}2014_urls.txt           one line per image: where to see it
    references.json                    optional: for each image its id and all captions, as written
    pca.h5                             optional: mean, components, explained_variance
    dataset.json                       optional: name, features, extractor, ...

Features of L regions are those of a grid, row by row, or of objects. A region is absent if its D
values are all zero, as in images that have fewer.

There may be a split `test` as well, in the same arrays and files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.hdf5 import write_arrays, write_rows
from xpcap.data.vocabulary import Vocabulary
from xpcap.errors import DataError
from xpcap.files import explained

SPLITS = ("train", "val")  # of every data folder
TEST = "test"  # the split that a folder may have as well
FEATURE_KINDS = ("pca", "fc7")
CAPTIONS = "coco2014_captions.h5"
VOCABULARY = "coco2014_vocab.json"
REFERENCES = "references.json"
PCA = "pca.h5"
DESCRIPTION = "dataset.json"


def features_file(split: str, kind: str) -> str:
    """Return the name of a split's feature file; `kind` is `"fc7"` or `"pca"`."""
    return f"{split}2014_vgg16_fc7{'_pca' if kind == 'pca' else ''}.h5"


def urls_file(split: str) -> str:
    """Return the name of the file with one line per image of a split."""
    return f"{split}2014_urls.txt"


@dataclass
class CaptionedImage:
    """An image of a data set, and its captions as written."""

    id: int | str  # in the source of the images
    url: str
    captions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SplitContents:
    """What is written for one split: `image_idxs` are indices of `images` and of features."""

    captions: numpy.ndarray  # (M, T), word indices <START> ... <END> padded with <NULL>
    image_idxs: numpy.ndarray  # (M,)
    images: Sequence[CaptionedImage]
    # by kind, (images, D) or (images, L, D)
    features: Mapping[str, numpy.ndarray] = field(default_factory=dict)


def write_contents(
    folder: Path,
    vocabulary: Vocabulary,
    splits: Mapping[str, SplitContents],
    description: Mapping[str, Any],
) -> None:
    """Write a data set into an existing folder, or raise a `DataError`.

    `description` is stored as `dataset.json`, with at least `"name"`.
    """
    vocabulary.write(folder / VOCABULARY)
    indices = {}
    for split, contents in splits.items():
        indices[f"{split}_captions"] = contents.captions.astype(numpy.int32)
        indices[f"{split}_image_idxs"] = contents.image_idxs.astype(numpy.int32)
    with explained(folder / CAPTIONS, "write"):
        write_arrays(folder / CAPTIONS, indices)
    references = {}
    for split, contents in splits.items():
        for kind, features in contents.features.items():
            path = folder / features_file(split, kind)
            with explained(path, "write"):
                write_features(path, features.shape, [features])
        write_text(
            folder / urls_file(split), "".join(f"{image.url}\n" for image in contents.images)
        )
        references[split] = [
            {"id": image.id, "captions": image.captions} for image in contents.images
        ]
    write_text(folder / REFERENCES, json.dumps(references))
    write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def write_features(path: Path, shape: tuple[int, ...], blocks: Iterable[numpy.ndarray]) -> None:
    """Write a feature file of `shape` from blocks of rows, in `stored_dtype(shape[1:])`.

    An `OSError` is raised if it cannot be written, and a `DataError` as by `as_stored`.
    """
    stored = (as_stored(block, path) for block in blocks)
    write_rows(path, "features", shape, stored, stored_dtype(shape[1:]))


def stored_dtype(shape: Sequence[int]) -> numpy.dtype[Any]:
    """Return the dtype of stored features of `shape` per image: float16 of regions."""
    return numpy.dtype(numpy.float32 if len(shape) == 1 else numpy.float16)


def as_stored(features: numpy.ndarray, what: Any) -> numpy.ndarray:
    """Convert rows of features, called `what` in messages, to their stored dtype.

    A `DataError` is raised if finite ones are beyond its range.
    """
    dtype = stored_dtype(features.shape[1:])
    with numpy.errstate(over="ignore"):
        stored = features.astype(dtype, copy=False)
    if not numpy.isfinite(stored).all() and numpy.isfinite(features).all():
        raise DataError(
            f"{what}: features up to {abs(features).max():.3g}; expected at most"
            f" {numpy.finfo(dtype).max:.5g}, as those of regions are stored in {dtype}"
        )
    return stored


def write_text(path: Path, text: str) -> None:
    """Write a text file; lone surrogates, which UTF-8 cannot encode, become question marks."""
    with explained(path, "write"):
        path.write_text(text, encoding="utf-8", errors="replace")
