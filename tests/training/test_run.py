import json
from dataclasses import replace

import numpy
import pytest
from runs import TRANSFORMER
from tiny import make_tiny

from xpcap.backend import CPU
from xpcap.data.minibatch import EpochBatches
from xpcap.errors import CheckpointError, DataError, DivergedError, XpcapError
from xpcap.runs import ensemble, open_run
from xpcap.runs.captions import caption_dataset, caption_images
from xpcap.runs.checkpoint import read_checkpoint, write_checkpoint
from xpcap.runs.dataset import open_data
from xpcap.training import Schedule, evaluate
from xpcap.training.options import RunOptions
from xpcap.training.run import train_run

OPTIONS = {"hidden": 16, "wordvec": 8, "batch_size": 10, "lr": 0.02}


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "tiny")


def run(tiny, out, backend=CPU, epochs=2, **options):
    chosen = RunOptions(schedule=Schedule(epochs=epochs), **{**OPTIONS, **options})
    return train_run(tiny, out, chosen, backend)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_run_opens_with_its_best_parameters(tiny, tmp_path, backend, cell):
    trainer, dataset = run(tiny, tmp_path / "run", backend, cell=cell, epochs=30, lr=0.03)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        ".lock", "history.jsonl", "best.safetensors", "last.safetensors",
    }  # fmt: skip
    opened = open_run(tmp_path / "run")
    assert opened.config["data"]["name"] == "tiny"
    assert opened.config["training"]["schedule"]["epochs"] == 30
    # two of seven features are 1, the others 0
    assert opened.config["training"]["feature_scale"] == pytest.approx((2 / 7) ** 0.5)
    loss = evaluate(opened.model, EpochBatches(dataset.splits["val"], 24))
    assert loss == pytest.approx(trainer.best_loss, rel=1e-4)
    shown = caption_dataset(opened, dataset, "val", 3)
    assert [entry["image"][-6:] for entry in shown] == ["/0.png", "/5.png", "11.png"]
    assert all(entry["caption"] in entry["references"] for entry in shown)
    assert len(caption_dataset(opened, dataset, "val", 99)) == 12


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 20, "lr": 0.02},
        {"model": "attention", "doubly_stochastic": 0.1},
        {"model": "attention", "cell": "gru", "scoring": "dot"},
        {**TRANSFORMER, "dropout": 0.0, "epochs": 6, "lr": 0.02},
    ],
    ids=["recurrent", "additive", "dot", "transformer"],
)
def test_a_run_on_regions(tmp_path, backend, options):
    """They are scaled without those that are absent; runs know their shape."""
    tiny = make_tiny(tmp_path / "tiny", regions=True)
    _, dataset = run(tiny, tmp_path / "run", backend, **{"epochs": 8, "lr": 0.08, **options})
    opened = open_run(tmp_path / "run", backend)
    assert opened.feature_shape == (3, 7)
    assert opened.config["training"]["feature_scale"] == pytest.approx((1 / 7) ** 0.5)
    shown = caption_dataset(opened, open_data(opened), "val", 12)
    assert all(entry["caption"] in entry["references"] for entry in shown)
    features = dataset.splits["val"].features
    captions = opened.caption(features)
    assert captions == opened.caption(features[:, ::-1].astype("float16"))
    assert captions == opened.caption(numpy.pad(features, ((0, 0), (0, 4), (0, 0))))


def test_features_of_another_shape_are_refused(tiny, tmp_path):
    run(tiny, tmp_path / "vectors")
    run(make_tiny(tmp_path / "sets", regions=True), tmp_path / "regions", epochs=1)
    vectors, regions = open_run(tmp_path / "vectors"), open_run(tmp_path / "regions")
    for opened, shape, expected in (
        (vectors, (2, 3, 7), r"features are \(2, 3, 7\); expected \(N, 7\), as .*vectors was"),
        (vectors, (2, 8), r"features are \(2, 8\); expected \(N, 7\)"),
        (regions, (2, 7), r"features are \(2, 7\); expected \(N, L, 7\), as .*regions was"),
        (regions, (2, 3, 8), r"expected \(N, L, 7\).*; pixels are 8-bit integers"),
    ):
        with pytest.raises(DataError, match=expected):
            opened.caption(numpy.zeros(shape))
    with pytest.raises(
        DataError, match=r"sets has 3 x 7 features per image; expected 7, as .*vect"
    ):
        open_data(vectors, tmp_path / "sets")
    with pytest.raises(
        DataError, match=r"tiny has 7 features per image; expected 3 x 7, as .*regi"
    ):
        open_data(regions, tiny)
    with pytest.raises(CheckpointError, match=r"has features per image 3 x 7, .* 7; expected"):
        ensemble([vectors, regions])


def test_a_moved_data_set_is_named(tiny, tmp_path):
    run(tiny, tmp_path / "run")
    opened = open_run(tmp_path / "run")
    moved = tiny.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"tiny, on which .* does not exist; .* \(data=FOLDER\)$"):
        open_data(opened)
    assert len(caption_dataset(opened, open_data(opened, moved), "val", 3)) == 3
    words = json.loads((moved / "coco2014_vocab.json").read_text())["idx_to_word"]
    words[-1] = "other"
    (moved / "coco2014_vocab.json").write_text(
        json.dumps({"idx_to_word": words, "word_to_idx": {w: k for k, w in enumerate(words)}})
    )
    with pytest.raises(DataError, match="another vocabulary"):
        open_data(opened, moved)


