import json
import math
from dataclasses import replace

import numpy
import pytest
from tiny import make_tiny

from xpcap.data.dataset import open_dataset
from xpcap.data.minibatch import EpochBatches
from xpcap.errors import ConfigurationError, DivergedError
from xpcap.models import CaptioningRNN
from xpcap.optim import Optimizer, adam, clip_by_global_norm
from xpcap.training import Schedule, Trainer, evaluate
from xpcap.training.history import History
from xpcap.training.shared import SharedLoss
from xpcap.training.trainer import Priority, perplexity_of


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(make_tiny(tmp_path / "tiny"))


def build(
    dataset, backend=None, *, schedule=None, lr=0.02, cell="lstm", dropout=0.0, dtype="float32"
):
    model = CaptioningRNN(
        dataset.vocabulary.word_to_idx, dataset.feature_dim, 8, 16, cell,
        dtype, seed=1, dropout=dropout, backend=backend,
    )  # fmt: skip
    train, val = dataset.splits["train"], dataset.splits["val"]
    return Trainer(
        model,
        EpochBatches(train, 10, seed=0),
        Optimizer("adam", learning_rate=lr),
        schedule or Schedule(epochs=3, cosine=True, clip_norm=5.0),
        {"train": EpochBatches(train, 7), "val": EpochBatches(val, 7)},
    )


def test_the_loop_is_the_one_written_out(dataset):
    """Plain layers, gradients clipped one by one, parameters updated one by one."""
    schedule = Schedule(epochs=2, lr_decay=0.5, cosine=True, clip_norm=1.0)
    trainer = build(dataset, schedule=schedule, dropout=0.3, dtype=numpy.float64)
    rates = []
    trainer.on("step", lambda t: rates.append(t.learning_rate))
    model = build(dataset, dropout=0.3, dtype=numpy.float64).model
    steps = 2 * 5
    trainer.run()

    params, configs, step, expected_rates = model.params, {}, 0, []
    for epoch in range(2):
        for batch in EpochBatches(dataset.splits["train"], 10, seed=0).epoch(epoch):
            _, grads = model.loss(batch.features, batch.captions, step)
            grads, _ = clip_by_global_norm(grads, 1.0)
            rate = 0.02 * 0.5**epoch * (1 + math.cos(math.pi * step / steps)) / 2
            expected_rates.append(rate)
            for name, grad in grads.items():
                config = configs.setdefault(name, {})
                config["learning_rate"] = rate
                params[name], configs[name] = adam(params[name], grad, config)
            step += 1
    assert rates == pytest.approx(expected_rates)
    for name, value in params.items():
        numpy.testing.assert_allclose(trainer.model.params[name], value, rtol=1e-9, atol=1e-11)


def test_warm_up_comes_before_the_schedule():
    """A schedule that starts again, from another rate, does so without it."""

    def half(progress):
        return (1 + math.cos(math.pi * progress)) / 2

    schedule = Schedule(epochs=3, cosine=True, warmup=4)
    factors = [schedule.factor(step, 4) for step in range(12)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, *(half(k / 8) for k in range(8))])
    decaying = Schedule(epochs=3, lr_decay=0.5, warmup=2)
    assert [decaying.factor(step, 4) for step in range(12)] == [
        0.5,
        *[1] * 5,
        *[0.5] * 4,
        0.25,
        0.25,
    ]
    for start in (2, 4):
        assert replace(schedule, start=start).factor(2, 4) == 0.75
        assert replace(schedule, start=start).factor(4, 4) == 1
    assert replace(schedule, start=6).factor(6, 4) == 1
    assert replace(schedule, start=6).factor(9, 4) == pytest.approx(half(3 / 6))


def test_it_learns_and_keeps_the_best_epoch(dataset):
    trainer = build(dataset, schedule=Schedule(epochs=12, clip_norm=5.0))
    losses = []
    trainer.on("epoch", lambda t: losses.append(t.losses["val"]))
    trainer.run()
    assert losses[-1] < 0.5 < losses[0]
    assert trainer.best_loss == min(losses) == losses[trainer.best_epoch - 1]
    trainer.model.params = trainer.best_params
    val = EpochBatches(dataset.splits["val"], 24)
    assert evaluate(trainer.model, val) == pytest.approx(trainer.best_loss, rel=1e-5)


