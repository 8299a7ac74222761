"""The data set of a run: opening it again, and checking that it is the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy

from xpcap.data import folder as layout
from xpcap.data.dataset import Dataset, Split, open_dataset
from xpcap.data.pca import PCA
from xpcap.distributed import check_alike
from xpcap.errors import DataError
from xpcap.runs.run import Run, extractor_of

_COMPARED = 100  # images


def open_data(run: Run, data: Path | None = None) -> Dataset:
    """Open the run's own data set, from `data` if it has moved, features left in their files.

    Another data set than the run was trained on raises `DataError`.
    """
    folder = data or Path(run.config["data"]["folder"])
    dataset = open_dataset(folder, run.config["data"]["kind"], lazy=True)
    check_data(run, dataset)
    if run.ranks.size > 1:
        check_alike(run.ranks, fingerprints(dataset.splits))
    return dataset


def check_data(run: Run, dataset: Dataset) -> None:
    """Raise `DataError` unless a data set has the vocabulary and features of a run."""
    folder = dataset.folder
    if dataset.vocabulary.stored() != run.vocabulary.stored():
        raise DataError(f"{folder} has another vocabulary than {run.folder} was trained with")
    if dataset.feature_dim != run.config["model"]["input_dim"]:
        raise DataError(
            f"{folder} has {dataset.feature_dim} features per image; expected"
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


def check_unchanged(run: Run, dataset: Dataset) -> None:
    """Raise `DataError` unless a run was trained on these captions, and on these features."""
    found = digests(dataset.splits)
    recorded = {"feature_values": found["feature_values"], **run.config["data"]}  # not by old runs
    for name, digest in found.items():
        if recorded.get(name) != digest:
            raise DataError(
                f"{dataset.folder} has other {name.replace('_', ' ')} than {run.folder} was trained"
                " with; expected the same, or a new run"
            )


def fingerprints(splits: Mapping[str, Split]) -> dict[str, str]:
    """Return, by name, hashes of the captions of each split, and of the features of some images."""
    found = {}
    for name, split in splits.items():
        found[f"captions of '{name}'"] = _digest([split.captions, split.image_idxs])
        found[f"features of '{name}'"] = _digest([_some_features(split)])
    return found


def digests(splits: Mapping[str, Split]) -> dict[str, str]:
    """Return hashes by which a run recognizes its training and validation data.

    `captions` is of all captions and their images, `feature_values` of the features' shapes and of
    those of some images.
    """
    both = splits["train"], splits["val"]
    shapes = numpy.array([split.features.shape for split in both])
    return {
        "captions": _digest(array for part in both for array in (part.captions, part.image_idxs)),
        "feature_values": _digest([shapes, *map(_some_features, both)]),
    }


def _some_features(split: Split) -> numpy.ndarray:
    """Return the features of evenly spaced images, as cheap to read as a batch."""
    images = split.features.shape[0]
    rows = numpy.unique(numpy.linspace(0, images - 1, _COMPARED).astype(int))
    return numpy.asarray(split.features[rows])


def _digest(arrays: Iterable[numpy.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(numpy.ascontiguousarray(array).data)
    return digest.hexdigest()