def test_pictures_need_features_made_from_pixels(tiny, tmp_path):
    run(tiny, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"cannot compute from an image \(given away\)"):
        caption_images(open_run(tmp_path / "run"), [tmp_path / "a.png"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "mlp"}, "cell 'mlp' is unknown; expected rnn, lstm, gru"),
        ({"rule": "adagrad"}, "rule 'adagrad' is unknown"),
        ({"lr": float("nan")}, r"lr must be a number in \(0, inf\), got nan"),
        ({"batch_size": 49}, r"batch size 49 is not in 1\.\.48"),
        ({"max_train": 49}, r"max-train 49 is not in 1\.\.48"),
        ({"max_train": 5, "batch_size": 10}, r"batch size 10 is not in 1\.\.5"),
        ({"dropout": 1.0}, r"dropout must be a number in \[0, 1\), got 1.0"),
        ({"features": "pca"}, "has no pca features"),
    ],
)
def test_a_mistake_leaves_no_folder(tiny, tmp_path, options, message):
    with pytest.raises(XpcapError, match=message):
        run(tiny, tmp_path / "runs" / "run", **options)
    assert not (tmp_path / "runs").exists()


def test_training_that_fails_leaves_what_it_had(tiny, tmp_path):
    with pytest.raises(DivergedError, match=r"step \d+: the loss .* learning rate 1e\+30"):
        run(tiny, tmp_path / "run", rule="sgd", lr=1e30)
    report = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert report["learning_rate"] == pytest.approx(1e30)
    assert len(report["captions"]) == 10
    assert read_checkpoint(tmp_path / "run" / "last.safetensors").state.progress.step == 0


def test_another_run_is_never_overwritten(tiny, tmp_path):
    run(tiny, tmp_path / "run")
    before = (tmp_path / "run" / "best.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="run holds another run; expected a new name"):
        run(tiny, tmp_path / "run")
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(DataError, match="is not an empty folder"):
        run(tiny, tmp_path / "full")


def test_lazy_and_half_features_train_too(tiny, tmp_path):
    whole, _ = run(tiny, tmp_path / "whole")
    lazy, _ = run(tiny, tmp_path / "lazy", lazy=True)
    half, _ = run(tiny, tmp_path / "half", feature_dtype="float16")
    assert whole.best_loss == lazy.best_loss == half.best_loss  # the features are zeros and ones


def changed(**config):
    return lambda checkpoint: replace(checkpoint, config={**checkpoint.config, **config})


def without(checkpoint, name):
    parameters = {key: p for key, p in checkpoint.state.parameters.items() if key != name}
    return replace(checkpoint, state=replace(checkpoint.state, parameters=parameters))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(model={"cell_type": "rnn"}), "'model' lacks 'input_dim'"),
        (changed(model=3), "expected 'model' and 'data', both"),
        (changed(data={"kind": "x"}), "expected 'data' with"),
        (
            lambda found: changed(model={**found.config["model"], "hidden_dim": 10**9})(found),
            r"'W_proj' is of shape \(7, 16\); expected \(7, 1000000000\)",
        ),
        (
            lambda found: changed(model={**found.config["model"], "cell_type": "x"})(found),
            "'x' is unkn",
        ),
        (
            lambda found: changed(model={**found.config["model"], "cell_type": "gru"})(found),
            "of shape",
        ),
        (
            lambda found: changed(model={**found.config["model"], "depth": 1})(found),
            "cannot be built",
        ),
        (lambda found: without(found, "W_proj"), "'W_proj' is of shape None"),
        (lambda found: without(found, "b"), "'b' is of shape None"),
    ],
)
def test_a_checkpoint_that_does_not_fit_together_is_named(tiny, tmp_path, change, message):
    run(tiny, tmp_path / "run", epochs=1)
    path = tmp_path / "run" / "best.safetensors"
    write_checkpoint(path, change(read_checkpoint(path)))
    with pytest.raises(CheckpointError, match=rf"best.safetensors: .*{message}"):
        open_run(tmp_path / "run")


def test_a_run_without_an_epoch_or_none_at_all_is_named(tiny, tmp_path):
    run(tiny, tmp_path / "run", epochs=1)
    (tmp_path / "run" / "best.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has not come to the end of an epoch"):
        open_run(tmp_path / "run")
    assert open_run(tmp_path / "run" / "last.safetensors").folder == tmp_path / "run"
    with pytest.raises(CheckpointError, match="is not a run; expected a folder"):
        open_run(tmp_path / "none")


@pytest.mark.parametrize(("captions", "size", "steps"), [(None, 16, 3), (7, 7, 1)])
def test_without_a_batch_size_batches_of_a_small_set_are_small(
    tiny, tmp_path, captions, size, steps
):
    trainer, _ = run(tiny, tmp_path / "run", batch_size=None, max_train=captions)
    assert len(trainer.batches) == steps
    assert open_run(tmp_path / "run").config["training"]["batch_size"] == size
