"""The data set as a dictionary of arrays, as in the CS231n assignment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy

from xpcap.backend import default_backend
from xpcap.data.dataset import open_dataset

DEFAULT_FOLDER = Path("datasets") / "coco_captioning"


def load_coco_data(
    base_dir: str | Path | None = None,
    max_train: int | None = None,
    pca_features: bool = True,
) -> dict[str, Any]:
    """Read a data folder, by default `datasets/coco_captioning`, into a dictionary.

    `pca_features` are those reduced by PCA, else fc7's. Of the training captions only `max_train`
    are kept, drawn with NumPy's global generator.

    Returns
    -------
    dict
        `train_captions (M, T)` and `train_image_idxs (M,)` int32, `train_features (images, D)`
        float32, `train_urls (images,)` text; the same for `val` and, if there is one, `test`;
        `idx_to_word`, a list, and `word_to_idx`, a dict. All but text and words are on the default
        backend.
    """
    dataset = open_dataset(
        Path(base_dir) if base_dir is not None else DEFAULT_FOLDER,
        "pca" if pca_features else "fc7",
        max_train=max_train,
        rng=numpy.random.default_rng(numpy.random.randint(2**31 - 1)),
    )
    backend = default_backend()
    data: dict[str, Any] = {
        "idx_to_word": list(dataset.vocabulary.idx_to_word),
        "word_to_idx": dict(dataset.vocabulary.word_to_idx),
    }
    for name, split in dataset.splits.items():
        data[f"{name}_captions"] = backend.to_device(split.captions)
        data[f"{name}_image_idxs"] = backend.to_device(split.image_idxs)
        data[f"{name}_features"] = backend.to_device(split.features[:])
        data[f"{name}_urls"] = numpy.asarray(split.urls)
    return data
