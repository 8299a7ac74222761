from dataclasses import replace
from pathlib import Path
from typing import Any

import guard
import h5py
import numpy
import pytest

from xpcap.backend import CPU, Backend
from xpcap.data.features import row_blocks
from xpcap.data.pca import PCA, fit_components
from xpcap.errors import DataError


def fit(*args: Any, **options: Any) -> PCA:
    return fit_components(*args, **options)[0]


def some_features(count: int, width: int) -> numpy.ndarray:
    rng = numpy.random.default_rng(5)
    scales = numpy.linspace(3, 0.5, width)
    return (4 + rng.standard_normal((count, width)) * scales).astype(numpy.float32)


def decompose(features: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return all variances and the unit directions, from the singular value decomposition."""
    centred = features.astype(numpy.float64)
    centred -= centred.mean(axis=0)
    _, singular, directions = numpy.linalg.svd(centred, full_matrices=False)
    return singular**2 / (len(features) - 1), directions


def assert_same_directions(found: numpy.ndarray, expected: numpy.ndarray, tolerance: float) -> None:
    cosines = (found * expected).sum(axis=1) / numpy.linalg.norm(found, axis=1)
    numpy.testing.assert_allclose(abs(cosines), 1, rtol=tolerance)


def assert_same(found: PCA, expected: PCA) -> None:
    numpy.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
    numpy.testing.assert_allclose(found.explained_variance, expected.explained_variance, rtol=1e-5)
    numpy.testing.assert_allclose(found.components, expected.components, atol=1e-4)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a block have 70 numbers: seven rows of ten."""
    monkeypatch.setattr("xpcap.data.features.BLOCK_BYTES", 280)


def with_regions(count: int, regions: int, width: int) -> numpy.ndarray:
    """Return features of images with at most `regions`, the first of which have none."""
    features = some_features(count * regions, width).reshape(count, regions, width)
    features[numpy.random.default_rng(6).random((count, regions)) < 0.3] = 0
    features[:3] = 0
    return features


class Linalg:
    """What the guard lacks: `linalg.eigh`, by NumPy, for guard arrays only."""

    def eigh(self, matrix: Any) -> Any:
        assert isinstance(matrix, guard.GuardArray)
        return tuple(map(guard.xp.array, numpy.linalg.eigh(guard.xp.asnumpy(matrix))))


class GuardWithLinalg(guard.GuardNamespace):
    linalg = Linalg()


GUARD = Backend("guard", GuardWithLinalg())


@pytest.mark.parametrize(
    ("count", "width", "tolerance"), [(30, 12, 1e-6), (12, 30, 1e-9), (20, 20, 1e-6)]
)
def test_components_are_those_of_the_singular_value_decomposition(
    count: int, width: int, tolerance: float
) -> None:
    features = some_features(count, width)
    pca = fit(features, 7)
    variances, directions = decompose(features)
    numpy.testing.assert_allclose(pca.mean, features.astype(numpy.float64).mean(axis=0))
    numpy.testing.assert_allclose(pca.explained_variance, variances[:7], rtol=tolerance)
    assert_same_directions(pca.components, directions[:7], tolerance)
    for found in pca.components:
        assert found[abs(found).argmax()] > 0


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize(("count", "width"), [(200, 30), (30, 60)])
def test_it_agrees_with_scikit_learn(count: int, width: int, whiten: bool) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition", reason="needs scikit-learn")
    features = some_features(count, width)
    theirs = decomposition.PCA(9, whiten=whiten, svd_solver="full").fit(features.astype(float))
    ours = fit(features, 9, whiten)
    numpy.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-7)
    numpy.testing.assert_allclose(ours.explained_variance, theirs.explained_variance_, rtol=1e-6)
    assert_same_directions(ours.components, theirs.components_, 1e-6)
    signs = numpy.sign((ours.components * theirs.components_).sum(axis=1))
    expected = theirs.transform(features.astype(float)) * signs
    numpy.testing.assert_allclose(ours.transform(features), expected, atol=1e-4)


@pytest.mark.parametrize(("count", "width"), [(40, 15), (15, 40)])
def test_transformed_features_have_mean_zero_and_the_variances(count: int, width: int) -> None:
    features = some_features(count, width)
    pca = fit(features, 6)
    out = pca.transform(features)
    assert out.shape == (count, 6)
    assert out.dtype == numpy.float32
    numpy.testing.assert_allclose(out.mean(axis=0), numpy.zeros(6), atol=1e-6)
    numpy.testing.assert_allclose(out.var(axis=0, ddof=1), pca.explained_variance, rtol=1e-5)
    numpy.testing.assert_allclose(numpy.linalg.norm(pca.components, axis=1), 1)


