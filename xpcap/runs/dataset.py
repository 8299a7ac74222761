"""The data set of a run: opening it again, and checking that it is the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy

from xpcap.data.dataset import Dataset, Split, open_dataset
from xpcap.data.folder import SPLITS
from xpcap.data.pca import read_transform
from xpcap.distributed import check_alike
from xpcap.errors import ConfigurationError, DataError
from xpcap.files import explained
from xpcap.models import CaptionModel
from xpcap.runs.run import Run, extractor_of

_COMPARED = 100  # images


def open_data(run: Run, data: Path | None = None) -> Dataset:
    """Open the run's own data set, from `data` if it has moved, features left in their files.

    Another data set than the run was trained on raises `DataError`.
    """
    dataset = open_dataset(data_folder(run, data), run.config["data"]["kind"], lazy=True)
    check_data(run, dataset)
    if run.ranks.size > 1:
        check_alike(run.ranks, digests(dataset.splits, dataset.splits))
    return dataset


def data_folder(run: Run, moved: Path | None) -> Path:
    """Return the data folder of a run, unless it has moved; a `DataError` says where it was."""
    folder = moved or Path(run.config["data"]["folder"])
    with explained(folder, "read"):
        if moved is None and not folder.exists():
            raise DataError(
                f"{folder}, on which {run.folder} was trained, does not exist; expected the data"
                " folder there, or where it is now (data=FOLDER)"
            )
    return folder


def data_configuration(dataset: Dataset) -> dict[str, Any]:
    """Return what the configuration of a run holds of its data set, without `digests`."""
    return {
        "shape": list(dataset.feature_shape),
        "folder": str(dataset.folder.resolve()),
        "kind": dataset.kind,
        "name": dataset.description["name"],
        "features": dataset.description.get("features"),
        "extractor": dataset.description.get("extractor"),
        "max_words": dataset.max_words,
    }


def check_data(run: Run, dataset: Dataset) -> None:
    """Raise `DataError` unless a data set has the vocabulary and features of a run."""
    folder = dataset.folder
    if dataset.vocabulary.stored() != run.vocabulary.stored():
        raise DataError(f"{folder} has another vocabulary than {run.folder} was trained with")
    found, expected = dataset.feature_shape, run.feature_shape
    if len(found) != len(expected) or found[-1] != expected[-1]:  # there may be more regions
        raise DataError(
            f"{folder} has {' x '.join(map(str, found))} features per image; expected"
            f" {' x '.join(map(str, expected))}, as {run.folder} was trained with"
        )
    origin, wanted = extractor_of(dataset.description), extractor_of(run.config["data"])
    if origin != wanted:
        raise DataError(
            f"{folder} has features from {origin}; expected those from {wanted}, as {run.folder}"
            " was trained with"
        )
    transform = run.transform
    if transform is not None and not transform.equals(read_transform(folder)):
        raise DataError(f"{folder} has other principal components than {run.folder}")


def check_regions(family: type[CaptionModel], dataset: Dataset) -> None:
    """Raise `ConfigurationError` if a model family needs regions that a data set does not have."""
    if family.needs_regions and len(dataset.feature_shape) == 1:
        raise ConfigurationError(
            f"model '{family.family}' looks at regions, but {dataset.folder} has one vector for"
            " each image; expected features of regions, as xpcap data prepare --output grid makes"
            " them"
        )


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


def digests(splits: Mapping[str, Split], names: Iterable[str] = SPLITS) -> dict[str, str]:
    """Return hashes by which a run recognizes its training and validation data, or other splits.

    `captions` is of all captions and their images, `feature_values` of the features' shapes and of
    those of some images.
    """
    parts = [splits[name] for name in names]
    shapes = numpy.array([split.features.shape for split in parts])
    return {
        "captions": _digest(array for part in parts for array in (part.captions, part.image_idxs)),
        "feature_values": _digest([shapes, *map(_some_features, parts)]),
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
