import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy
import pytest
from disks import mounted
from tiny import make_tiny

from xpcap.backend import Backend
from xpcap.data.dataset import open_dataset
from xpcap.data.hdf5 import write_rows
from xpcap.data.pca import PCA, fit_components, reduce_folder
from xpcap.errors import DataError

WIDTH = 12
PCA_FILES = ("train2014_vgg16_fc7_pca.h5", "val2014_vgg16_fc7_pca.h5", "pca.h5")


def some_features(count: int) -> numpy.ndarray:
    rng = numpy.random.default_rng(count)
    scales = numpy.linspace(3, 0.5, WIDTH)
    return numpy.maximum(0, rng.standard_normal((count, WIDTH)) * scales).astype(numpy.float32)


def write_features(folder: Path, split: str, features: numpy.ndarray, **options: Any) -> None:
    with h5py.File(folder / f"{split}2014_vgg16_fc7.h5", "w") as file:
        file.create_dataset("features", data=features, **options)


def read_reduced(folder: Path, split: str) -> numpy.ndarray:
    with h5py.File(folder / f"{split}2014_vgg16_fc7_pca.h5") as file:
        assert list(file) == ["features"]
        return file["features"][()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_features(folder, "train", some_features(60))
    write_features(folder, "val", some_features(25))
    return folder


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xpcap.data.features.BLOCK_BYTES", 7 * WIDTH * 4)


@pytest.mark.parametrize("whiten", [False, True])
def test_the_features_of_both_splits_are_those_of_the_training_set_transformed(
    folder: Path, whiten: bool
) -> None:
    report = reduce_folder(folder, 5, whiten)
    train = some_features(60)
    pca, _ = fit_components(train, 5, whiten)
    written = PCA.read(folder / "pca.h5")
    numpy.testing.assert_allclose(written.components, pca.components, rtol=1e-9)
    for split, features in (("train", train), ("val", some_features(25))):
        reduced = read_reduced(folder, split)
        assert reduced.dtype == numpy.float32
        numpy.testing.assert_allclose(reduced, pca.transform(features), atol=1e-5)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["train2014_vgg16_fc7.h5", "val2014_vgg16_fc7.h5", *PCA_FILES]
    )
    share = pca.explained_variance.sum() / train.astype(float).var(axis=0, ddof=1).sum()
    assert report.explained == pytest.approx(share, rel=1e-6)
    assert (report.images, report.width, report.dim) == (85, WIDTH, 5)
    assert report.seconds > 0


def test_features_of_regions_are_reduced_region_by_region(folder: Path) -> None:
    train = some_features(60).reshape(20, 3, WIDTH)
    train[::4, 2] = 0
    write_features(folder, "train", train)
    write_features(folder, "val", some_features(25).reshape(5, 5, WIDTH))
    with pytest.raises(DataError, match="expected the same"):
        reduce_folder(folder, 5)
    write_features(folder, "val", some_features(24).reshape(8, 3, WIDTH))
    report = reduce_folder(folder, 5)
    assert (report.images, report.width, report.dim) == (28, WIDTH, 5)
    reduced = read_reduced(folder, "train")
    assert (reduced.shape, reduced.dtype) == ((20, 3, 5), numpy.float16)
    assert not reduced[::4, 2].any()
    expected = PCA.read(folder / "pca.h5").transform(train)
    numpy.testing.assert_allclose(reduced, expected, rtol=1e-3, atol=1e-3)


def test_the_test_split_is_transformed_and_nothing_is_learnt_from_it(folder: Path) -> None:
    reduce_folder(folder, 5)
    alone = PCA.read(folder / "pca.h5")
    write_features(folder, "test", 9 * some_features(31))
    report = reduce_folder(folder, 5, replace=True)
    assert report.images == 60 + 25 + 31
    assert PCA.read(folder / "pca.h5").equals(alone)
    expected = alone.transform(9 * some_features(31))
    numpy.testing.assert_allclose(read_reduced(folder, "test"), expected, atol=1e-4)
    for path in folder.glob("*pca*"):
        if "test" not in path.name:
            path.unlink()
    with pytest.raises(DataError, match=r"test2014_vgg16_fc7_pca\.h5 already exists"):
        reduce_folder(folder, 5)


def test_a_data_folder_opens_with_its_new_features(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "tiny")
    assert open_dataset(folder).kind == "fc7"
    reduce_folder(folder, 5)
    dataset = open_dataset(folder)
    assert dataset.kind == "pca"
    assert dataset.feature_dim == 5


@pytest.mark.parametrize(
    ("dtype", "options"), [("float16", {}), ("float32", {"chunks": (9, 5), "compression": "gzip"})]
)
def test_features_of_other_formats_are_reduced_too(
    folder: Path, dtype: str, options: dict[str, Any]
) -> None:
    train = some_features(60).astype(dtype)
    write_features(folder, "train", train, **options)
    reduce_folder(folder, 5)
    expected = fit_components(train.astype(float), 5)[0].transform(train)
    numpy.testing.assert_allclose(read_reduced(folder, "train"), expected, atol=1e-4)


