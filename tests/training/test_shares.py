"""Training on several ranks, which are threads here, is training on one."""

import copy
import itertools
import json
import shutil
import threading
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy
import pytest
from kinds import KINDS, LOOKING, RECURRENT
from mpi import ThreadRanks, together
from runs import TRANSFORMER
from tiny import make_tiny

from xpcap.backend import CPU, to_host
from xpcap.data.dataset import open_dataset
from xpcap.data.minibatch import Batch, EpochBatches, Share
from xpcap.errors import ConfigurationError, DataError, DivergedError
from xpcap.models import CaptioningRNN
from xpcap.models.objective import Objective
from xpcap.optim import Optimizer
from xpcap.runs.checkpoint import read_checkpoint, write_checkpoint
from xpcap.training import Schedule
from xpcap.training.options import RunOptions
from xpcap.training.recovery import OnNaN
from xpcap.training.run import RunContext, resume_run, train_run
from xpcap.training.saving import Saving
from xpcap.training.step import TrainingStep

WORDS = {"<NULL>": 0, "<START>": 1, "<END>": 2, "<UNK>": 3, "a": 4, "cat": 5, "sits": 6}
RNG = numpy.random.default_rng(4)
SMALL = {"hidden": 6, "wordvec": 5, "dtype": "float64", "batch_size": 10, "lr": 0.01}


def captions_of(lengths, T=7):
    captions = numpy.zeros((len(lengths), T + 1), numpy.int32)
    for row, length in zip(captions, lengths, strict=True):
        row[: length + 1] = RNG.integers(1, len(WORDS), length + 1)
    return captions


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "tiny")


def train(data, out, ranks=1, context=None, epochs=2, clip_norm=5.0, **options):
    """Train on so many ranks; return what the first one has."""
    schedule = Schedule(epochs=epochs, clip_norm=clip_norm)
    options = RunOptions(schedule=schedule, **{**SMALL, **options})
    context = context or {}
    return together(
        ranks, lambda own: train_run(data, out, options, CPU, RunContext(**context, ranks=own))
    )[0]


def until(epochs):
    return lambda options: replace(options, schedule=replace(options.schedule, epochs=epochs))


