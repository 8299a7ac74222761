"""Captions beside their images and what people said of them, ready to be printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from xpcap.data import folder as layout
from xpcap.data.dataset import Dataset, open_dataset
from xpcap.data.pca import PCA
from xpcap.data.vocabulary import decode_captions, plain
from xpcap.decoding import Beam, Sampling
from xpcap.errors import DataError
from xpcap.parallel import check_alike
from xpcap.run_folder import Run, extractor_of
from xpcap.train.options import fingerprints


def caption_dataset(
    run: Run, dataset: Dataset, split: str, count: int, how: Beam | Sampling | None = None
) -> list[dict[str, Any]]:
    """Caption evenly spaced images of a split.

    Parameters
    ----------
    run, dataset, split
        Who captions, and which images.
    count
        How many.
    how
        How captions are found, see `Run.decode`.

    Returns
    -------
    list of dict
        For each image `image` (its address), `caption`, `references` and `captions`: all that were
        found, the best first, with `caption`, its `log_prob` in nats and its `words`, each a `word`
        with a `log_prob`; the last word is `<END>`.
    """
    part = dataset.splits[split]
    images = part.features.shape[0]
    rows = numpy.unique(numpy.linspace(0, images - 1, min(count, images)).astype(int))
    found = _captions(run, part.features[rows], how)
    references = dataset.references(split)
    return [
        {
            "image": part.urls[row],
            "caption": captions[0]["caption"],
            "references": references[row],
            "captions": captions,
        }
        for row, captions in zip(rows, found, strict=True)
    ]


def caption_split(
    run: Run, split: str, count: int, data: Path | None, how: Beam | Sampling | None = None
) -> list[dict[str, Any]]:
    """Caption images of the run's own data set, from `data` if it has moved.

    Raises
    ------
    DataError
        If the data set is not there, or is not the one the run was trained on.
    """
    return caption_dataset(run, open_data(run, data), split, count, how)


def open_data(run: Run, data: Path | None = None) -> Dataset:
    """Open the run's own data set, from `data` if it has moved, features left in their files.

    Raises
    ------
    DataError
        If the data set is not there, or is not the one the run was trained on.
    ConfigurationError
        If the run's ranks have different ones.
    """
    folder = data or Path(run.config["data"]["folder"])
    dataset = open_dataset(folder, run.config["data"]["kind"], lazy=True)
    check_data(run, dataset)
    if run.ranks.size > 1:
        check_alike(run.ranks, fingerprints(dataset.splits))
    return dataset


def check_data(run: Run, dataset: Dataset) -> None:
    """Check that a data set has the words and the features that a run was trained with.

    Raises
    ------
    DataError
        If it has not.
    """
    folder = dataset.folder
    if tuple(dataset.vocabulary.idx_to_word) != tuple(run.vocabulary.idx_to_word):
        raise DataError(f"{folder} has another vocabulary than {run.folder} was trained with")
    if dataset.feature_dim != run.config["model"]["input_dim"]:
        raise DataError(
            f"{folder} has {dataset.feature_dim} features an image; expected"
            f" {run.config['model']['input_dim']}, as {run.folder} was trained with"
        )
    found, expected = extractor_of(dataset.description), extractor_of(run.config["data"])
    if found != expected:
        raise DataError(
            f"{folder} has features from {found}; expected those from {expected}, as {run.folder}"
            " was trained with"
        )
    transform = run.transform
    if transform is not None and not transform.equals(PCA.read(folder / layout.PCA)):
        raise DataError(f"{folder} has other principal components than {run.folder}")


def caption_pictures(
    run: Run,
    pictures: Sequence[Path],
    weights: Path | None = None,
    how: Beam | Sampling | None = None,
) -> list[dict[str, Any]]:
    """Caption pictures from files; of each `image`, `caption`, `captions` as `caption_dataset`."""
    found = _captions(run, run.features_of(pictures, weights), how)
    return [
        {"image": str(picture), "caption": captions[0]["caption"], "captions": captions}
        for picture, captions in zip(pictures, found, strict=True)
    ]


def _captions(
    run: Run, features: numpy.ndarray, how: Beam | Sampling | None
) -> list[list[dict[str, Any]]]:
    """Return for each image the captions that were found, the best first."""
    decoded = run.decode(features, how)
    return [
        [
            _caption(run, words, log_probs)
            for words, log_probs, score in zip(*of_image, strict=True)
            if score > -numpy.inf
        ]
        for of_image in zip(*decoded, strict=True)
    ]


def _caption(run: Run, words: numpy.ndarray, log_probs: numpy.ndarray) -> dict[str, Any]:
    """Return a caption `(T,)` as text, with the log-probabilities of it and of its words."""
    sentence = decode_captions(words, run.vocabulary.idx_to_word)
    said = log_probs[words != run.model.null].tolist()
    return {
        "caption": plain(str(sentence)),
        "log_prob": sum(said),
        "words": [
            {"word": word, "log_prob": log_prob}
            for word, log_prob in zip(str(sentence).split(), said, strict=True)
        ],
    }
