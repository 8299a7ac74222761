"""Fifty real captions, learned by heart, as in the course's notebooks, with fewer units."""

import h5py
import numpy
import pytest

from xpcap.backend import CPU
from xpcap.data.coco_json import build_from_coco
from xpcap.data.minibatch import gather
from xpcap.data.vocabulary import decode_captions
from xpcap.runs.checkpoint import read_checkpoint, write_checkpoint
from xpcap.training import Schedule
from xpcap.training.run import RunOptions, train_run


@pytest.fixture(scope="module")
def folder(coco_dir, tmp_path_factory):
    """Build the set; of its validation part keep a few captions, for it is measured each epoch."""
    folder = tmp_path_factory.mktemp("coco") / "set"
    build_from_coco(
        coco_dir / "captions_val2017.json",
        coco_dir / "instances_val2017.json",
        folder,
        vocabulary=coco_dir / "coco2014_vocab.json",
    )
    with h5py.File(folder / "coco2014_captions.h5", "a") as file:
        for key in ("val_captions", "val_image_idxs"):
            few = file[key][:25]
            del file[key]
            file[key] = few
    return folder


EPOCHS = 50


@pytest.fixture(autouse=True)
def _saved_at_the_end_only(monkeypatch):
    """To write what every epoch ends with takes a third of the time."""

    def write(path, checkpoint):
        if checkpoint.state.progress.epoch == EPOCHS:
            write_checkpoint(path, checkpoint)

    monkeypatch.setattr("xpcap.training.saving.write_checkpoint", write)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_fifty_captions_are_overfitted(folder, tmp_path, cell):
    options = RunOptions(
        cell=cell, hidden=160, wordvec=128, max_train=50, batch_size=25, rule="adam", lr=0.015,
        schedule=Schedule(epochs=EPOCHS, clip_norm=5.0),
    )  # fmt: skip
    trainer, dataset = train_run(folder, tmp_path / "run", options, CPU)
    assert trainer.step == 100
    model = trainer.model
    model.params = dict(read_checkpoint(tmp_path / "run" / "last.safetensors").state.parameters)
    batch = gather(dataset.splits["train"], numpy.arange(50))
    captions, features = batch.captions, batch.features
    summed = float(model.evaluate(features, captions))  # over a caption's words
    print(cell, summed)
    assert summed < 0.2

    words = dataset.vocabulary.idx_to_word
    said = decode_captions(model.sample(features, max_length=16), words)
    meant = decode_captions(captions[:, 1:], words)
    assert sum(a == b for a, b in zip(said, meant, strict=True)) >= 45