def test_progress_of_every_block(folder: Path) -> None:
    told: dict[str, list[tuple[int, int]]] = {}
    reduce_folder(folder, 5, progress=lambda what, *far: told.setdefault(what, []).append(far))
    assert list(told) == ["covariance", "components", "train features", "val features"]
    assert told["covariance"] == told["train features"]
    assert told["val features"] == [(7, 25), (14, 25), (21, 25), (25, 25)]


@pytest.mark.parametrize("there", PCA_FILES)
def test_existing_features_need_replace(folder: Path, there: str) -> None:
    (folder / there).write_text("old")
    with pytest.raises(DataError, match=rf"{there} already exists; expected none") as error:
        reduce_folder(folder, 5)
    assert "\n" not in str(error.value)
    assert (folder / there).read_text() == "old"
    assert [name for name in PCA_FILES if (folder / name).exists()] == [there]
    reduce_folder(folder, 5, replace=True)
    assert read_reduced(folder, "train").shape == (60, 5)
    assert len(PCA.read(folder / "pca.h5").components) == 5


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Let the disk be full when an array of so many rows is to be written."""

    def write(path: Path, key: str, shape: tuple[int, ...], blocks: Any, dtype: Any) -> None:
        write_rows(path, key, shape, blocks, dtype)
        if shape[0] == rows:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("xpcap.data.folder.write_rows", write)


def fill_the_disk_before_the_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_bytes(self: Path, content: bytes) -> None:
        assert isinstance(content, bytes)  # no buffer of a BytesIO is left in the traceback
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("train is NaN", "train2014_vgg16_fc7.h5: 'features' holds NaN"),
        ("val is NaN", "val2014_vgg16_fc7.h5: 'features' holds NaN"),
        ("train on a full disk", "cannot write .*train2014_vgg16_fc7_pca.h5: no space left"),
        ("val on a full disk", "cannot write .*val2014_vgg16_fc7_pca.h5: no space left"),
        ("transform on a full disk", r"cannot write .*[/\\]pca\.h5: no space left"),
    ],
)
def test_a_failure_in_the_middle_leaves_the_old_files_or_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failure: str, message: str, old: bool
) -> None:
    if old:
        reduce_folder(folder, 4)
    split, _, reason = failure.partition(" ")
    counts = {"train": 60, "val": 25}
    if reason == "is NaN":
        features = some_features(counts[split])
        features[-1, 3] = numpy.nan
        write_features(folder, split, features)
    elif split in counts:
        fill_the_disk(monkeypatch, counts[split])
    else:
        fill_the_disk_before_the_transform(monkeypatch)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DataError, match=message) as error:
        reduce_folder(folder, 5, replace=True)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


WRITE = """
import sys
from pathlib import Path
import numpy
from disks import fill
from xpcap.data.folder import write_features
from xpcap.errors import DataError
from xpcap.files import new_file

disk = Path(sys.argv[1])
for free in range(0, 49152, 4096):
    fill(disk, free)
    for rows in (1, 10, 100, 1000):
        try:
            with new_file(disk / "f.h5") as path:
                write_features(path, (rows, 64), [numpy.ones((rows, 64), "f4")])
        except DataError as error:
            print(error)
        else:
            (disk / "f.h5").unlink()
    (disk / "ballast").unlink()
print(sorted(disk.iterdir()))
"""


def test_disks_with_room_for_a_part_leave_nothing_that_ends_the_process(tmp_path: Path) -> None:
    """HDF5 crashes at exit if it could not write all when it closed a file."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1M", "none") as disk:
        done = subprocess.run(
            [sys.executable, "-c", WRITE, disk], capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    *failed, left = done.stdout.splitlines()
    assert set(failed) == {f"cannot write {disk}/f.h5: no space left on the device"}
    assert 12 < len(failed) < 48
    assert left == "[]"


def test_without_features_of_both_splits_nothing_is_done(folder: Path) -> None:
    (folder / "val2014_vgg16_fc7.h5").unlink()
    with pytest.raises(DataError, match=r"no features of 'val' \(val2014_vgg16_fc7\.h5\)"):
        reduce_folder(folder, 5)
    write_features(folder, "val", numpy.zeros((9, 3), numpy.float32))
    with pytest.raises(DataError, match=r"'train': 12, 'val': 3.* expected the same number"):
        reduce_folder(folder, 5)
    assert len(list(folder.iterdir())) == 2


def test_more_components_than_there_are_leave_the_folder_alone(folder: Path) -> None:
    with pytest.raises(DataError, match="60 x 12 features vary in 12 directions"):
        reduce_folder(folder, 13)
    assert len(list(folder.iterdir())) == 2


def test_a_gpu_writes_what_the_host_writes(folder: Path, gpu: Backend) -> None:
    reduce_folder(folder, 5)
    host = read_reduced(folder, "val")
    reduce_folder(folder, 5, backend=gpu, replace=True)
    numpy.testing.assert_allclose(read_reduced(folder, "val"), host, atol=1e-4)
