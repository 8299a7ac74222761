"""The set of full COCO size, made small."""

import h5py
import make_full_size
import numpy
import pytest
from click.testing import CliRunner

from xpcap.backend import CPU
from xpcap.data.dataset import open_dataset
from xpcap.data.features import LazyFeatures
from xpcap.training import Schedule
from xpcap.training.options import RunOptions
from xpcap.training.run import RunContext, train_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("full") / "set"
    ended = CliRunner().invoke(make_full_size.main, [str(path), "--share", "0.002"])
    assert ended.exit_code == 0, ended.output
    assert ended.stdout == ""
    assert ended.stderr.splitlines()[:2] == ["coco2014_captions.h5", "train2014_vgg16_fc7.h5"]
    return path


def test_keys_shapes_and_types_are_those_of_the_course(folder):
    found = {}
    for path in folder.glob("*.h5"):
        with h5py.File(path) as file:
            for key, array in file.items():
                found[path.name, key] = (array.shape, array.dtype.name, array.chunks)
    captions, features = "coco2014_captions.h5", "features"
    assert found == {
        (captions, "train_captions"): ((800, 17), "int32", None),
        (captions, "train_image_idxs"): ((800,), "int32", None),
        (captions, "val_captions"): ((392, 17), "int32", None),
        (captions, "val_image_idxs"): ((392,), "int32", None),
        ("train2014_vgg16_fc7.h5", features): ((166, 4096), "float32", None),
        ("val2014_vgg16_fc7.h5", features): ((81, 4096), "float32", None),
        ("train2014_vgg16_fc7_pca.h5", features): ((166, 512), "float32", None),
        ("val2014_vgg16_fc7_pca.h5", features): ((81, 512), "float32", None),
    }
    others = {path.name for path in folder.iterdir()} - {path for path, _ in found}
    assert others == {"coco2014_vocab.json", "train2014_urls.txt", "val2014_urls.txt"}


def test_every_image_has_captions_and_rows_differ(folder, tmp_path, monkeypatch):
    split = open_dataset(folder).splits["train"]
    counts = numpy.bincount(split.image_idxs, minlength=166)
    assert (counts.min(), counts.max()) == (4, 5)
    assert (numpy.diff(split.image_idxs) == 1).mean() < 0.05  # in random order
    monkeypatch.setattr(make_full_size, "BLOCK_ROWS", 7)
    rng = numpy.random.default_rng(0)
    make_full_size.write_features(tmp_path / "f.h5", 30, 512, rng)
    with h5py.File(tmp_path / "f.h5") as file:
        assert len(numpy.unique(file["features"], axis=0)) == 30
        assert numpy.std(file["features"]) == pytest.approx(1, abs=0.05)


def test_lazy_training_equals_training_from_memory(folder, tmp_path):
    def losses(lazy):
        options = RunOptions(
            features="fc7", lazy=lazy, hidden=8, wordvec=8, batch_size=100,
            schedule=Schedule(epochs=1),
        )  # fmt: skip
        found = []

        def watch(trainer):
            trainer.on("step", lambda trainer: found.append(trainer.result.loss))

        context = RunContext(watch=watch)
        trainer, _ = train_run(folder, tmp_path / f"run-{lazy}", options, CPU, context)
        for batches in (trainer.batches, trainer.validation["val"]):
            assert isinstance(batches.split.features, LazyFeatures) == lazy
        return [*found, trainer.best_loss]

    lazily = losses(lazy=True)
    assert len(lazily) == 9
    assert lazily == losses(lazy=False)


def test_an_existing_folder_is_left_alone(folder):
    ended = CliRunner().invoke(make_full_size.main, [str(folder), "--share", "0.002"])
    assert ended.exit_code == 1
    assert "exists and is not an empty folder" in ended.stderr
