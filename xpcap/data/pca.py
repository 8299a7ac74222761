"""Principal components: 4,096 features to 512, and the transform kept for new images.

    out = (features - mean) · componentsᵀ
    componentsₖ = vₖ                plain, as other libraries have them
    componentsₖ = vₖ / √λₖ           whitened: each variance is 1

with vₖ the unit eigenvectors of the training features' covariance and λₖ their eigenvalues, the
explained variances, in descending order. Whitened, the last component counts as much as the first
(K. Pearson, "On lines and planes of closest fit to systems of points in space", Philosophical
Magazine, 1901; H. Hotelling, "Analysis of a complex of statistical variables into principal
components", 1933). Files of older versions hold components of another length, by one factor.

Features may be larger than memory: blocks of rows are read in turn, their products are computed in
float32 and summed in float64. To avoid cancellation, the rows are first shifted by c, the mean of
the first block, which is close to the mean m:

    (n - 1) · covariance = Σᵢ (xᵢ - c)(xᵢ - c)ᵀ - n · (m - c)(m - c)ᵀ

Of features of regions `(images, L, D)` each region is a row, but for those that are absent, whose
D features are all zero: they stay so.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy

from xpcap.backend import CPU, Array, Backend, Namespace, to_host
from xpcap.data import folder as layout
from xpcap.data.dataset import check_widths, feature_path
from xpcap.data.features import Features, LazyFeatures, row_blocks
from xpcap.data.hdf5 import open_hdf5, read_array, write_arrays
from xpcap.data.progress import Progress, no_progress
from xpcap.errors import DataError
from xpcap.files import explained, new_file
from xpcap.options import check_counts

Found: TypeAlias = tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray, int]
"""Mean `(D,)`, all variances, descending, the first directions `(K, D)`, of any length, and the
number of vectors, without those of absent regions."""


@dataclass(frozen=True)
class PCA:
    """The transform from D features to K principal components.

    In each component the entry of largest magnitude is positive; `explained_variance` is that of
    the training features along each direction, descending.
    """

    mean: numpy.ndarray  # (D,)
    components: numpy.ndarray  # (K, D)
    explained_variance: numpy.ndarray  # (K,)

    def transform(self, features: numpy.ndarray, backend: Backend = CPU) -> numpy.ndarray:
        """Return the components of features `(n, D)`, as `(n, K)` float32 on the host.

        Of regions `(n, L, D)` they are `(n, L, K)`.
        """
        near = self.mean.astype(numpy.float32)  # the mean may need more than float32
        rest = (self.mean - near) @ self.components.T
        reduced = numpy.empty((*features.shape[:-1], len(self.components)), numpy.float32)
        with backend.activate():
            centre, components, offset = (
                backend.to_device(array, numpy.float32) for array in (near, self.components, rest)
            )
            for block in row_blocks(features):
                given = backend.to_device(features[block], numpy.float32)
                rows = given.reshape(-1, given.shape[-1])
                found = (rows - centre) @ components.T - offset
                if given.ndim == 3:
                    found *= rows.any(axis=1, keepdims=True)
                reduced[block] = to_host(found).reshape(reduced[block].shape)
        return reduced

    def backward(self, gradient: numpy.ndarray) -> numpy.ndarray:
        """Turn gradients of the components `(..., K)` into those of features `(..., D)`."""
        return numpy.asarray(gradient @ self.components.astype(gradient.dtype, copy=False))

    def equals(self, other: PCA) -> bool:
        """Return whether another transform is the same bit for bit."""
        return all(numpy.array_equal(array, vars(other)[key]) for key, array in vars(self).items())

    def write(self, path: Path) -> None:
        """Write the three arrays by name into an HDF5 file."""
        with new_file(path) as temporary:
            write_arrays(temporary, vars(self))

    @classmethod
    def read(cls, path: Path) -> PCA:
        """Read what `write` wrote."""
        with open_hdf5(path) as file:
            mean = read_array(file, path, "mean", 1, "f")
            components = read_array(file, path, "components", 2, "f")
            variance = read_array(file, path, "explained_variance", 1, "f")
        if components.shape != (*variance.shape, *mean.shape):
            raise DataError(
                f"{path}: mean {mean.shape}, components {components.shape} and explained_variance"
                f" {variance.shape} do not fit; expected (D,), (K, D) and (K,)"
            )
        if not all(numpy.isfinite(array).all() for array in (mean, components, variance)):
            raise DataError(f"{path} holds NaN or infinity")
        return cls(mean, components, variance)


def read_transform(folder: Path) -> PCA:
    """Read the transform of a data folder that has pca features."""
    path = folder / layout.PCA
    with explained(path, "read"):
        if not path.exists():
            raise DataError(
                f"{folder} has pca features, but no {layout.PCA} to reduce those of new images;"
                f" expected it (xpcap data pca {folder} --replace makes both), or features fc7"
            )
    return PCA.read(path)


def fit_components(
    features: Features,
    dim: int,
    whiten: bool = False,
    backend: Backend = CPU,
    progress: Progress = no_progress,
) -> tuple[PCA, float]:
    """Compute the first `dim` principal components of features `(n, D)` or `(images, L, D)`.

    They come from the covariance `(D, D)`, block by block; or, if there are fewer images than
    features `(n, D)`, from the Gram matrix `(n, n)` of all of them, in float64. `whiten` scales
    each to variance 1. The number returned is the share of the total variance that they explain.

    Raises
    ------
    DataError
        If `dim` is not between 1 and the number of directions in which the features vary, at most
        `min(n - 1, D)`; or features are not finite.
    """
    check_counts(0, dim=dim)
    count, width = math.prod(features.shape[:-1]), features.shape[-1]
    most = min(count - 1, width)
    if dim < 1 or most < 1:
        expected = "at least 1" if most >= 1 else "two images or more"
        raise DataError(
            f"cannot make {dim} principal components of {count} x {width} features;"
            f" expected {expected}"
        )
    few = count < width and len(features.shape) == 2
    find = _from_gram_matrix if few else _from_covariance
    # non-finite features are found in the result
    with backend.activate(), numpy.errstate(over="ignore", invalid="ignore"):
        mean, variances, directions, count = find(features, min(dim, most), backend, progress)
    exact = numpy.finfo(numpy.float64).eps * count
    rounded = numpy.finfo(numpy.float32).eps * numpy.sqrt(width)  # the norm of random errors
    most = min(count - 1, width)
    varying = int((variances[:most] > variances[0] * (exact if few else rounded)).sum())
    if dim > varying:
        expected = f"in {varying} directions; expected 1 to {varying}" if varying else "not at all"
        if varying == 1:
            expected = "in 1 direction; expected 1"
        raise DataError(
            f"cannot make {dim} principal components: the {count} x {width} features vary"
            f" {expected}"
        )
    kept = variances[:dim]
    largest = numpy.take_along_axis(directions, abs(directions).argmax(axis=1)[:, None], axis=1)
    lengths = numpy.linalg.norm(directions, axis=1, keepdims=True) * numpy.sign(largest)
    if whiten:
        lengths = lengths * numpy.sqrt(kept[:, None])
    return PCA(mean, directions / lengths, kept), float(kept.sum() / variances.sum())


def _from_covariance(features: Features, dim: int, backend: Backend, progress: Progress) -> Found:
    """Read the features in blocks; float32 products, float64 sums."""
    xp = backend.xp
    images, *_, width = features.shape
    sums = xp.zeros(width, xp.float64)
    squares = xp.zeros((width, width), xp.float64)
    shift = xp.zeros(width, xp.float32)
    count = 0
    for block in row_blocks(features):
        rows = backend.to_device(features[block], numpy.float32)
        if rows.ndim == 3:
            rows = rows[rows.any(axis=2)]
        if not count and len(rows):
            shift = rows.mean(axis=0, dtype=xp.float64).astype(xp.float32)
        rows = rows - shift
        squares += (rows.T @ rows).astype(xp.float64)
        sums += rows.sum(axis=0, dtype=xp.float64)
        count += len(rows)
        progress("covariance", block.stop, images)
    mean = sums / max(1, count)
    squares -= count * xp.outer(mean, mean)
    variances, directions = _eigenpairs(squares / max(1, count - 1), dim, xp, progress)
    return to_host(shift.astype(xp.float64) + mean), variances, to_host(directions), count


def _from_gram_matrix(features: Features, dim: int, backend: Backend, progress: Progress) -> Found:
    """Take all features at once, in float64: the Gram matrix has the covariance's eigenvalues."""
    count = features.shape[0]
    rows = backend.to_device(features[:], numpy.float64)
    mean = rows.mean(axis=0)
    rows = rows - mean
    gram = rows @ rows.T / (count - 1)
    variances, vectors = _eigenpairs(gram, dim, backend.xp, progress)
    return to_host(mean), variances, to_host(vectors @ rows), count


