"""Principal components: 4,096 features to 512, and the transform kept for new pictures.

A component is a direction in which the features of the training set vary; the first ones vary
most. All are multiplied with one number s, part of `components`, so that the results have mean
square 1 over the training set, which suits the initial weights of a captioner:

    out = (features - mean) · componentsᵀ
    componentsₖ = s · vₖ,    s² · Σₖ λₖ = K

with vₖ the unit eigenvectors of the covariance, λₖ their eigenvalues (K. Pearson, "On lines and
planes of closest fit to systems of points in space", Philosophical Magazine, 1901; H. Hotelling,
"Analysis of a complex of statistical variables into principal components", 1933).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy

from xpcap.data.hdf5 import open_hdf5, read_array
from xpcap.errors import DataError
from xpcap.files import new_file


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
    def fit(cls, features: numpy.ndarray, dim: int) -> PCA:
        """Find the `dim` first components of a training set.

        Computed in float64 from the smaller of the covariance `(D, D)` and the Gram matrix of the
        centred features `(n, n)`, which have the same eigenvalues.

        Parameters
        ----------
        features
            `(n, D)`, a row an image.
        dim
            How many components to keep.

        Raises
        ------
        DataError
            If `dim` is not between 1 and the number of directions in which the features vary,
            at most `min(n - 1, D)`; or features are not finite.
        """
        count, width = features.shape
        if not 1 <= dim <= min(count, width):
            raise DataError(
                f"cannot make {dim} principal components of {count} x {width} features;"
                f" expected 1 to {min(count, width)}"
            )
        mean = features.mean(axis=0, dtype=numpy.float64)
        centred = features - mean
        if not numpy.isfinite(centred).all():
            raise DataError("cannot make principal components: the features hold NaN or infinity")
        wide = count < width
        variances, vectors = numpy.linalg.eigh(
            (centred @ centred.T if wide else centred.T @ centred) / count
        )
        variances, vectors = variances[::-1][:dim], vectors[:, ::-1][:, :dim]
        if variances[-1] <= variances[0] * count * numpy.finfo(numpy.float64).eps:
            raise DataError(
                f"cannot make {dim} principal components: the {count} x {width} features vary in"
                " fewer directions"
            )
        directions = vectors.T @ centred if wide else vectors.T
        largest = numpy.take_along_axis(
            directions, numpy.abs(directions).argmax(axis=1)[:, None], axis=1
        )
        lengths = numpy.linalg.norm(directions, axis=1, keepdims=True) * numpy.sign(largest)
        scale = numpy.sqrt(dim / variances.sum())
        return cls(mean, directions / lengths * scale, variances)

    def transform(self, features: numpy.ndarray) -> numpy.ndarray:
        """Return the scaled components of features `(n, D)`, as `(n, K)` float32."""
        return numpy.asarray((features - self.mean) @ self.components.T, numpy.float32)

    def write(self, path: Path) -> None:
        """Write the three arrays under their names into an HDF5 file.

        Raises
        ------
        DataError
            If the file cannot be written.
        """
        import h5py

        with new_file(path) as temporary, h5py.File(temporary, "w") as file:
            file["mean"] = self.mean
            file["components"] = self.components
            file["explained_variance"] = self.explained_variance

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