@pytest.mark.parametrize(("count", "width"), [(40, 15), (15, 40)])
def test_whitened_components_have_unit_covariance(count: int, width: int) -> None:
    features = some_features(count, width)
    out = fit(features, 6, whiten=True).transform(features)
    numpy.testing.assert_allclose(numpy.cov(out.T), numpy.eye(6), atol=1e-5)


def test_row_blocks_cover_all_rows(small_blocks: None) -> None:
    assert list(row_blocks(numpy.zeros((20, 10)))) == [slice(0, 7), slice(7, 14), slice(14, 20)]
    assert list(row_blocks(numpy.zeros((2, 99)))) == [slice(0, 1), slice(1, 2)]


def test_components_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    features = some_features(100, 10)
    features = features[features[:, 0].argsort()]  # the first block's mean is far from the mean
    whole = fit(features, 4)
    for size in (280, 40):
        monkeypatch.setattr("xpcap.data.features.BLOCK_BYTES", size)
        assert_same(fit(features, 4), whole)


def test_features_are_read_in_blocks_with_progress(small_blocks: None) -> None:
    class Rows:
        shape = (20, 10)

        def __getitem__(self, rows: slice, /) -> numpy.ndarray:
            assert rows.stop - rows.start <= 7
            return some_features(20, 10)[rows]

    told: list[tuple[str, int, int]] = []
    pca = fit(Rows(), 4, progress=lambda *what: told.append(what))
    assert_same(pca, fit(some_features(20, 10), 4))
    assert told[:3] == [("covariance", done, 20) for done in (7, 14, 20)]
    assert told[3:] == [("components", 0, 1), ("components", 1, 1)]


@pytest.mark.parametrize(("count", "width"), [(200, 10), (10, 200)])
def test_a_small_variance_beside_a_large_mean(small_blocks: None, count: int, width: int) -> None:
    rng = numpy.random.default_rng(6)
    spread = numpy.linspace(0.2, 0.02, width)
    features = (1000 / 3 + rng.standard_normal((count, width)) * spread).astype(numpy.float32)
    pca = fit(features, 4)
    variances, directions = decompose(features)
    numpy.testing.assert_allclose(pca.explained_variance, variances[:4], rtol=1e-4)
    assert_same_directions(pca.components, directions[:4], 1e-6)
    centred = features - features.mean(axis=0, dtype=numpy.float64)
    numpy.testing.assert_allclose(
        pca.transform(features), centred @ pca.components.T, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("count", "width"), [(40, 10), (10, 40)])
def test_a_device_computes_the_same_components(small_blocks: None, count: int, width: int) -> None:
    features = some_features(count, width)
    host, device = (fit(features, 4, backend=backend) for backend in (CPU, GUARD))
    assert_same(device, host)
    assert type(device.components) is type(device.mean) is numpy.ndarray
    out = device.transform(features, GUARD)
    assert type(out) is numpy.ndarray
    numpy.testing.assert_allclose(out, host.transform(features), atol=1e-5)


@pytest.mark.parametrize(("count", "width"), [(40, 10), (10, 40)])
def test_a_gpu_computes_the_same_components(gpu: Backend, count: int, width: int) -> None:
    features = some_features(count, width)
    host, device = (fit(features, 4, backend=backend) for backend in (CPU, gpu))
    assert_same(device, host)
    numpy.testing.assert_allclose(
        device.transform(features, gpu), host.transform(features), atol=1e-4
    )