def history(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def assert_same_history(run, other, tolerance=1e-12):
    lines, others = history(run), history(other)
    assert len(lines) == len(others) > 0
    for line, same in zip(lines, others, strict=True):
        assert line.keys() == same.keys()
        for name, value in line.items():
            if value is None:
                assert same[name] is None, (line, same)
            else:
                assert same[name] == pytest.approx(value, rel=tolerance, abs=tolerance)


LENGTHS = ([3, 7, 1, 5, 7, 2, 4, 6, 1], [4, 4], [0, 3, 7])


@pytest.mark.parametrize(
    ("kind", "dropout", "lengths"),
    [
        *itertools.product(RECURRENT, [0.0, 0.4], LENGTHS),
        *((kind, 0.4, lengths) for kind in LOOKING for lengths in LENGTHS[::2]),
        ("transformer with encoder", 0.4, LENGTHS[0]),
        ("transformer", 0.0, LENGTHS[2]),
    ],
)
def test_the_parts_of_shares_add_up_to_the_whole(lengths, dropout, kind, backend):
    """Against the plain loss of the whole minibatch; of four ranks some may have no caption."""
    captions, features = captions_of(lengths), KINDS[kind].features(len(lengths), 3, seed=1)
    made = {"dropout": dropout, "seed": 0}
    made |= {"doubly_stochastic": 0.5} if kind in LOOKING else {}
    here, there = (KINDS[kind].build(WORDS, 3, 4, 5, **made, backend=b) for b in (CPU, backend))
    loss, gradients = here.loss(features, captions, 8)
    packed = Objective(there)
    found_loss, sums = 0.0, {name: numpy.zeros(value.shape) for name, value in gradients.items()}
    order = RNG.permutation(len(lengths))
    for rank in range(4):
        places = order[rank::4]
        if len(places):
            xp = backend.xp
            found = {name: xp.empty(value.shape, numpy.float64) for name, value in sums.items()}
            share = Share(places, len(lengths), int((captions[:, 1:] != 0).sum()))
            mine = backend.to_device(features[places])
            found_loss += float(packed.loss(mine, captions[places], 8, found, share))
            if packed.penalty is not None:
                found_loss += float(packed.penalty.sum())
            for name, value in found.items():
                sums[name] += to_host(value)
    assert found_loss == pytest.approx(float(loss), rel=1e-12)
    for name, value in gradients.items():
        numpy.testing.assert_allclose(sums[name], value, rtol=1e-12, atol=1e-12)


def test_shares_are_dealt_like_cards(tiny):
    split = open_dataset(tiny).splits["train"]
    whole = list(EpochBatches(split, 10, 3).epoch(1))
    parts = [list(EpochBatches(split, 10, 3, rank=k, ranks=4).epoch(1)) for k in range(4)]
    assert [batch.total for batch in whole] == [10, 10, 10, 10, 8]
    for batch, *shares in zip(whole, *parts, strict=True):
        numpy.testing.assert_array_equal(numpy.sort(numpy.concatenate([s.rows for s in shares])),
                                         numpy.sort(batch.rows))  # fmt: skip
        words = [int((share.captions[:, 1:] != 0).sum()) for share in shares]
        assert max(words) - min(words) <= 4, "each rank has about as much to do"
        for share in shares:
            assert share.total == batch.total
            assert share.words == batch.words == sum(words)
            numpy.testing.assert_array_equal(share.rows, batch.rows[share.share.places])
            numpy.testing.assert_array_equal(share.captions, split.captions[share.rows])
            numpy.testing.assert_array_equal(
                share.features, split.features[split.image_idxs[share.rows]]
            )


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (2, {"cell": "rnn"}),
        (2, {"cell": "lstm", "dropout": 0.4, "lazy": True}),
        (3, {"cell": "gru", "dropout": 0.4}),
        (3, {"rule": "sgd", "clip_norm": None}),
        (5, {"batch_size": 3, "epochs": 1}),  # two ranks have nothing to do
        (2, {"batch_size": 47}),  # and the last batch is one caption
    ],
)
def test_ranks_train_as_one(tiny, tmp_path, ranks, options):
    alone, _ = train(tiny, tmp_path / "alone", **options)
    shared, _ = train(tiny, tmp_path / "shared", ranks, **options)
    assert_same_history(tmp_path / "alone", tmp_path / "shared")
    for name, value in alone.model.params.items():
        numpy.testing.assert_allclose(shared.model.params[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (2, {}),
        (2, {"model": "attention", "doubly_stochastic": 0.5}),
        (5, {"model": "attention", "scoring": "dot", "batch_size": 3, "epochs": 1}),
        (3, TRANSFORMER),
    ],
)
def test_ranks_share_features_of_regions(tmp_path, ranks, options):
    data = make_tiny(tmp_path / "regions", regions=True)
    alone, _ = train(data, tmp_path / "alone", **options)
    shared, _ = train(data, tmp_path / "shared", ranks, **options)
    assert_same_history(tmp_path / "alone", tmp_path / "shared")
    for name, value in alone.model.params.items():
        numpy.testing.assert_allclose(shared.model.params[name], value, rtol=1e-9, atol=1e-12)


def test_every_rank_ends_with_the_same_parameters(tiny, tmp_path):
    options = RunOptions(schedule=Schedule(epochs=2), **SMALL)
    out = tmp_path / "run"
    found = together(3, lambda own: train_run(tiny, out, options, CPU, RunContext(ranks=own)))
    first, *others = [trainer.model.params for trainer, _ in found]
    for params in others:
        for name, value in first.items():
            numpy.testing.assert_array_equal(params[name], value)
    assert not list(out.rglob("*.part"))


def test_each_rank_measures_its_share_only(tiny, tmp_path):
    measured = []

    def watch(trainer):
        packed = trainer.training_step.measuring
        evaluate = packed.evaluate

        def counted(features, captions):
            measured.append(len(captions))
            return evaluate(features, captions)

        packed.evaluate = counted

    train(tiny, tmp_path / "run", 3, {"watch": watch}, epochs=1)
    assert sum(measured) == 48 + 24  # of training and of validation


def spoiled(trainer):
    """Let the gradients of two steps be no numbers, once."""
    packed, steps = trainer.training_step.packed, [2, 6]
    compute = packed.loss

    def loss(features, captions, number, gradients, share=None):
        found = compute(features, captions, number, gradients, share)
        if number in steps:
            steps.remove(number)
            gradients["b_vocab"][0] = numpy.nan
        return found

    packed.loss = loss


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_ranks_recover_as_one(tiny, tmp_path, policy):
    warnings = []
    for ranks in (1, 3):
        said = []
        context = {"watch": spoiled, "warn": said.append}
        train(tiny, tmp_path / str(ranks), ranks, context, on_nan=OnNaN(policy))
        warnings.append(said)
    assert len(warnings[0]) == 2
    assert warnings[1] == [line for line in warnings[0] for _ in range(3)]
    assert_same_history(tmp_path / "1", tmp_path / "3", 1e-9)