def _eigenpairs(
    matrix: Array, dim: int, xp: Namespace, progress: Progress
) -> tuple[numpy.ndarray, Array]:
    """Return all eigenvalues, descending, and the first eigenvectors `(dim, n)`."""
    if not xp.isfinite(matrix).all():
        raise DataError(
            "cannot make principal components: the features hold NaN or infinity, or numbers too"
            " large to be squared"
        )
    progress("components", 0, 1)
    values, vectors = xp.linalg.eigh(matrix)
    progress("components", 1, 1)
    return to_host(values)[::-1], vectors.T[::-1][:dim]


@dataclass(frozen=True)
class PCAReport:
    """Result of `reduce_folder`: `images` of all splits have `dim` instead of `width` features.

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

    Writes the pca features of all splits, which replace existing ones if `replace`, and the
    transform; features are read and written in blocks. See `fit_components` for the other options.
    A `DataError` is raised if there are no features, or pca features already, they cannot be
    reduced, or a file cannot be written; the folder is then unchanged.
    """
    begun = time.perf_counter()
    splits: tuple[str, ...] = layout.SPLITS
    with explained(folder, "read"):
        if (folder / layout.features_file(layout.TEST, "fc7")).exists():
            splits = (*splits, layout.TEST)
    targets = {split: folder / layout.features_file(split, "pca") for split in splits}
    for path in () if replace else (*targets.values(), folder / layout.PCA):
        with explained(path, "read"):
            if path.exists():
                raise DataError(f"{path} already exists; expected none (or replace=True)")
    with contextlib.ExitStack() as stack:
        features = {
            split: stack.enter_context(
                contextlib.closing(LazyFeatures(feature_path(folder, split, "fc7")))
            )
            for split in splits
        }
        shapes = {split: rows.shape for split, rows in features.items()}
        check_widths(folder, "fc7", shapes)
        pca, share = fit_components(features["train"], dim, whiten, backend, progress)
        for split, rows in features.items():
            temporary = stack.enter_context(new_file(targets[split]))
            reduced = _reduced(f"{split} features", rows, pca, backend, progress)
            layout.write_features(temporary, (*rows.shape[:-1], dim), reduced)
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