def test_a_loss_a_word_is_the_sum_over_words(dataset):
    trainer = build(dataset)
    split = dataset.splits["val"]
    total = words = 0.0
    for caption, image in zip(split.captions, split.image_idxs, strict=True):
        total += float(trainer.model.evaluate(split.features[image][None], caption[None]))
        words += (caption[1:] != 0).sum()
    loss = evaluate(trainer.model, EpochBatches(split, 7))
    assert loss == pytest.approx(total / words, rel=1e-5)
    assert perplexity_of(loss) == pytest.approx(math.exp(total / words), rel=1e-5)
    assert perplexity_of(1e9) < math.inf


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_every_backend_trains_alike(dataset, backend, cell):
    def losses(where):
        trainer = build(dataset, where, cell=cell, dropout=0.3)
        found = []
        trainer.on("step", lambda t: found.append(t.result.loss))
        trainer.run()
        return found

    assert losses(backend) == pytest.approx(losses("cpu"), rel=1e-4)


def test_callbacks_are_called_in_order_of_priority(dataset):
    trainer, called = build(dataset, schedule=Schedule(epochs=1)), []
    order = [Priority.WATCH, Priority.SAVE, Priority.CHECK, Priority.RECORD, Priority.SAVE]
    for place, priority in enumerate(order):
        trainer.on("end", lambda t, place=place: called.append(place), priority)
    trainer.run()
    assert called == [2, 3, 1, 4, 0]


def test_the_same_seed_gives_the_same_bits(dataset):
    first, second = build(dataset, dropout=0.2), build(dataset, dropout=0.2)
    first.run()
    second.run()
    for name, value in first.model.params.items():
        numpy.testing.assert_array_equal(value, second.model.params[name])


def test_patience_ends_training_early(dataset, monkeypatch):
    trainer = build(dataset, schedule=Schedule(epochs=50, patience=2), lr=1e-9)
    monkeypatch.setattr(SharedLoss, "evaluate", lambda *args: numpy.float32(1))
    trainer.run()
    assert (trainer.best_epoch, trainer.epoch) == (1, 3)


def test_the_best_parameters_are_those_of_their_epoch(dataset, monkeypatch):
    """Though later steps change the model's arrays in place."""
    worse = iter(range(1, 100))
    monkeypatch.setattr(SharedLoss, "evaluate", lambda *args: numpy.float32(next(worse)))
    trainer = build(dataset)
    after_first = {}

    def keep(t):
        if t.epoch == 1:
            after_first.update({name: value.copy() for name, value in t.model.params.items()})

    trainer.on("epoch", keep)
    trainer.run()
    assert trainer.best_epoch == 1
    for name, value in after_first.items():
        numpy.testing.assert_array_equal(trainer.best_params[name], value)
    assert not numpy.array_equal(trainer.best_params["Wh"], trainer.model.params["Wh"])


def test_a_loss_that_is_not_finite_ends_training(dataset):
    trainer = build(dataset)
    trainer.model.params["b_vocab"][0] = numpy.nan
    with pytest.raises(DivergedError, match="step 5: the train loss after epoch 1 is nan"):
        trainer.run()


def test_history_has_an_object_a_step_and_one_an_epoch(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("xpcap.training.history.FLUSH_EVERY", 3)
    trainer = build(dataset)
    losses = []
    trainer.on(
        "step", lambda t: losses.append(t.training_step.loss * t.batch.total / t.batch.words)
    )
    History(tmp_path / "history.jsonl").follow(trainer)
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    epochs = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 16))
    assert [line["epoch"] for line in steps] == [1] * 5 + [2] * 5 + [3] * 5
    assert [line["loss"] for line in steps] == pytest.approx(losses, rel=1e-5)
    assert steps[0]["lr"] == 0.02 > steps[-1]["lr"] > 0
    assert [(line["step"], line["epoch"]) for line in epochs] == [(5, 1), (10, 2), (15, 3)]
    assert epochs[-1]["val_loss"] == trainer.losses["val"]
    assert epochs[-1]["train_perplexity"] == perplexity_of(trainer.losses["train"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"lr_decay": 0.0}, r"lr_decay must be a number in \(0, inf\), got 0.0"),
        ({"clip_norm": math.inf}, r"clip must be a number in \(0, 1e30\], got inf"),
    ],
)
def test_a_schedule_is_checked(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Schedule(**settings)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_learning_rate_is_checked(rate):
    with pytest.raises(ConfigurationError, match="learning_rate must be a number in"):
        Optimizer("sgd", learning_rate=rate)


def test_an_unknown_event_is_refused(dataset):
    with pytest.raises(ConfigurationError, match="expected step, measured, epoch, end"):
        build(dataset).on("batch", print)
