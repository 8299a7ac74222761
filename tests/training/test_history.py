"""What is written of training, and how it is read again."""

import json
import math

import numpy
import pytest
from guard import counters, open_guard
from tiny import make_tiny

from xpcap.data.dataset import open_dataset
from xpcap.data.minibatch import EpochBatches
from xpcap.distributed import Alone
from xpcap.errors import DataError
from xpcap.models import CaptioningRNN
from xpcap.optim import Optimizer, clip_by_global_norm
from xpcap.training import Schedule, Trainer
from xpcap.training.history import History, read_history
from xpcap.training.recovery import OnNaN, Recovery
from xpcap.training.resident import ResidentStep
from xpcap.training.trainer import Priority, perplexity_of

BATCH = 7


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(make_tiny(tmp_path / "tiny"))


def build(dataset, backend, clip_norm=1.0, resident=False, batch_size=BATCH):
    model = CaptioningRNN(
        dataset.vocabulary.word_to_idx, dataset.feature_dim, 8, 16, seed=1, backend=backend
    )
    split, optimizer = dataset.splits["train"], Optimizer("adam", learning_rate=0.02)
    return Trainer(
        model,
        EpochBatches(split, batch_size, seed=0, with_features=not resident),
        optimizer,
        Schedule(epochs=2, cosine=True, clip_norm=clip_norm),
        {"train": EpochBatches(split, BATCH), "val": EpochBatches(dataset.splits["val"], BATCH)},
        ResidentStep(model, optimizer, split, batch_size, clip_norm) if resident else None,
    )


@pytest.mark.parametrize("resident", [False, True])
def test_losses_and_norms_are_those_of_their_steps_though_fetched_later(
    dataset, backend, tmp_path, resident
):
    trainer = build(dataset, backend, resident=resident)
    History(tmp_path / "h.jsonl").follow(trainer)
    found = []

    def fetch_at_once(t):
        found.append([*t.training_step.figures.tolist(), t.batch.total / t.batch.words])

    trainer.on("step", fetch_at_once)
    trainer.run()
    curves = read_history(tmp_path / "h.jsonl")
    losses, norms, lengths = numpy.array(found).T
    assert curves.loss == pytest.approx(losses * lengths, rel=1e-6)
    assert curves.grad_norm.tolist() == norms.tolist()
    assert len(set(norms)) == len(norms) == 14


