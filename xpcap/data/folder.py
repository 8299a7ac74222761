"""The data folder of the CS231n assignment: its files, and how they are written.

The names are the assignment's, so that its folder opens unchanged and its code reads ours.
`dataset.json` adds where the features come from, and how the data set was made.

    coco2014_captions.h5               train_captions (M, T), train_image_idxs (M,), val_... ; int32
    coco2014_vocab.json                idx_to_word, word_to_idx; tokens, if they are characters
    {train,val}2014_vgg16_fc7.h5       features (images, D) float32
    {train,val}2014_vgg16_fc7_pca.h5   features (images, 512) float32
    {train,val}2014_urls.txt           one line per image: where to see it
    references.json                    optional: for each image its id and all captions, as written
    pca.h5                             optional: mean, components, explained_variance
    dataset.json                       optional: name, features, extractor, ...

There may be a split `test` as well, in the same arrays and files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.hdf5 import write_arrays
from xpcap.data.vocabulary import Vocabulary
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


@dataclass(frozen=True)
class SplitContents:
    """What is written for one split: `image_idxs` are indices of `urls`, `ids` and the others."""

    captions: numpy.ndarray  # (M, T), word indices <START> ... <END> padded with <NULL>
    image_idxs: numpy.ndarray  # (M,)
    urls: Sequence[str]
    ids: Sequence[int | str]  # in the source of the images
    references: Sequence[Sequence[str]]  # captions as written
    features: Mapping[str, numpy.ndarray] = field(default_factory=dict)  # by kind, (images, D)


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
        write_text(folder / urls_file(split), "".join(f"{url}\n" for url in contents.urls))
        references[split] = [
            {"id": id_, "captions": list(captions)}
            for id_, captions in zip(contents.ids, contents.references, strict=True)
        ]
    write_text(folder / REFERENCES, json.dumps(references))
    write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def write_features(path: Path, shape: tuple[int, ...], blocks: Iterable[numpy.ndarray]) -> None:
    """Write a feature file of `shape` `(images, D)` from blocks of rows, or raise an `OSError`."""
    import h5py

    with h5py.File(path, "w") as file:
        written, first = file.create_dataset("features", shape, numpy.float32), 0
        for block in blocks:
            written[first : first + len(block)] = block
            first += len(block)


def write_text(path: Path, text: str) -> None:
    """Write a text file; lone surrogates, which UTF-8 cannot encode, become question marks."""
    with explained(path, "write"):
        path.write_text(text, encoding="utf-8", errors="replace")
