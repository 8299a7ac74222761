"""Reducing the features of a data folder to their principal components, in bounded memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy

from xpcap.backend import CPU, Backend
from xpcap.data import folder as layout
from xpcap.data.dataset import check_widths
from xpcap.data.features import LazyFeatures, row_blocks
from xpcap.data.pca import PCA, fit_components
from xpcap.data.progress import Progress, no_progress
from xpcap.errors import DataError
from xpcap.files import explained, new_file


@dataclass(frozen=True)
class PCAReport:
    """Result of `reduce_folder`: `images` of both splits have `dim` instead of `width` features.

    `explained` is the share of the training features' variance that is kept.
    """

    images: int
    width: int
    dim: int
    explained: float
    seconds: float


def reduce_folder(
    folder: Path,
    dim: int = 512,
    whiten: bool = False,
    backend: Backend = CPU,
    progress: Progress = no_progress,
    replace: bool = False,
) -> PCAReport:
    """Reduce the fc7 features of a data folder to `dim` principal components of its training split.

    Writes the pca features of both splits, which replace existing ones if `replace`, and the
    transform; features are read and written in blocks. See `fit_components` for the other options.

    Raises
    ------
    DataError
        If there are no features, or pca features already; if they cannot be reduced; or a file
        cannot be written. The folder is then unchanged.
    """
    begun = time.perf_counter()
    targets = {split: folder / layout.features_file(split, "pca") for split in layout.SPLITS}
    for path in () if replace else (*targets.values(), folder / layout.PCA):
        with explained(path, "read"):
            exists = path.exists()
        if exists:
            raise DataError(f"{path} already exists; expected none (or --replace)")
    with contextlib.ExitStack() as stack:
        features = {
            split: stack.enter_context(
                contextlib.closing(LazyFeatures(folder / layout.features_file(split, "fc7")))
            )
            for split in layout.SPLITS
        }
        shapes = {split: rows.shape for split, rows in features.items()}
        check_widths(folder, "fc7", shapes)
        pca, share = fit_components(features["train"], dim, whiten, backend, progress)
        for split, rows in features.items():
            temporary = stack.enter_context(new_file(targets[split]))
            reduced = _reduced(f"{split} features", rows, pca, backend, progress)
            layout.write_features(temporary, (len(rows), dim), reduced)
        pca.write(folder / layout.PCA)  # written last; then the others are moved into place
    return PCAReport(
        images=sum(map(len, features.values())),
        width=pca.components.shape[1],
        dim=dim,
        explained=share,
        seconds=time.perf_counter() - begun,
    )


def _reduced(
    doing: str, features: LazyFeatures, pca: PCA, backend: Backend, progress: Progress
) -> Iterator[numpy.ndarray]:
    for block in row_blocks(features):
        yield pca.transform(features[block], backend)
        progress(doing, block.stop, len(features))