def test_what_went_wrong_is_told_of_the_whole_minibatch(tiny, tmp_path):
    reports = []
    for ranks in (1, 3):
        with pytest.raises(DivergedError, match="step 2: the loss"):
            train(tiny, tmp_path / str(ranks), ranks, lr=1e200, dropout=0.4)
        reports.append(json.loads((tmp_path / str(ranks) / "diverged.json").read_text()))
    assert len(reports[0]["captions"]) == 10
    assert reports[1] == reports[0]


def test_a_full_disk_does_not_part_the_ranks(tiny, tmp_path, monkeypatch):
    """The first rank tries to write its history again, when the others look at theirs."""
    monkeypatch.setattr("xpcap.training.history.FLUSH_EVERY", 3)
    monkeypatch.setattr("xpcap.training.trainer.EXPLODED", 0.8)  # soon something goes wrong

    def fails(path, text, length):
        raise DataError("no space left on the device")

    monkeypatch.setattr("xpcap.training.history.append", fails)
    with pytest.raises(DivergedError, match="step 1: the loss explodes"):
        train(tiny, tmp_path / "run", 2)


def test_all_ranks_try_again_what_one_could_not_write(tiny, tmp_path, monkeypatch):
    written = []

    def fails_once(path, checkpoint):
        written.append((path.name, checkpoint.state.progress.step))
        if written.count(("last.safetensors", 10)) == 1:
            raise DataError("no space left on the device")
        write_checkpoint(path, checkpoint)

    train(tiny, tmp_path / "alone")
    monkeypatch.setattr("xpcap.training.saving.write_checkpoint", fails_once)
    train(tiny, tmp_path / "run", 2)
    found, expected = (
        read_checkpoint(tmp_path / run / "last.safetensors").state for run in ("run", "alone")
    )
    assert written[-2:] == [("last.safetensors", 10)] * 2
    assert found.progress.step == expected.progress.step == 10
    for name, value in expected.memory["m"].items():
        numpy.testing.assert_allclose(found.memory["m"][name], value, rtol=1e-9, atol=1e-12)


def test_all_ranks_save_when_one_finds_that_it_is_time(tiny, tmp_path, monkeypatch):
    """Clocks differ; a rank that saved alone would be restored to another state later."""
    own = threading.local()
    clock = SimpleNamespace(monotonic=lambda: getattr(own, "now", 0.0))
    monkeypatch.setattr("xpcap.training.saving.time", clock)

    def watch(trainer):
        trainer.on("step", late)

    def late(trainer):
        if trainer.training_step.ranks.rank == 1 and trainer.step == 2:
            own.now = 1000.0

    train(tiny, tmp_path / "run", 3, {"watch": watch}, saving=Saving(minutes=10, keep=9))
    kept = sorted(path.stem for path in (tmp_path / "run").glob("step-*"))
    assert kept == ["step-00000003", "step-00000005", "step-00000010"]


@pytest.mark.parametrize("ranks", [(2, 1), (1, 3)])
def test_a_run_goes_on_with_any_number_of_ranks(tiny, tmp_path, ranks):
    train(tiny, tmp_path / "whole", dropout=0.3, epochs=4)
    before, after = ranks
    stopped = {"watch": lambda trainer: trainer.on("step", stop)}
    options = {"saving": Saving(steps=3), "dropout": 0.3, "epochs": 4}

    def stop(trainer):
        if trainer.step == 14:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(tiny, tmp_path / "run", before, stopped, **options)
    assert read_checkpoint(tmp_path / "run" / "last.safetensors").state.progress.step == 12
    together(after, lambda own: resume_run(tmp_path / "run", CPU, context=RunContext(ranks=own)))
    assert_same_history(tmp_path / "whole", tmp_path / "run")
    for name in ("best.safetensors", "last.safetensors"):
        one, other = (read_checkpoint(tmp_path / run / name).state for run in ("whole", "run"))
        for parameter, value in one.parameters.items():
            numpy.testing.assert_allclose(other.parameters[parameter], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("what", ["captions", "feature_values"])
def test_ranks_with_other_data_refuse(tiny, tmp_path, what, split):
    shutil.copytree(tiny, tmp_path / "other")
    name, key = f"{split}2014_vgg16_fc7.h5", "features"
    if what == "captions":
        name, key = "coco2014_captions.h5", f"{split}_captions"
    with h5py.File(tmp_path / "other" / name, "r+") as file:
        file[key][...] = file[key][...][::-1]
    options = RunOptions(schedule=Schedule(epochs=2), **SMALL)

    def work(own):
        data = tmp_path / "other" if own.rank == 2 else tiny
        train_run(data, tmp_path / "run", options, CPU, RunContext(ranks=own))

    with pytest.raises(ConfigurationError, match=f"ranks 0 and 2 .* different {what}:"):
        together(3, work)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("training.lr", {"lr": 0.5}),
        ("training.schedule.epochs", {"schedule": Schedule(epochs=3)}),
        ("training.saving.steps", {"saving": Saving(steps=3)}),
        ("training.on_nan.policy", {"on_nan": OnNaN("skip")}),
    ],
)
def test_ranks_with_other_options_refuse(tiny, tmp_path, what, options):
    def work(own):
        chosen = {"schedule": Schedule(epochs=2), **SMALL, **(options if own.rank else {})}
        train_run(tiny, tmp_path / "run", RunOptions(**chosen), CPU, RunContext(ranks=own))

    with pytest.raises(ConfigurationError, match=f"ranks 0 and 1 .* different {what}:"):
        together(2, work)
    assert not (tmp_path / "run").exists()