def test_transform_by_definition() -> None:
    features = some_features(40, 15)
    pca = fit(features[:30], 6)
    one_by_one = [
        [(row - pca.mean) @ component for component in pca.components] for row in features
    ]
    numpy.testing.assert_allclose(pca.transform(features), one_by_one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("whiten", [False, True])
def test_backward_agrees_with_differences_of_transform(whiten: bool) -> None:
    features = some_features(40, 15)
    pca = fit(features, 6, whiten)
    gradient = numpy.random.default_rng(7).standard_normal((2, 3, 6))
    found = pca.backward(gradient)
    assert found.shape == (2, 3, 15)
    assert found.dtype == numpy.float64
    for d, step in enumerate(numpy.eye(15)):  # of any length, for a transform that is affine
        slope = (pca.transform(features[:1] + step) - pca.transform(features[:1] - step))[0] / 2
        numpy.testing.assert_allclose(found[:, :, d], gradient @ slope, atol=1e-5)
    of_single = pca.backward(gradient.astype(numpy.float32))
    assert of_single.dtype == numpy.float32
    numpy.testing.assert_allclose(of_single, found, atol=1e-5)


@pytest.mark.parametrize("dim", [9, 12, 99])
def test_more_components_than_directions_are_refused(dim: int) -> None:
    features = some_features(9, 12)  # nine points differ in eight directions
    with pytest.raises(DataError, match=f"cannot make {dim} .* in 8 directions; expected 1 to 8$"):
        fit(features, dim)
    assert len(fit(features, 8).components) == 8
    with pytest.raises(DataError, match="cannot make 0 principal components"):
        fit(features, 0)


def test_directions_in_which_nothing_varies_are_refused() -> None:
    features = some_features(200, 12)
    features[:, 8:] = features[:, :4] + features[:, 4:8]
    assert len(fit(features, 8).components) == 8
    for dim in (9, 12, 512):
        with pytest.raises(
            DataError, match="200 x 12 features vary in 8 directions; expected 1 to"
        ):
            fit(features, dim)
    with pytest.raises(DataError, match="features vary not at all"):
        fit(numpy.ones((20, 12), numpy.float32), 1)


def test_absent_regions_are_not_counted() -> None:
    features = numpy.zeros((4, 5, 12), numpy.float32)
    features[:3, 0] = some_features(3, 12)
    with pytest.raises(DataError, match="the 3 x 12 features vary in 2 directions; expected 1 to"):
        fit(features, 3)
    features[2] = 0
    with pytest.raises(DataError, match=r"2 x 12 features vary in 1 direction; expected 1$"):
        fit(features, 3)


def test_of_a_single_image_there_are_no_components() -> None:
    with pytest.raises(DataError, match="of 1 x 12 features; expected two images or more"):
        fit(some_features(1, 12), 1)


@pytest.mark.parametrize("width", [10, 40])
@pytest.mark.parametrize("row", [0, 19])
@pytest.mark.parametrize("value", [numpy.nan, numpy.inf, 1e30])
def test_non_finite_features_are_refused(
    small_blocks: None, value: float, row: int, width: int
) -> None:
    features = some_features(20, width)
    features[row, 4] = value
    features[row, 5] = -value
    if width > 20:
        features = features.astype(float) * 1e170
    with pytest.raises(DataError, match="the features hold NaN or infinity"):
        fit(features, 2)


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    pca = fit(some_features(20, 10), 4)
    pca.write(tmp_path / "pca.h5")
    again = PCA.read(tmp_path / "pca.h5")
    with h5py.File(tmp_path / "pca.h5") as file:
        assert set(file) == {"mean", "components", "explained_variance"}
    for name in ("mean", "components", "explained_variance"):
        numpy.testing.assert_array_equal(getattr(again, name), getattr(pca, name))


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
def test_arrays_of_other_shapes_are_refused(
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


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.usefixtures("small_blocks")
def test_each_region_that_is_there_is_a_row(few: bool) -> None:
    features = with_regions(7 if few else 40, 3, 10)
    present = features[features.any(axis=2)]
    pca, whole = fit(features, 4), fit(present, 4)
    numpy.testing.assert_allclose(pca.mean, whole.mean, rtol=1e-6)
    numpy.testing.assert_allclose(pca.explained_variance, whole.explained_variance, rtol=1e-5)
    numpy.testing.assert_allclose(pca.components, whole.components, atol=1e-4)
    reduced = pca.transform(features)
    assert reduced.dtype == numpy.float32
    numpy.testing.assert_array_equal(reduced.any(axis=2), features.any(axis=2))
    numpy.testing.assert_allclose(
        reduced[features.any(axis=2)], pca.transform(present), rtol=1e-5, atol=1e-5
    )


def test_regions_that_are_all_absent_vary_in_no_direction() -> None:
    with pytest.raises(DataError, match="the 0 x 5 features vary not at all"):
        fit(numpy.zeros((4, 3, 5), numpy.float32), 1)


def test_regions_on_any_backend(backend: Backend) -> None:
    features = with_regions(40, 3, 10)
    expected = fit(features, 4)
    device = GUARD if backend.name == "guard" else backend
    pca = fit(features, 4, backend=device)
    assert_same(pca, expected)
    numpy.testing.assert_allclose(
        pca.transform(features, device), expected.transform(features), atol=1e-4
    )


def test_a_stored_transform_of_any_scale_is_applied(tmp_path: Path) -> None:
    features = some_features(20, 10)
    pca = fit(features, 4)
    old = replace(pca, components=0.3 * pca.components)  # as older versions scaled them
    old.write(tmp_path / "pca.h5")
    found = PCA.read(tmp_path / "pca.h5").transform(features)
    numpy.testing.assert_allclose(found, 0.3 * pca.transform(features), rtol=1e-5, atol=1e-6)
