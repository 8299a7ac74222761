"""Runs of the self-critical stage: where they start, how they go on, and what they refuse."""

import json
import shutil

import h5py
import numpy
import pytest
from commands import one_line
from mpi import together
from runs import begin, same, stopping
from tiny import make_tiny

from xpcap import api
from xpcap.backend import CPU, to_host
from xpcap.data.dataset import open_dataset
from xpcap.data.minibatch import EpochBatches
from xpcap.data.vocabulary import Vocabulary
from xpcap.errors import DataError, Stopped
from xpcap.runs import open_run
from xpcap.training.history import read_history
from xpcap.training.options import changed_options, following_options, options_of
from xpcap.training.rewards import Rewards
from xpcap.training.run import RunContext, resume_run, train_run
from xpcap.training.samples import FIGURES
from xpcap.training.trainer import epoch_line

STEPS = 3  # an epoch of the 24 images of `tiny`


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "tiny", regions=True)


@pytest.fixture(params=["recurrent", "attention", "transformer"])
def source(request, tiny, tmp_path):
    more = {"model": request.param, "dropout": 0.3}
    if request.param == "transformer":
        more |= {"layers": 1, "heads": 2, "wordvec": 256}
    begin(tiny, tmp_path / "source", epochs=4, **more)
    return tmp_path / "source"


def follow(source, out, watch=None, backend=CPU, **options):
    """Train on from a run."""
    before = open_run(source, backend)
    given = {"stage": "self-critical", "samples": 3, "epochs": 2, "batch_size": 10, "lr": 1e-3}
    chosen = following_options(before, **{**given, **options})
    data = source.parent / "tiny"
    return train_run(data, out, chosen, backend, RunContext(watch=watch), before)[0]


def test_it_goes_on_from_any_step_bit_for_bit(source, tmp_path):
    follow(source, tmp_path / "whole")
    for count in (1, STEPS, STEPS + 1):
        run = tmp_path / f"run-{count}"
        with pytest.raises(Stopped):
            follow(source, run, stopping(count=count))
        resume_run(run, CPU)
        same(run, tmp_path / "whole")
    started = open_run(run, "cpu").config["training"]["from_run"]
    assert started == str(source / "best.safetensors")


def test_options_of_a_run_that_names_its_stage_twice(tiny, tmp_path):
    """As older versions wrote it."""
    begin(tiny, tmp_path / "source", epochs=1)
    follow(tmp_path / "source", tmp_path / "run", epochs=1)
    config = open_run(tmp_path / "run", CPU).config
    found = options_of(tmp_path / "run", config)
    assert (found.stage, found.self_critical.samples) == ("self-critical", 3)
    config["training"]["stage"] = "self-critical"
    assert options_of(tmp_path / "run", config) == found


def test_figures_are_in_the_history_and_the_reward_in_the_line(tiny, tmp_path):
    begin(tiny, tmp_path / "source", epochs=1)
    rewards, lines = [], []

    def watch(trainer):
        trainer.on("step", lambda t: rewards.append(t.training_step.measured["reward"]))
        trainer.on("epoch", lambda t: lines.append(epoch_line(t)))

    follow(tmp_path / "source", tmp_path / "run", watch)
    for line, mean in zip(lines, numpy.reshape(rewards, (2, STEPS)).mean(axis=1), strict=True):
        assert f"/2: reward {mean:.4f}; nats per word of references: train" in line
    samples = read_history(tmp_path / "run" / "history.jsonl").samples
    assert samples.keys() == FIGURES.keys()
    assert samples["reward"].tolist() == rewards
    assert ((samples["distinct"] >= 1) & (samples["distinct"] <= 3)).all()


@pytest.mark.parametrize("baseline", ["mean", "greedy"])
def test_the_reward_rises(tiny, tmp_path, baseline):
    """From a model that knows little, over 60 steps, by more than a third."""
    begin(tiny, tmp_path / "source", epochs=12, hidden=32, wordvec=8)
    trainer = follow(tmp_path / "source", tmp_path / "run", epochs=20, lr=0.01, baseline=baseline)
    found = rewards_of(tmp_path / "run")
    assert numpy.mean(found[-STEPS:]) > 4 / 3 * numpy.mean(found[:STEPS])
    assert trainer.metric.name == "CIDEr-D"


def rewards_of(run):
    lines = map(json.loads, (run / "history.jsonl").read_text().splitlines())
    return [line["reward"] for line in lines if "lr" in line]


def test_it_starts_from_the_parameters_of_the_run(source, tmp_path):
    for stage in ("self-critical", "cross-entropy"):
        before = open_run(source)
        given = {"stage": stage, "epochs": 1, "batch_size": 10, "lr": 1e-30}
        chosen = following_options(before, **given)
        train_run(source.parent / "tiny", tmp_path / stage, chosen, CPU, None, before)
        after = open_run(tmp_path / stage)
        for name, value in before.model.params.items():
            numpy.testing.assert_allclose(to_host(after.model.params[name]), value, atol=1e-12)


def test_images_once_an_epoch_with_another_caption(tiny):
    split = open_dataset(tiny).splits["train"]
    batches = EpochBatches(split, 10, 0, by_image=True)
    orders = [batches.order(number) for number in range(2)]
    assert len(batches) == STEPS
    for order in orders:
        assert sorted(split.image_idxs[order]) == list(range(24))
    assert set(orders[0].tolist()) != set(orders[1].tolist())