def test_ranks_that_resume_from_other_checkpoints_refuse(tiny, tmp_path):
    train(tiny, tmp_path / "run", epochs=1)
    shutil.copytree(tmp_path / "run", tmp_path / "older")
    resume_run(tmp_path / "run", CPU, until(2))

    def work(own):
        run = tmp_path / ("older" if own.rank else "run")
        resume_run(run, CPU, until(3), context=RunContext(ranks=own))

    with pytest.raises(ConfigurationError, match=r"different progress\.step: 10 and 5"):
        together(2, work)


def test_thread_ranks_are_ranks():
    def work(own: ThreadRanks):
        array = numpy.array([own.rank, 1.0])
        own.sum(array)
        return array.tolist(), own.any(own.rank == 2), own.any(False), own.gather(own.rank)

    assert together(3, work) == [([3, 3], True, False, [0, 1, 2])] * 3


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_ranks_have_the_loss_norm_and_moments_of_one_before_and_after_a_restore(rule):
    captions, features = captions_of([3, 7, 1, 5, 7]), RNG.standard_normal((5, 3))

    def work(own):
        model = CaptioningRNN(WORDS, 3, 4, 5, "lstm", numpy.float64, seed=0, backend="cpu")
        step = TrainingStep(model, Optimizer(rule, learning_rate=0.1), 0.5, ranks=own)
        places = numpy.arange(5)[own.rank :: own.size]
        share = Share(places, 5, 0) if own.size > 1 else None
        batch = Batch(captions[places], features[places], None, share)
        step(batch, 0, 1.0)
        step(batch, 1, 1.0)
        parameters, memory = copy.deepcopy(step.state())
        numbers = dict(step.optimizer.numbers)
        step(batch, 7, 1.0)
        step.restore(parameters, memory, numbers)
        step(batch, 2, 1.0)
        return *copy.deepcopy(step.state()), float(step.loss), float(step.gradient_norm)

    parameters, memory, loss, norm = together(1, work)[0]
    assert list(memory) == (["m", "v"] if rule == "adamw" else [])
    for found in together(3, work):
        assert found[2:] == pytest.approx((loss, norm), rel=1e-12)
        for name, value in parameters.items():
            numpy.testing.assert_allclose(found[0][name], value, rtol=1e-10, atol=1e-12)
        for key, by_name in memory.items():
            for name, value in by_name.items():
                numpy.testing.assert_allclose(found[1][key][name], value, rtol=1e-10, atol=1e-14)


def test_a_new_array_in_place_of_a_parameter_is_taken_over():
    captions, features = captions_of([3, 7, 1, 5]), RNG.standard_normal((4, 3))

    def work(own):
        model = CaptioningRNN(WORDS, 3, 4, 5, "lstm", numpy.float64, seed=0, backend="cpu")
        step = TrainingStep(model, Optimizer("adam", learning_rate=0.1), 0.5, ranks=own)
        places = numpy.arange(4)[own.rank :: own.size]
        share = Share(places, 4, 0) if own.size > 1 else None
        for number in range(2):
            step(Batch(captions[places], features[places], None, share), number, 1.0)
            model.params["b_vocab"] = model.params["b_vocab"] + 1
        return model.params

    expected = together(1, work)[0]
    for found in together(2, work):
        for name, value in expected.items():
            numpy.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12)
