"""Captions beside their images and what people said of them, ready to be printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from xpcap.data import folder as layout
from xpcap.data.dataset import Dataset, open_dataset
from xpcap.data.pca import PCA
from xpcap.errors import DataError
from xpcap.run_folder import Run


def caption_dataset(run: Run, dataset: Dataset, split: str, count: int) -> list[dict[str, Any]]:
    """Caption evenly spaced images of a split.

    Returns
    -------
    list of dict
        For each image `image` (its address), `caption` and `references`.
    """
    part = dataset.splits[split]
    images = part.features.shape[0]
    rows = numpy.unique(numpy.linspace(0, images - 1, min(count, images)).astype(int))
    captions = run.caption(part.features[rows])
    references = dataset.references(split)
    return [
        {
            "image": part.urls[row],
            "caption": caption,
            "references": references[row],
        }
        for row, caption in zip(rows, captions, strict=True)
    ]


def caption_split(run: Run, split: str, count: int, data: Path | None) -> list[dict[str, Any]]:
    """Caption images of the run's own data set, from `data` if it has moved.

    Raises
    ------
    DataError
        If the data set is not there, or is not the one the run was trained on.
    """
    return caption_dataset(run, open_data(run, data), split, count)


def open_data(run: Run, data: Path | None = None) -> Dataset:
    """Open the run's own data set, from `data` if it has moved, features left in their files.

    Raises
    ------
    DataError
        If the data set is not there, or is not the one the run was trained on.
    """
    folder = data or Path(run.config["data"]["folder"])
    dataset = open_dataset(folder, run.config["data"]["kind"], lazy=True)
    if tuple(dataset.vocabulary.idx_to_word) != tuple(run.vocabulary.idx_to_word):
        raise DataError(f"{folder} has another vocabulary than {run.folder} was trained with")
    if dataset.feature_dim != run.config["model"]["input_dim"]:
        raise DataError(
            f"{folder} has {dataset.feature_dim} features an image; expected"
            f" {run.config['model']['input_dim']}, as {run.folder} was trained with"
        )
    if _maker(dataset.description) != _maker(run.config["data"]):
        raise DataError(
            f"{folder} has features from {_maker(dataset.description)}; expected those from"
            f" {_maker(run.config['data'])}, as {run.folder} was trained with"
        )
    transform = run.transform
    if transform is not None and not transform.equals(PCA.read(folder / layout.PCA)):
        raise DataError(f"{folder} has other principal components than {run.folder}")
    return dataset


def _maker(description: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the extractor of a description, wherever its file lies."""
    extractor = description.get("extractor")
    return extractor and {key: value for key, value in extractor.items() if key != "weights"}


def caption_pictures(
    run: Run, pictures: Sequence[Path], weights: Path | None = None
) -> list[dict[str, Any]]:
    """Caption pictures from files; for each `image` and `caption`."""
    captions = run.caption(run.features_of(pictures, weights))
    return [
        {"image": str(picture), "caption": caption}
        for picture, caption in zip(pictures, captions, strict=True)
    ]
