"""Fifty real captions, learned by heart, as in the course's notebooks."""

import numpy
import pytest

from xpcap.data.coco import load_coco_data
from xpcap.data.coco_json import build_from_coco
from xpcap.data.minibatch import sample_coco_minibatch
from xpcap.data.vocabulary import decode_captions
from xpcap.models import CaptioningRNN
from xpcap.train import CaptioningSolver


@pytest.fixture(scope="module")
def data(coco_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco") / "set"
    build_from_coco(
        coco_dir / "captions_val2017.json",
        coco_dir / "instances_val2017.json",
        folder,
        vocabulary=coco_dir / "coco2014_vocab.json",
    )
    numpy.random.seed(231)
    return load_coco_data(folder, max_train=50, pca_features=False)


@pytest.mark.parametrize(("cell", "decay"), [("rnn", 0.95), ("lstm", 0.995), ("gru", 0.995)])
def test_fifty_captions_are_overfitted(data, cell, decay):
    numpy.random.seed(231)
    model = CaptioningRNN(data["word_to_idx"], data["train_features"].shape[1], 256, 512, cell)
    solver = CaptioningSolver(
        model, data, update_rule="adam", optim_config={"learning_rate": 5e-3}, lr_decay=decay,
        batch_size=25, num_epochs=50, verbose=False,
    )  # fmt: skip
    solver.train()
    print(cell, solver.loss_history[::10], solver.loss_history[-1])
    assert len(solver.loss_history) == 100
    assert numpy.mean(solver.loss_history[-5:]) < 0.2

    captions, features, _ = sample_coco_minibatch(data, 25)
    said = decode_captions(model.sample(features, max_length=17), data["idx_to_word"])
    meant = [
        sentence.removeprefix("<START> ")
        for sentence in decode_captions(captions, data["idx_to_word"])
    ]
    assert numpy.mean([a == b for a, b in zip(said, meant, strict=True)]) > 0.5
