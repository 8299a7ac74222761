from pathlib import Path

import h5py
import numpy
import pytest

from xpcap.data.pca import PCA
from xpcap.errors import DataError


def some_features(count: int, width: int) -> numpy.ndarray:
    rng = numpy.random.default_rng(5)
    scales = numpy.linspace(3, 0.5, width)
    return (4 + rng.standard_normal((count, width)) * scales).astype(numpy.float32)


@pytest.mark.parametrize(("count", "width"), [(30, 12), (12, 30), (20, 20)])
def test_components_are_those_of_the_singular_value_decomposition(count: int, width: int) -> None:
    features = some_features(count, width)
    pca = PCA.fit(features, 7)
    centred = features.astype(numpy.float64) - features.mean(axis=0, dtype=numpy.float64)
    _, singular, directions = numpy.linalg.svd(centred, full_matrices=False)
    variance = singular[:7] ** 2 / count
    numpy.testing.assert_allclose(pca.mean, features.astype(numpy.float64).mean(axis=0))
    numpy.testing.assert_allclose(pca.explained_variance, variance, rtol=1e-9)
    for found, direction in zip(pca.components, directions, strict=False):
        cosine = found @ direction / numpy.linalg.norm(found)
        assert abs(abs(cosine) - 1) < 1e-9
        assert found[abs(found).argmax()] > 0


def test_what_comes_out_has_mean_zero_and_mean_square_one_over_the_training_set() -> None:
    features = some_features(40, 15)
    pca = PCA.fit(features, 6)
    out = pca.transform(features)
    assert out.shape == (40, 6)
    assert out.dtype == numpy.float32
    numpy.testing.assert_allclose(out.mean(axis=0), numpy.zeros(6), atol=1e-6)
    assert (out.astype(float) ** 2).mean() == pytest.approx(1, rel=1e-6)


def test_new_features_go_through_the_same_transform() -> None:
    features = some_features(40, 15)
    pca = PCA.fit(features[:30], 6)
    one_by_one = [
        [(row - pca.mean) @ component for component in pca.components] for row in features
    ]
    numpy.testing.assert_allclose(pca.transform(features), one_by_one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dim", [0, 9, 12, 99])
def test_more_components_than_directions_are_refused(dim: int) -> None:
    with pytest.raises(DataError, match=f"cannot make {dim} principal components"):
        PCA.fit(some_features(9, 12), dim)  # nine points differ in eight directions


def test_what_is_not_finite_is_refused() -> None:
    features = some_features(9, 12)
    features[3, 4] = numpy.nan
    with pytest.raises(DataError, match="NaN or infinity"):
        PCA.fit(features, 2)


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    pca = PCA.fit(some_features(20, 10), 4)
    pca.write(tmp_path / "pca.h5")
    again = PCA.read(tmp_path / "pca.h5")
    with h5py.File(tmp_path / "pca.h5") as file:
        assert set(file) == {"mean", "components", "explained_variance"}
    for name in ("mean", "components", "explained_variance"):
        numpy.testing.assert_array_equal(getattr(again, name), getattr(pca, name))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pca\.h5: No such file"):
        PCA.read(tmp_path / "pca.h5")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pca.h5"
    PCA.fit(some_features(20, 10), 4).write(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="truncated"):
        PCA.read(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": None}, "mean"),
        ({"mean": numpy.zeros(9)}, "do not fit"),
        ({"components": numpy.zeros((4, 9))}, "do not fit"),
        ({"components": numpy.zeros(10)}, "components"),
        ({"explained_variance": numpy.zeros(3)}, "do not fit"),
        ({"mean": numpy.full(10, numpy.inf)}, "NaN or infinity"),
        ({"mean": numpy.zeros(10, int)}, "mean"),
    ],
)
def test_a_file_with_something_else_is_refused(
    tmp_path: Path, changes: dict[str, numpy.ndarray | None], message: str
) -> None:
    arrays = {
        "mean": numpy.zeros(10),
        "components": numpy.zeros((4, 10)),
        "explained_variance": numpy.zeros(4),
    }
    with h5py.File(tmp_path / "pca.h5", "w") as file:
        for key, array in {**arrays, **changes}.items():
            if array is not None:
                file[key] = array
    with pytest.raises(DataError, match=message):
        PCA.read(tmp_path / "pca.h5")
