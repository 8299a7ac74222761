"""Principal components: 4,096 features to 512, and the transform kept for new pictures.

A component is a direction in which the features of the training set vary; the first ones vary
most. They are scaled, and the scale is part of `components`:

    out = (features - mean) · componentsᵀ
    componentsₖ = s · vₖ,    s² · Σₖ λₖ = K        one number s: the mean variance is 1
    componentsₖ = vₖ / √λₖ                         whitened: each variance is 1

with vₖ the unit eigenvectors of the covariance and λₖ their eigenvalues, the explained variances.
Mean variance 1 suits the initial weights of a captioner; whitened, the last component counts as
much as the first (K. Pearson, "On lines and planes of closest fit to systems of points in space",
Philosophical Magazine, 1901; H. Hotelling, "Analysis of a complex of statistical variables into
principal components", 1933).

Features may be larger than memory. Blocks of rows are read one after the other; their products are
computed in float32 and added up in float64. So that nothing cancels, the rows are shifted first by
c, the mean of the first block, which is close to the mean m:

    (n - 1) · covariance = Σᵢ (xᵢ - c)(xᵢ - c)ᵀ - n · (m - c)(m - c)ᵀ
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy

from xpcap.backend import CPU, Array, Backend, Namespace, to_host
from xpcap.data.hdf5 import open_hdf5, read_array, write_arrays
from xpcap.data.progress import Progress, say_nothing
from xpcap.errors import DataError
from xpcap.files import new_file

BLOCK_BYTES = 128 * 2**20

Clock: TypeAlias = contextlib.AbstractContextManager[object]
"""Entered around every product of features, so that a stopwatch can measure them."""

UNTIMED: Clock = contextlib.nullcontext()


class Rows(Protocol):
    """What is needed of features: a NumPy array has it, and a `LazyFeatures`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Images, D."""

    def __getitem__(self, rows: slice, /) -> numpy.ndarray:
        """Return the features of some images."""


@dataclass(frozen=True)
class PCA:
    """The transform from D features to K scaled principal components.

    Parameters
    ----------
    mean
        The mean of the training features, `(D,)`.
    components
        The scaled directions, `(K, D)`; the largest number of each is positive.
    explained_variance
        The variance of the training features along each direction before scaling, `(K,)`,
        falling.
    """

    mean: numpy.ndarray
    components: numpy.ndarray
    explained_variance: numpy.ndarray

    @classmethod
    def fit(
        cls,
        features: Rows,
        dim: int,
        whiten: bool = False,
        backend: Backend = CPU,
        progress: Progress = say_nothing,
    ) -> PCA:
        """Find the `dim` first components of a training set.

        They come from the covariance `(D, D)`, block by block; or, where there are fewer images
        than features, from the Gram matrix `(n, n)` of all of them, in float64.

        Parameters
        ----------
        features
            `(n, D)`, a row an image.
        dim
            How many components to keep.
        whiten
            Give every component variance 1.
        backend
            Where it is computed.
        progress
            Told how far it is.

        Raises
        ------
        DataError
            If `dim` is not between 1 and the number of directions in which the features vary,
            at most `min(n - 1, D)`; or features are not finite.
        """
        return fit_components(features, dim, whiten, backend, progress)[0]

    def transform(
        self,
        features: numpy.ndarray,
        backend: Backend = CPU,
        clock: Clock = UNTIMED,
    ) -> numpy.ndarray:
        """Return the scaled components of features `(n, D)`, as `(n, K)` float32 on the host.

        Computed in float32 on `backend`; `clock` is entered around the product.
        """
        near = self.mean.astype(numpy.float32)  # float32 may not hold the mean itself
        rest = (self.mean - near) @ self.components.T
        with backend.activate():
            rows, centre, components, offset = (
                backend.to_device(array, numpy.float32)
                for array in (features, near, self.components, rest)
            )
            rows = rows - centre
            with clock:
                out = rows @ components.T
            return numpy.asarray(to_host(out - offset))

    def backward(self, gradient: numpy.ndarray) -> numpy.ndarray:
        """Turn gradients of the scaled components `(..., K)` into those of the features `(..., D)`.

        They are `gradient · components`, of the gradient's dtype.
        """
        return numpy.asarray(gradient @ self.components.astype(gradient.dtype, copy=False))

    def equals(self, other: PCA) -> bool:
        """Tell whether another transform is the same, to the bit."""
        return all(
            numpy.array_equal(getattr(self, name), getattr(other, name))
            for name in ("mean", "components", "explained_variance")
        )

    def write(self, path: Path) -> None:
        """Write the three arrays under their names into an HDF5 file.

        Raises
        ------
        DataError
            If the file cannot be written.
        """
        with new_file(path) as temporary:
            write_arrays(
                temporary,
                {
                    "mean": self.mean,
                    "components": self.components,
                    "explained_variance": self.explained_variance,
                },
            )

    @classmethod
    def read(cls, path: Path) -> PCA:
        """Read what `write` wrote.

        Raises
        ------
        DataError
            If the file is missing, truncated, or holds something else.
        """
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


def blocks(features: Rows) -> Iterator[slice]:
    """Yield slices of rows, one after the other, each of at most 128 MiB in float32."""
    count, width = features.shape
    height = max(1, BLOCK_BYTES // (4 * width))
    for first in range(0, count, height):
        yield slice(first, min(first + height, count))


def fit_components(
    features: Rows,
    dim: int,
    whiten: bool,
    backend: Backend,
    progress: Progress,
    clock: Clock = UNTIMED,
) -> tuple[PCA, float]:
    """Do what `PCA.fit` does, with `clock` entered around every product of features.

    Returns
    -------
    PCA
        The transform.
    float
        The share of all variance that its components explain.
    """
    count, width = features.shape
    _check_dim(dim, count, width)
    few = count < width
    find = _from_gram_matrix if few else _from_covariance
    # what is not finite is found in the result, and refused then
    with backend.activate(), numpy.errstate(over="ignore", invalid="ignore"):
        mean, variances, directions = find(features, dim, backend, progress, clock)
    kept = variances[:dim]
    exact = numpy.finfo(numpy.float64).eps * count
    rounded = numpy.finfo(numpy.float32).eps * numpy.sqrt(width)  # the norm of random errors
    if kept[-1] <= kept[0] * (exact if few else rounded):
        raise DataError(
            f"cannot make {dim} principal components: the {count} x {width} features vary in"
            " fewer directions"
        )
    largest = numpy.take_along_axis(directions, abs(directions).argmax(axis=1)[:, None], axis=1)
    lengths = numpy.linalg.norm(directions, axis=1, keepdims=True) * numpy.sign(largest)
    scale = 1 / numpy.sqrt(kept[:, None] if whiten else kept.mean())
    return PCA(mean, directions / lengths * scale, kept), float(kept.sum() / variances.sum())


def _check_dim(dim: int, count: int, width: int) -> None:
    most = min(count - 1, width)
    if not 1 <= dim <= most:
        expected = f"1 to {most}" if most >= 1 else "two images or more"
        raise DataError(
            f"cannot make {dim} principal components of {count} x {width} features;"
            f" expected {expected}"
        )


Found: TypeAlias = tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]
"""The mean `(D,)`, all variances, falling, and the first directions `(K, D)` of any length."""


def _from_covariance(
    features: Rows,
    dim: int,
    backend: Backend,
    progress: Progress,
    clock: Clock,
) -> Found:
    """Read the features in blocks; float32 products, float64 sums."""
    xp = backend.xp
    count, width = features.shape
    sums = xp.zeros(width, xp.float64)
    squares = xp.zeros((width, width), xp.float64)
    for block in blocks(features):
        rows = backend.to_device(features[block], numpy.float32)
        if block.start == 0:
            shift = rows.mean(axis=0, dtype=xp.float64).astype(xp.float32)
        rows = rows - shift
        with clock:
            product = rows.T @ rows
        squares += product.astype(xp.float64)
        sums += rows.sum(axis=0, dtype=xp.float64)
        progress("covariance", block.stop, count)
    mean = sums / count
    squares -= count * xp.outer(mean, mean)
    variances, directions = _eigenpairs(squares / (count - 1), dim, xp, progress)
    return to_host(shift.astype(xp.float64) + mean), variances, to_host(directions)


def _from_gram_matrix(
    features: Rows,
    dim: int,
    backend: Backend,
    progress: Progress,
    clock: Clock,
) -> Found:
    """Take all features at once, in float64: the Gram matrix has the covariance's eigenvalues."""
    count = features.shape[0]
    rows = backend.to_device(features[:], numpy.float64)
    mean = rows.mean(axis=0)
    rows = rows - mean
    with clock:
        gram = rows @ rows.T
    variances, vectors = _eigenpairs(gram / (count - 1), dim, backend.xp, progress)
    with clock:
        directions = vectors @ rows
    return to_host(mean), variances, to_host(directions)


def _eigenpairs(
    matrix: Array, dim: int, xp: Namespace, progress: Progress
) -> tuple[numpy.ndarray, Array]:
    """Return all eigenvalues, falling, and the eigenvectors of the first, `(dim, n)`."""
    if not xp.isfinite(matrix).all():
        raise DataError(
            "cannot make principal components: the features hold NaN or infinity, or numbers too"
            " large to be squared"
        )
    progress("components", 0, 1)
    values, vectors = xp.linalg.eigh(matrix)
    progress("components", 1, 1)
    return to_host(values)[::-1], vectors.T[::-1][:dim]
