"""The data set as a dictionary of arrays, as in the CS231n assignment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy

from xpcap.backend import default_backend
from xpcap.data import folder as layout
from xpcap.data.dataset import check_folder, feature_kinds, open_dataset
from xpcap.errors import DataError

FOLDERS = ("datasets/coco_captioning", "cs231n/datasets/coco_captioning")
"""Where the assignment keeps its data set, relative to the current folder."""

_HOW = (
    "`xpcap data download coco` fetches the course's data set (1 GB), and `xpcap data scenes --out"
    " datasets/scenes` draws one for load_coco_data('datasets/scenes')"
)


def load_coco_data(
    base_dir: str | Path | None = None,
    max_train: int | None = None,
    pca_features: bool = True,
) -> dict[str, Any]:
    """Read a data folder, by default the first of `FOLDERS` that there is, into a dictionary.

    `pca_features` are those reduced by PCA, else fc7's; if there are only the others, these are
    read. Which, and from where, is printed. Of the training captions only `max_train` are kept,
    drawn with NumPy's global generator.

    Returns
    -------
    dict
        `train_captions (M, T)` and `train_image_idxs (M,)` int32, `train_features (images, D)`
        float32, `train_urls (images,)` text, web addresses or absolute paths; the same for `val`
        and, if there is one, `test`; `idx_to_word`, a list, and `word_to_idx`, a dict. All but text
        and words are on the default backend.

    Raises
    ------
    DataError
        If there is no such folder, it has no features, or a file cannot be used.
    """
    folder = _default_folder() if base_dir is None else Path(base_dir)
    check_folder(folder)
    kinds = feature_kinds(folder)
    if not kinds:
        raise DataError(f"{folder} has no image features; {_HOW}")
    wanted = "pca" if pca_features else "fc7"
    dataset = open_dataset(
        folder,
        wanted if wanted in kinds else "auto",
        max_train=max_train,
        rng=numpy.random.default_rng(numpy.random.randint(2**31 - 1)),
    )
    print(f"base dir  {folder}: {dataset.kind} features, {dataset.feature_dim} per image")
    backend = default_backend()
    data: dict[str, Any] = {
        "idx_to_word": list(dataset.vocabulary.idx_to_word),
        "word_to_idx": dict(dataset.vocabulary.word_to_idx),
    }
    for name, split in dataset.splits.items():
        data[f"{name}_captions"] = backend.to_device(split.captions)
        data[f"{name}_image_idxs"] = backend.to_device(split.image_idxs)
        data[f"{name}_features"] = backend.to_device(split.features[:])
        addresses = [dataset.address(name, row) for row in range(len(split.urls))]
        data[f"{name}_urls"] = numpy.array(addresses)
    return data


def _default_folder() -> Path:
    for folder in map(Path, FOLDERS):
        if (folder / layout.CAPTIONS).exists():
            return folder
    raise DataError(f"there is no data set in {' or '.join(FOLDERS)}; {_HOW}")