def test_the_norm_is_that_of_all_gradients_before_they_are_clipped(dataset, tmp_path):
    trainer = build(dataset, "cpu", clip_norm=1e-3)
    plain = build(dataset, "cpu").model
    batch = next(EpochBatches(dataset.splits["train"], BATCH, seed=0).epoch(0))
    _, grads = plain.loss(batch.features, batch.captions, 0)
    expected = math.sqrt(sum(float((grad.astype("float64") ** 2).sum()) for grad in grads.values()))
    assert float(clip_by_global_norm(grads, 1.0)[1]) == pytest.approx(expected, rel=1e-5)
    History(tmp_path / "h.jsonl").follow(trainer)
    trainer.run()
    assert read_history(tmp_path / "h.jsonl").grad_norm[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("resident", [False, True])
def test_without_clipping_the_norm_is_written_too(dataset, backend, tmp_path, resident):
    norms = []
    for clip_norm in (None, 1e9):  # which clips nothing
        trainer = build(dataset, backend, clip_norm, resident)
        path = tmp_path / f"{clip_norm}.jsonl"
        History(path).follow(trainer)
        trainer.run()
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        steps = [line for line in lines if "loss" in line]
        assert [set(line) for line in steps] == [{"step", "epoch", "lr", "loss", "grad_norm"}] * 14
        norms.append(read_history(path).grad_norm)
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_a_gpu_waits_only_when_lines_are_written(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("xpcap.training.history.FLUSH_EVERY", 5)
    trainer = build(dataset, open_guard())
    waits = []
    trainer.on("step", lambda t: counters.reset(), Priority.CHECK + 1)
    History(tmp_path / "h.jsonl").follow(trainer)
    trainer.on("step", lambda t: waits.append(counters.synchronizations))
    trainer.run()
    assert waits == [0, 0, 0, 0, 1, 0, 0] * 2  # one copy of five steps' figures


@pytest.fixture
def watched(tmp_path):
    """Return what lets a trainer be watched as `xpcap train` does: by a history and a recovery."""

    def watch(trainer):
        recovery = Recovery(OnNaN(), tmp_path, pytest.fail, Alone())
        recovery.follow(trainer)
        History(tmp_path / "h.jsonl", check=recovery.check).follow(trainer)

    return watch


@pytest.mark.parametrize("resident", [False, True])
def test_history_and_recovery_read_each_number_once(dataset, watched, resident):
    """When an epoch is measured: figures of all its steps, and whether the state is finite."""
    trainer = build(dataset, open_guard(), resident=resident)
    events, waits = ("step", "measured", "epoch"), []
    for event in events:
        trainer.on(event, lambda t: counters.reset(), Priority.CHECK + 1)
    watched(trainer)
    for event in events:
        trainer.on(event, lambda t, e=event: waits.append((e, counters.synchronizations)))
    trainer.run()
    assert [(event, count) for event, count in waits if count] == [("measured", 2)] * 2


@pytest.mark.parametrize("resident", [False, True])
def test_twenty_steps_and_a_flush_copy_twice_from_a_gpu(
    dataset, gpu, watched, resident, monkeypatch
):
    """As `shared/cupy_on_cpu` counts; a GPU does not tell."""
    fakegpu = pytest.importorskip("fakegpu", reason="only fakegpu counts what CUDA does")
    monkeypatch.setattr("xpcap.training.history.FLUSH_EVERY", 20)
    trainer = build(dataset, gpu, resident=resident, batch_size=1)
    watched(trainer)
    counts = {}
    trainer.on("step", lambda t: counts.update({t.step: fakegpu.counts()}))
    trainer.run()
    for call in ("memcpyAsync DtoH", "sync streamSynchronize"):
        assert counts[39][call] == counts[20][call]
        assert counts[40][call] == counts[20][call] + 2


def test_what_is_written_comes_back(dataset, tmp_path):
    trainer = build(dataset, "cpu")
    rates, losses = [], []
    trainer.on("step", lambda t: rates.append(t.learning_rate))
    trainer.on("epoch", lambda t: losses.append(t.losses))
    History(tmp_path / "h.jsonl").follow(trainer)
    trainer.run()
    curves = read_history(tmp_path / "h.jsonl")
    assert curves.step.tolist() == list(range(1, 15))
    assert curves.epoch.tolist() == [1] * 7 + [2] * 7
    assert curves.lr.tolist() == rates
    assert curves.epoch_step.tolist() == [7, 14]
    assert curves.epoch_number.tolist() == [1, 2]
    for split in ("train", "val"):
        assert curves.losses[split].tolist() == [of_epoch[split] for of_epoch in losses]
        assert curves.perplexities[split].tolist() == [
            perplexity_of(of_epoch[split]) for of_epoch in losses
        ]
    assert curves.val_loss.tolist() == curves.losses["val"].tolist()
    assert curves.best == 1


def test_lines_are_told_with_their_times(dataset, tmp_path):
    told = []
    trainer = build(dataset, "cpu")
    History(tmp_path / "h.jsonl", also=told.extend).follow(trainer)
    trainer.run()
    times = [when for when, _ in told]
    assert times == sorted(times)
    lines = (tmp_path / "h.jsonl").read_text().splitlines()
    assert [line for _, line in told] == [json.loads(line) for line in lines]


WRITTEN = """\
{"step": 1, "epoch": 1, "lr": 0.01, "loss": 3.5, "grad_norm": 2.25}
{"step": 2, "epoch": 1, "lr": 0.01, "loss": null, "grad_norm": null}
{"step": 2, "epoch": 1, "val_loss": 2.5, "val_perplexity": 12.18}
{"step": 3, "epoch": 2, "lr": 1, "loss": 2}
{"step": 3, "epoch": 2, "train_loss": 1.5, "val_loss": 2.75}
"""


def test_a_file_is_read_as_far_as_it_is_written(tmp_path):
    path = tmp_path / "history.jsonl"
    for end in range(len(WRITTEN) + 1):
        path.write_text(WRITTEN[:end])
        curves = read_history(path)
        whole = (WRITTEN[:end] + "|").replace("}|", "}\n").count("\n")
        assert len(curves.step) + len(curves.epoch_step) == whole


def test_figures_of_self_critical_steps_are_columns(tmp_path):
    """Those that no step has are left out, as they are of other runs."""
    path = tmp_path / "history.jsonl"
    steps = [{"reward": 0.5}, {"reward": 0.75, "words": 9.5}, {"reward": None}]
    lines = [{"step": k, "epoch": 1, "loss": 2.0, **of} for k, of in enumerate(steps, start=1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves, nan = read_history(path), numpy.nan
    assert [*curves.samples] == ["reward", "words"]
    numpy.testing.assert_array_equal(curves.samples["reward"], [0.5, 0.75, nan])
    numpy.testing.assert_array_equal(curves.samples["words"], [nan, 9.5, nan])
    assert curves.smoothed("reward", 1)[1:] == ([1.5], [0.625])
    path.write_text(WRITTEN)
    assert not read_history(path).samples


def test_figures_that_are_not_there_are_nan(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text(WRITTEN)
    curves = read_history(path)
    nan = numpy.nan
    numpy.testing.assert_array_equal(curves.loss, [3.5, nan, 2.0])
    numpy.testing.assert_array_equal(curves.grad_norm, [2.25, nan, nan])
    numpy.testing.assert_array_equal(curves.lr, [0.01, 0.01, 1.0])
    assert set(curves.losses) == {"val", "train"}
    numpy.testing.assert_array_equal(curves.losses["train"], [nan, 1.5])
    numpy.testing.assert_array_equal(curves.perplexities["val"], [12.18, nan])
    assert curves.best == 0
    path.write_text("")
    empty = read_history(path)
    assert len(empty.step) == len(empty.val_loss) == 0
    assert empty.best is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"step": 3', "line 2 is not JSON: Expecting"),
        (b"", "line 2 is not JSON"),
        (b'\xff{"step": 3}', "line 2 is not JSON"),
        (b"[" * 100_000, "line 2 is not JSON"),
        (b"[3]", "line 2: expected an object"),
        (b'{"epoch": 3, "loss": 1}', "line 2: expected 'step' to be from 1 on, got None"),
        (b'{"step": true, "epoch": 3}', "line 2: expected 'step' to be from 1 on, got True"),
        (b'{"step": 1.0, "epoch": 3}', "line 2: expected 'step' to be from 1 on, got 1.0"),
        (b'{"step": 3, "epoch": 0}', "line 2: expected 'epoch' to be from 1 on, got 0"),
        (b'{"step": 1%s, "epoch": 3}' % (b"0" * 30), "expected 'step' to be from 1 on, got 1000"),
        (b'{"step": 3, "epoch": 1, "loss": "1"}', "'loss' to be a number or null, got '1'"),
        (b'{"step": 3, "epoch": 1, "lr": false}', "'lr' to be a number or null, got False"),
        (b'{"step": 3, "epoch": 1, "val_loss": 1%s}' % (b"0" * 400), "'val_loss' to be a number"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    path = tmp_path / "history.jsonl"
    first, *_, last = WRITTEN.encode().splitlines(keepends=True)
    path.write_bytes(first + line + b"\n" + last)
    with pytest.raises(DataError, match=message) as caught:
        read_history(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_no_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*history.jsonl: No such file"):
        read_history(tmp_path / "history.jsonl")
