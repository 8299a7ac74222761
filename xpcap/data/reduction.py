"""Reducing the features of a data folder to their principal components, in bounded memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy

from xpcap.backend import CPU, Backend
from xpcap.data import folder as layout
from xpcap.data.features import LazyFeatures
from xpcap.data.pca import PCA, Clock, blocks, fit_components
from xpcap.data.progress import Progress, say_nothing
from xpcap.errors import DataError
from xpcap.files import explained, new_file


@dataclass(frozen=True)
class PCAReport:
    """What was done, and how long it took.

    Parameters
    ----------
    images
        How many images, of both splits.
    width
        The numbers an image had.
    dim
        The numbers it has now.
    explained
        The share of the training features' variance that is left.
    seconds
        All the time it took.
    product_seconds
        The part of it in which features were multiplied.
    """

    images: int
    width: int
    dim: int
    explained: float
    seconds: float
    product_seconds: float


def reduce_folder(
    folder: Path,
    dim: int = 512,
    whiten: bool = False,
    backend: Backend = CPU,
    progress: Progress = say_nothing,
    replace: bool = False,
) -> PCAReport:
    """Write the pca features of both splits, and the transform, beside the fc7 features.

    The components are those of the training split. Features are read and written in blocks.

    Parameters
    ----------
    folder
        A data folder with fc7 features.
    dim
        How many components to keep.
    whiten
        Give every component variance 1; else they are scaled with one number.
    backend
        Where it is computed.
    progress
        Told how far it is.
    replace
        Write over pca features that are there.

    Raises
    ------
    DataError
        If there are no features, or pca features already; if they cannot be reduced (`PCA.fit`);
        or a file cannot be written. The folder then is as it was.
    """
    begun = time.perf_counter()
    targets = {split: folder / layout.features_file(split, "pca") for split in layout.SPLITS}
    if not replace:
        _check_none((*targets.values(), folder / layout.PCA))
    products = Stopwatch(backend)
    with contextlib.ExitStack() as stack:
        features = {
            split: stack.enter_context(
                contextlib.closing(LazyFeatures(folder / layout.features_file(split, "fc7")))
            )
            for split in layout.SPLITS
        }
        _check_widths(folder, {split: rows.shape[1] for split, rows in features.items()})
        pca, share = fit_components(features["train"], dim, whiten, backend, progress, products)
        for split, rows in features.items():
            temporary = stack.enter_context(new_file(targets[split]))
            _write_reduced(temporary, split, rows, pca, backend, progress, products)
        pca.write(folder / layout.PCA)  # the last to be written; then the others take their names
    return PCAReport(
        images=sum(rows.shape[0] for rows in features.values()),
        width=pca.components.shape[1],
        dim=dim,
        explained=share,
        seconds=time.perf_counter() - begun,
        product_seconds=products.seconds,
    )


def _check_none(paths: Iterable[Path]) -> None:
    for path in paths:
        with explained(path, "read"):
            there = path.exists()
        if there:
            raise DataError(f"{path} is there already; expected none (or --replace)")


def _check_widths(folder: Path, widths: Mapping[str, int]) -> None:
    if len(set(widths.values())) > 1:
        raise DataError(f"{folder}: features have {widths} numbers an image; expected one size")


def _write_reduced(
    path: Path,
    split: str,
    features: LazyFeatures,
    pca: PCA,
    backend: Backend,
    progress: Progress,
    clock: Clock,
) -> None:
    import h5py

    count, dim = features.shape[0], len(pca.components)
    with h5py.File(path, "w") as file:
        reduced = file.create_dataset("features", (count, dim), numpy.float32)
        for block in blocks(features):
            reduced[block] = pca.transform(features[block], backend, clock)
            progress(f"{split} features", block.stop, count)


class Stopwatch:
    """Adds up the seconds that a device needs for what is done inside `with`.

    Parameters
    ----------
    backend
        The device: all it was asked for is waited for, before and after.
    """

    def __init__(self, backend: Backend) -> None:
        self.seconds = 0.0
        self._backend = backend

    def __enter__(self) -> None:
        self._backend.synchronize()
        self._begun = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._backend.synchronize()
        self.seconds += time.perf_counter() - self._begun