def test_a_reward_of_other_words_is_refused_before_the_first_step(tiny, tmp_path, monkeypatch):
    begin(tiny, tmp_path / "source", epochs=1)
    shifted = Rewards.__call__
    monkeypatch.setattr(Rewards, "__call__", lambda self, i, c: shifted(self, i, (c + 1) % 12))
    with pytest.raises(DataError, match="vocabulary"):
        follow(tmp_path / "source", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_reward_that_is_refused_ends_all_ranks(tiny, tmp_path, monkeypatch):
    begin(tiny, tmp_path / "source", epochs=1)
    shifted = Rewards.__call__
    monkeypatch.setattr(Rewards, "__call__", lambda self, i, c: shifted(self, i, (c + 1) % 12))

    def work(ranks):
        before = open_run(tmp_path / "source", CPU)
        chosen = following_options(before, stage="self-critical")
        with pytest.raises(DataError, match="vocabulary"):
            train_run(tiny, tmp_path / "run", chosen, CPU, RunContext(ranks=ranks), before)
        return "refused"

    assert together(2, work) == ["refused"] * 2


def test_longer_captions_than_the_model_can_read(tiny, tmp_path):
    """Room for them is no matter; captions that are longer are refused."""
    more = {"model": "transformer", "layers": 1, "heads": 2, "wordvec": 256}
    begin(tiny, tmp_path / "source", epochs=1, positions="learned", **more)
    wide = shutil.copytree(tiny, tmp_path / "wide")
    with h5py.File(next(wide.glob("*captions.h5")), "r+") as file:
        for split in ("train", "val"):
            captions = numpy.pad(file[f"{split}_captions"][:], ((0, 0), (0, 3)))
            del file[f"{split}_captions"]
            file[f"{split}_captions"] = captions
    before = open_run(tmp_path / "source")
    chosen = following_options(before, stage="self-critical", samples=2, epochs=1, batch_size=10)
    train_run(wide, tmp_path / "run", chosen, CPU, None, before)
    resume_run(tmp_path / "run", CPU, lambda before: changed_options(before, epochs=2))
    assert open_run(tmp_path / "run").model.sizes == before.model.sizes
    with h5py.File(next(wide.glob("*captions.h5")), "r+") as file:
        file["val_captions"][0] = [1] + [4] * (file["val_captions"].shape[1] - 1)
    with pytest.raises(DataError, match=r"longer than the .* words that"):
        train_run(wide, tmp_path / "long", chosen, CPU, None, before)


def test_the_checkpoint_that_was_opened_is_started_from(tiny, tmp_path):
    begin(tiny, tmp_path / "source", epochs=2)
    before = api.open_run(tmp_path / "source" / "last.safetensors")
    run = api.train(from_run=before, out=tmp_path / "run", epochs=1, verbose=False)
    assert run.config["training"]["from_run"].endswith("last.safetensors")


def test_history_agrees_with_what_a_step_is(tiny, tmp_path):
    """Entropy is the loss, both in nats per word; the baseline is one of rewards alone."""
    begin(tiny, tmp_path / "source", epochs=1)
    follow(tmp_path / "source", tmp_path / "run", entropy=0.5)
    lines = [*map(json.loads, (tmp_path / "run" / "history.jsonl").read_text().splitlines())]
    for line in (line for line in lines if "lr" in line):
        assert line["entropy"] == pytest.approx(line["loss"], rel=1e-5)
        assert line["baseline"] == pytest.approx(line["reward"], rel=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stage", "self-critical"], r"stage self-critical needs a run.*--from RUN"),
        (["--samples", "3"], r"--samples goes with --?stage self-critical alone"),
        (["--stage", "self-critical", "--from", "source", "--samples", "1"], "--samples must be"),
        (["--stage", "self-critical", "--from", "source", "--baseline", "x"], "--baseline"),
        (["--stage", "self-critical", "--from", "source", "--reward", "METEOR"], "METEOR"),
        (["--stage", "self-critical", "--from", "source", "--hidden", "9"], "--hidden cannot"),
        (["--stage", "self-critical", "--from", "source", "--entropy", "-1"], "--entropy must"),
        (["--stage", "self-critical", "--from", "source", "--cross-entropy", "1"], r"in \[0, 1\)"),
        (
            ["--stage", "self-critical", "--from", "source", "--label-smoothing", "0.1"],
            "--label-smoothing goes with",
        ),
        (["--stage", "self-critical", "--from", "source", "--dropout", "0.5"], "--dropout goes"),
        (["--stage", "self-critical", "--from", "source", "--reward", "BLEU-4:1e9"], "1000"),
        (["--resume", "source", "--samples", "3"], "--samples goes with --?stage self-critical"),
        (["--from", "source", "--resume", "source"], "--from does not go with --resume"),
        (["--from", "nowhere"], "nowhere is not a run"),
    ],
)
def test_mistakes_are_one_line(call, tiny, tmp_path, options, message):
    begin(tiny, tmp_path / "source", epochs=1)
    one_line(call("train", *options, "--data", "tiny"), message)
    assert not (tmp_path / "runs").exists()


def test_from_python(tiny, tmp_path):
    begin(tiny, tmp_path / "source", epochs=1)
    run = api.train(
        from_run=tmp_path / "source", out=tmp_path / "run", stage="self-critical", epochs=1,
        samples=2, reward="CIDEr-D:1,BLEU-4:0.5", verbose=False,
    )  # fmt: skip
    assert run.config["training"]["self_critical"]["reward"] == "CIDEr-D:1,BLEU-4:0.5"
    assert isinstance(run.vocabulary, Vocabulary)
    assert len(read_history(tmp_path / "run" / "history.jsonl").step) == 2
