"""The data folder of the CS231n assignment: which file holds what, and how one is written.

The names are the assignment's (`coco2014_captions.h5`, `train2014_vgg16_fc7.h5`, ...), so that its
own folder opens as it comes and its readers open ours. What a name cannot say, `dataset.json`
does: where the features come from, and how the set was made.

    coco2014_captions.h5              train_captions (M, T), train_image_idxs (M,), val_... ; int32
    coco2014_vocab.json               idx_to_word, word_to_idx
    {train,val}2014_vgg16_fc7.h5      features (images, D) float32
    {train,val}2014_vgg16_fc7_pca.h5  features (images, 512) float32
    {train,val}2014_urls.txt          a line an image: where to see it
    references.json                   optional: for each image its id and all captions, as written
    pca.h5                            optional: mean, components, explained_variance
    dataset.json                      optional: name, extractor, how it was made
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.hdf5 import write_arrays
from xpcap.data.vocabulary import Vocabulary
from xpcap.files import explained

SPLITS = ("train", "val")
FEATURE_KINDS = ("pca", "fc7")
CAPTIONS = "coco2014_captions.h5"
VOCABULARY = "coco2014_vocab.json"
REFERENCES = "references.json"
PCA = "pca.h5"
DESCRIPTION = "dataset.json"
_BLOCK = 1024


def features_file(split: str, kind: str) -> str:
    """Name the file that holds the features of a split; `kind` is `"fc7"` or `"pca"`."""
    return f"{split}2014_vgg16_fc7{'_pca' if kind == 'pca' else ''}.h5"


def urls_file(split: str) -> str:
    """Name the file that holds a line an image of a split."""
    return f"{split}2014_urls.txt"


@dataclass(frozen=True)
class SplitContents:
    """What is written for one split.

    Parameters
    ----------
    captions
        Word indices `(M, T)` int32, each row `<START> ... <END>` padded with `<NULL>`.
    image_idxs
        The image of each caption, `(M,)` int32: a row of `features`, `urls`, `ids`, `references`.
    features
        Features by kind (`"fc7"`, `"pca"`), each `(images, D)` float32.
    urls
        A line an image.
    ids
        The image's number where it came from.
    references
        All captions of each image, as people wrote them.
    """

    captions: numpy.ndarray
    image_idxs: numpy.ndarray
    features: Mapping[str, numpy.ndarray]
    urls: Sequence[str]
    ids: Sequence[int]
    references: Sequence[Sequence[str]]


def write_contents(
    folder: Path,
    vocabulary: Vocabulary,
    splits: Mapping[str, SplitContents],
    description: Mapping[str, Any],
) -> None:
    """Write a data set into an existing folder (inside `xpcap.files.new_folder`, say).

    Parameters
    ----------
    folder
        An existing folder.
    vocabulary
        The words.
    splits
        The contents of `"train"` and `"val"`.
    description
        What `dataset.json` will hold; `"name"` and `"features"` (in words) are expected of all.

    Raises
    ------
    DataError
        If a file cannot be written.
    """
    import h5py

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
            with explained(path, "write"), h5py.File(path, "w") as file:
                file["features"] = features
        write_text(folder / urls_file(split), "".join(f"{url}\n" for url in contents.urls))
        references[split] = [
            {"id": id_, "captions": list(captions)}
            for id_, captions in zip(contents.ids, contents.references, strict=True)
        ]
    write_text(folder / REFERENCES, json.dumps(references))
    write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def write_features(
    path: Path, rows: Sequence[int], dim: int, read: Callable[[Sequence[int]], numpy.ndarray]
) -> None:
    """Write a feature file block by block, as it may not fit in memory.

    Parameters
    ----------
    path
        The file.
    rows
        The numbers of its rows where they come from.
    dim
        D, the numbers in a row.
    read
        Returns the rows `(R, dim)` of some numbers.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    import h5py

    with explained(path, "write"), h5py.File(path, "w") as file:
        written = file.create_dataset("features", (len(rows), dim), numpy.float32)
        for first in range(0, len(rows), _BLOCK):
            written[first : first + _BLOCK] = read(rows[first : first + _BLOCK])


def write_text(path: Path, text: str) -> None:
    """Write a text file inside a folder that is itself being made.

    Halves of characters, which JSON can hold and UTF-8 cannot, become question marks.
    """
    with explained(path, "write"):
        path.write_text(text, encoding="utf-8", errors="replace")
