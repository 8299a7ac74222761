"""Divergence: the message and the report, the files that remain, and recovery."""

import json
import math
import re
from dataclasses import replace

import numpy
import pytest
from guard import counters, open_guard
from runs import STEPS, Killed, at, begin, content, resume, same, stopping
from tiny import make_tiny

import xpcap.training.assembly
import xpcap.training.history
from xpcap.backend import Backend, to_host
from xpcap.data.dataset import open_dataset
from xpcap.data.minibatch import EpochBatches
from xpcap.errors import ConfigurationError, DivergedError, Stopped
from xpcap.models import CaptioningRNN
from xpcap.optim import adam, clip_by_global_norm
from xpcap.runs import open_run
from xpcap.runs.checkpoint import read_checkpoint
from xpcap.training import Trainer
from xpcap.training.history import read_history
from xpcap.training.recovery import OnNaN
from xpcap.training.resident import ResidentStep
from xpcap.training.saving import Saving
from xpcap.training.trainer import Priority

INF, NAN = math.inf, math.nan
SKIP, ROLLBACK = OnNaN("skip"), OnNaN("rollback")


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "tiny")


@pytest.fixture
def seldom(monkeypatch):
    """Fetch losses only at the end of an epoch."""
    monkeypatch.setattr(xpcap.training.history, "FLUSH_EVERY", 50)


def rows_of(tiny, step):
    """Return the captions of a step, counted from 1."""
    batches = EpochBatches(open_dataset(tiny).splits["train"], 10, seed=0)
    epoch, place = divmod(step - 1, STEPS)
    return list(batches.epoch(epoch))[place].rows


# faults, each a `watch` callback


def gradient(step, value=NAN, name="Wh", times=10**9):
    """Overwrite an element of a gradient whenever a step is taken."""

    def watch(trainer):
        packed, left = trainer.training_step.packed, [times]
        compute = packed.loss

        def loss(features, captions, number, gradients, share=None):
            found = compute(features, captions, number, gradients, share)
            if number == step - 1 and left[0]:
                left[0] -= 1
                gradients[name][...] = value
            return found

        packed.loss = loss

    return watch


def parameter(step, value=NAN, name="b_vocab"):
    """Overwrite an element of a parameter once, after a step."""

    def spoil(trainer):
        trainer.model.params[name][3] = value

    return at("step", step, spoil, before=False)


def moment(step):
    def spoil(trainer):
        trainer.optimizer.config["v"][3] = INF

    return at("step", step, spoil)


def image(value):
    """Overwrite the features of an image on the host, of training and validation alike."""

    def watch(trainer):
        trainer.validation["train"].split.features[IMAGE] = value

    return watch


IMAGE = 3


def steps_with(tiny, image, epoch=0):
    """Return the steps of an epoch whose minibatch has an image."""
    split = open_dataset(tiny).splits["train"]
    batches = EpochBatches(split, 10, seed=0).epoch(epoch)
    return [
        epoch * STEPS + k
        for k, batch in enumerate(batches, start=1)
        if image in split.image_idxs[batch.rows]
    ]


# stop


def stops(tiny, out, watch, message, **options):
    with pytest.raises(DivergedError, match=message) as caught:
        begin(tiny, out, watch=watch, **options)
    assert len(str(caught.value).splitlines()) == 1
    assert str(out / "diverged.json") in str(caught.value)
    return json.loads((out / "diverged.json").read_text())


@pytest.mark.parametrize("clip_norm", [None, 5.0])
@pytest.mark.parametrize("value", [NAN, INF, 1e30])
def test_a_non_finite_gradient_stops_training_with_a_report(tiny, tmp_path, clip_norm, value):
    """1e30 is finite in float32, the squares that Adam remembers are not."""
    rate = 0.02 * (1 + math.cos(math.pi * 6 / 10)) / 2
    rows = rows_of(tiny, 7).tolist()
    message = (
        rf"^step 7: the gradient norm is (nan|inf); learning rate {rate:.3g}, captions"
        rf" {rows[0]}, {rows[1]}, {rows[2]}, {rows[3]}, {rows[4]}, ... of the training split; taken"
        r" again, all its numbers are finite"
    )
    report = stops(tiny, tmp_path / "run", gradient(7, value), message, clip_norm=clip_norm)
    assert report["step"] == 7
    assert report["captions"] == rows
    assert report["learning_rate"] == pytest.approx(rate)
    assert report["first"] is None
    assert "gradient norm" in report["reason"]


@pytest.mark.parametrize("step", [1, 3, STEPS, STEPS + 1, 2 * STEPS])
def test_divergence_at_any_step_keeps_the_previous_checkpoint(tiny, tmp_path, step):
    begin(tiny, tmp_path / "whole")
    stops(tiny, tmp_path / "run", gradient(step), rf"step {step}: the gradient norm is nan")
    last = read_checkpoint(tmp_path / "run" / "last.safetensors")
    assert last.state.progress.step == (step - 1) // STEPS * STEPS
    curves = read_history(tmp_path / "run" / "history.jsonl")
    assert curves.step.tolist() == list(range(1, step + 1))
    assert numpy.isnan(curves.grad_norm).tolist() == [False] * (step - 1) + [True]
    resume(tmp_path / "run")  # nothing is wrong this time
    (tmp_path / "run" / "diverged.json").unlink()
    same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("W_vocab", "the words' scores"),
        ("Wh", "the hidden state after word 1"),
        ("W_proj", "the first state, which the features set"),
    ],
)
def test_the_report_names_the_first_non_finite_value(tiny, tmp_path, monkeypatch, name, first):
    """Of passes; a parameter itself would be named first. Only the diagnosis calls `start`."""
    start = CaptioningRNN.start

    def spoiled(model, features):
        model.params = {**model.params, name: model.params[name] * NAN}
        return start(model, features)

    monkeypatch.setattr(CaptioningRNN, "start", spoiled)
    report = stops(tiny, tmp_path / "run", gradient(2), f"first not finite: {first} ")
    assert report["first"] == first


@pytest.mark.parametrize("value", [INF, NAN])
def test_non_finite_features_are_named(tiny, tmp_path, value):
    step, *_ = steps_with(tiny, IMAGE)
    message = rf"step {step}: the loss is nan; .*; first not finite: the features \("
    report = stops(tiny, tmp_path / "run", image(value), message)
    owners = open_dataset(tiny).splits["train"].image_idxs[report["captions"]]
    assert IMAGE in owners
    assert report["first"] == "the features"


def test_huge_features_are_named(tiny, tmp_path):
    step, *_ = steps_with(tiny, IMAGE)
    message = rf"step {step}: (the loss is (nan|inf)|the gradient norm is inf)"
    stops(tiny, tmp_path / "run", image(3e38), message)


def test_a_non_finite_parameter_is_noticed_at_the_next_step(tiny, tmp_path):
    stops(tiny, tmp_path / "run", parameter(2), "step 3: the loss is nan; .* taken again")


def test_an_update_that_overflows_is_named_by_its_step(tiny, tmp_path):
    """The step's own numbers are finite; what it leaves is not."""
    message = r"step 1: its update leaves parameters or moments not finite; learning rate 1e\+40"
    options = {"rule": "sgd", "lr": 1e40, "batch_size": 48, "clip_norm": None}
    report = stops(tiny, tmp_path / "run", None, message, **options)
    assert report["first"] is None
    assert read_checkpoint(tmp_path / "run" / "last.safetensors").state.progress.step == 0


def test_an_exploding_loss_stops_training_and_a_high_one_does_not(tiny, tmp_path):
    """15 words: the uniform loss is 2.7 nats per word, and 8.1 are too many."""

    def loud(trainer):
        trainer.model.params["b_vocab"][:4] = [0, 0, 0, 40]  # 37 nats for any other word

    message = (
        r"step 3: the loss explodes: 3\d(\.\d)? nats per word, 2\.71 by guessing; learning rate"
    )
    stops(tiny, tmp_path / "run", at("step", 2, loud, before=False), message)

    def quiet(trainer):
        trainer.model.params["b_vocab"][:4] = [0, 0, 0, 8]

    begin(tiny, tmp_path / "other", watch=at("step", 2, quiet, before=False))


def test_a_report_that_cannot_be_written_is_a_warning(tiny, tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise OSError(28, "No space left on device")

    warned = []
    monkeypatch.setattr("pathlib.Path.write_text", refused)
    with pytest.raises(DivergedError, match="step 2: the gradient norm is nan; learning rate"):
        begin(tiny, tmp_path / "run", watch=gradient(2), warn=warned)
    (warning,) = warned
    assert warning.startswith("warning: cannot write")
    assert warning.endswith("diverged.json: no space left on the device")


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
@pytest.mark.parametrize("every", [None, STEPS])
def test_non_finite_validation_data_stop_training(tiny, tmp_path, policy, every):
    def spoil(trainer):
        trainer.validation["val"].split.features[0] = NAN

    options = {"on_nan": OnNaN(policy), "saving": Saving(steps=every), "watch": spoil}
    with pytest.raises(DivergedError, match=r"^step 5: the val loss after epoch 1 is nan; "):
        begin(tiny, tmp_path / "run", **options)
    curves = read_history(tmp_path / "run" / "history.jsonl")
    assert curves.step.tolist() == list(range(1, STEPS + 1))
    assert len(curves.epoch_step) == 0


def test_a_single_non_finite_validation_loss_rolls_back(tiny, tmp_path, monkeypatch):
    """To the state of the last check."""
    measure, wrong = Trainer._measure_all, iter([NAN])

    def measured(trainer):
        found = measure(trainer)
        return {**found, "val": next(wrong, found["val"])}

    monkeypatch.setattr(Trainer, "_measure_all", measured)
    warned = []
    begin(tiny, tmp_path / "run", on_nan=ROLLBACK, warn=warned, dtype="float64")
    assert ["step 5: the val loss after epoch 1 is nan; back to step 0" in warned[0]] == [True]
    clean(tmp_path / "run")
    plan = [(k, 0.5) for k in range(1, 2 * STEPS + 1)]
    agrees(tmp_path / "run", written_out(tiny, tmp_path, plan))


# skip and rollback, compared with the same steps taken by plain layers


def written_out(tiny, tmp_path, plan):
    """Take steps by plain layers, one parameter at a time: `(step, scale of the rate)` each."""

    def kill(trainer):
        raise Killed

    with pytest.raises(Killed):
        begin(tiny, tmp_path / "begun", dtype="float64", watch=at("step", 1, kill))
    model = open_run(tmp_path / "begun" / "last.safetensors", "cpu").model
    batches = EpochBatches(open_dataset(tiny).splits["train"], 10, seed=0)
    configs = {}
    for step, scale in plan:
        epoch, place = divmod(step - 1, STEPS)
        batch = list(batches.epoch(epoch))[place]
        _, grads = model.loss(batch.features, batch.captions, step - 1)
        grads, _ = clip_by_global_norm(grads, 5.0)
        rate = scale * 0.02 * (1 + math.cos(math.pi * (step - 1) / (2 * STEPS))) / 2
        for name, grad in grads.items():
            config = configs.setdefault(name, {})
            config["learning_rate"] = rate
            model.params[name], configs[name] = adam(model.params[name], grad, config)
    return model.params


def agrees(run, params, device=False):
    found = read_checkpoint(run / "last.safetensors").state.parameters
    for name, value in params.items():
        numpy.testing.assert_allclose(found[name], to_host(value), rtol=1e-9, atol=1e-11)


def clean(run, steps=2 * STEPS):
    """Assert that a history tells of each step once, in order, and of both epochs."""
    curves = read_history(run / "history.jsonl")
    assert curves.step.tolist() == list(range(1, steps + 1))
    assert curves.epoch_step.tolist() == [STEPS, 2 * STEPS]
    return curves


def resident_place(split, model, optimizer, options, size, ranks):
    batches = EpochBatches(split, size, options.seed, with_features=False)
    step = ResidentStep(model, optimizer, split, size, options.schedule.clip_norm)
    return batches, step


@pytest.mark.parametrize("step", [1, 3, STEPS, STEPS + 2, 2 * STEPS])
def test_skip_equals_training_without_the_step(tiny, tmp_path, step):
    warned, run = [], tmp_path / "run"
    begin(tiny, run, watch=gradient(step), dtype="float64", on_nan=SKIP, warn=warned)
    plan = [(k, 1.0) for k in range(1, 2 * STEPS + 1) if k != step]
    agrees(run, written_out(tiny, tmp_path, plan))
    curves = clean(run)
    assert numpy.isnan(curves.grad_norm).nonzero()[0].tolist() == [step - 1]
    assert warned == [f"warning: step {step}: the gradient norm is nan; skipped (1 of 3 times)"]
    progress = read_checkpoint(run / "last.safetensors").state.progress
    assert (progress.step, progress.recoveries, progress.rate_scale) == (2 * STEPS, 1, 1.0)
    assert not (run / "diverged.json").exists()


@pytest.mark.parametrize(("step", "back"), [(1, 0), (3, 0), (STEPS, 0), (STEPS + 3, STEPS)])
def test_rollback_continues_at_half_the_learning_rate(tiny, tmp_path, seldom, step, back):
    warned, run = [], tmp_path / "run"
    watch = gradient(step, times=1)
    begin(tiny, run, watch=watch, dtype="float64", on_nan=ROLLBACK, warn=warned)
    plan = [(k, 1.0 if k <= back else 0.5) for k in range(1, 2 * STEPS + 1)]
    agrees(run, written_out(tiny, tmp_path, plan))
    curves = clean(run)
    assert numpy.isfinite(curves.grad_norm).all()
    rates = [0.02 * (1 + math.cos(math.pi * k / (2 * STEPS))) / 2 for k in range(2 * STEPS)]
    assert curves.lr == pytest.approx(
        [rate if k < back else rate / 2 for k, rate in enumerate(rates)]
    )
    assert warned == [
        f"warning: step {step}: the gradient norm is nan; back to step {back}, at 0.5 of the"
        " learning rate (1 of 3 times)"
    ]


def test_rollback_restores_the_state_of_the_last_check(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(xpcap.training.history, "FLUSH_EVERY", 2)
    warned, run = [], tmp_path / "run"
    watch = gradient(4, times=1)
    begin(tiny, run, watch=watch, dtype="float64", on_nan=ROLLBACK, warn=warned)
    assert "back to step 2, at 0.5" in warned[0]
    plan = [(k, 1.0 if k <= 2 else 0.5) for k in range(1, 2 * STEPS + 1)]
    agrees(run, written_out(tiny, tmp_path, plan))
    clean(run)


@pytest.mark.parametrize("on_nan", [SKIP, ROLLBACK])
@pytest.mark.parametrize(
    "spoil", [parameter(2), parameter(2, 1e20), parameter(5), moment(5), moment(7)]
)
def test_recovery_from_a_single_memory_error(tiny, tmp_path, on_nan, spoil):
    warned, run = [], tmp_path / "run"
    begin(tiny, run, watch=spoil, dtype="float64", on_nan=on_nan, warn=warned)
    assert len(warned) == 1
    clean(run)
    assert numpy.isfinite(read_history(run / "history.jsonl").losses["val"]).all()


@pytest.mark.parametrize("on_nan", [SKIP, ROLLBACK])
@pytest.mark.parametrize("place", ["host", "resident"])
def test_non_finite_features_are_skipped_or_exhaust_the_rollbacks(
    tiny, tmp_path, backend, monkeypatch, on_nan, place
):
    """Every epoch has its steps; a rollback cannot mend them, and says so after three times.

    The image is spoiled after training has been set up, in the features that training reads.
    """
    wrong = [step for epoch in (0, 1) for step in steps_with(tiny, IMAGE, epoch)]
    spoil = image(NAN)
    if place == "host":
        monkeypatch.setattr(Backend, "free_memory", lambda self: 0)
    else:
        monkeypatch.setattr(xpcap.training.assembly, "_place", resident_place)

        def spoil(trainer):
            image(NAN)(trainer)
            trainer.training_step._features[IMAGE] = NAN

    warned, run = [], tmp_path / "run"
    # the images of the training split are measured after each epoch too, but not this one
    monkeypatch.setattr(
        xpcap.training.assembly, "some_of", lambda split: type(split)(
            *(part[split.image_idxs != IMAGE] for part in (split.captions, split.image_idxs)),
            split.features, split.urls,
        ),
    )  # fmt: skip
    options = {"dtype": "float64", "watch": spoil, "warn": warned}
    if on_nan is ROLLBACK:
        with pytest.raises(DivergedError, match=rf"step {wrong[0]}: the loss is nan; .*features"):
            begin(tiny, run, backend, on_nan=on_nan, **options)
        rates = [re.search(r"at ([\d.]+) of the", line)[1] for line in warned]
        assert rates == ["0.5", "0.25", "0.125"]
        assert json.loads((run / "diverged.json").read_text())["first"] == "the features"
        return
    begin(tiny, run, backend, on_nan=OnNaN("skip", len(wrong)), **options)
    assert [int(line.split()[2][:-1]) for line in warned] == wrong
    plan = [(k, 1.0) for k in range(1, 2 * STEPS + 1) if k not in wrong]
    agrees(run, written_out(tiny, tmp_path, plan))
    clean(run)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
@pytest.mark.parametrize("limit", [0, 1, 2])
def test_the_number_of_recoveries_is_limited(tiny, tmp_path, policy, limit):
    def watch(trainer):
        for step in (2, 4, 7):
            gradient(step)(trainer)

    warned, run = [], tmp_path / "run"
    step = (2, 4, 7)[limit] if policy == "skip" else 2
    with pytest.raises(DivergedError, match=rf"step {step}: the gradient norm is nan"):
        begin(tiny, run, watch=watch, on_nan=OnNaN(policy, limit), warn=warned)
    assert [line[-15:] for line in warned] == [
        f" ({k} of {limit} times)"[-15:] for k in range(1, limit + 1)
    ]
    assert json.loads((run / "diverged.json").read_text())["step"] == step


@pytest.mark.parametrize("on_nan", [SKIP, ROLLBACK])
@pytest.mark.parametrize("count", [4, 6, 9])
def test_a_run_with_recoveries_resumes_bit_for_bit(tiny, tmp_path, on_nan, count):
    options = {"on_nan": on_nan, "dropout": 0.3}
    begin(tiny, tmp_path / "whole", watch=gradient(3, times=1), **options)

    def watch(trainer):
        gradient(3, times=1)(trainer)
        stopping("step", count + (on_nan is ROLLBACK) * STEPS)(trainer)

    with pytest.raises(Stopped):
        begin(tiny, tmp_path / "run", watch=watch, **options)
    assert read_checkpoint(tmp_path / "run/last.safetensors").state.progress.recoveries == 1
    resume(tmp_path / "run")
    same(tmp_path / "run", tmp_path / "whole")
    with pytest.raises(DivergedError):
        resume(tmp_path / "run", watch=gradient(12), change=more_but_no_more_recoveries)


def more_but_no_more_recoveries(options):
    schedule = replace(options.schedule, epochs=3)
    return replace(options, schedule=schedule, on_nan=replace(options.on_nan, limit=1))


def test_skip_cannot_repair_earlier_updates(tiny, tmp_path):
    """The rate is too high for any step: the second one's loss is not its own fault."""
    options = {"rule": "sgd", "lr": 3e38, "clip_norm": None, "on_nan": OnNaN("skip", 100)}
    warned = []
    with pytest.raises(DivergedError, match=r"^step 5: the train loss after epoch 1 is nan; try a"):
        begin(tiny, tmp_path / "run", warn=warned, **options)
    assert [line[:15] for line in warned] == [f"warning: step {k}" for k in range(2, STEPS + 1)]
    assert read_checkpoint(tmp_path / "run" / "last.safetensors").state.progress.step == 0


def test_policies_do_not_change_training_without_divergence(tiny, tmp_path):
    begin(tiny, tmp_path / "whole")
    before = content(tmp_path / "whole")
    for policy in ("skip", "rollback"):
        begin(tiny, tmp_path / policy, on_nan=OnNaN(policy))
        assert content(tmp_path / policy)["history.jsonl"] == before["history.jsonl"]


@pytest.mark.parametrize("place", ["host", "resident"])
def test_rollback_with_bf16_products(tiny, tmp_path, gpu, monkeypatch, place):
    if place == "host":
        monkeypatch.setattr(type(gpu), "free_memory", lambda self: 0)
    warned = []
    spoil = at("step", 3, lambda trainer: trainer.model.params["Wh"].fill(NAN), before=False)
    options = {"precision": "bf16", "warn": warned, "watch": spoil}
    begin(tiny, tmp_path / "run", gpu, on_nan=ROLLBACK, **options)
    assert len(warned) == 1
    clean(tmp_path / "run")


@pytest.mark.parametrize(
    ("policy", "limit", "message"),
    [
        ("ignore", 3, "on_nan 'ignore' is unknown; expected stop, skip, rollback"),
        ("skip", -1, "on_nan_limit must be at least 0, a whole number, got -1"),
    ],
)
def test_a_policy_is_checked(policy, limit, message):
    with pytest.raises(ConfigurationError, match=message):
        OnNaN(policy, limit)


def test_checks_do_not_synchronize_at_every_step(tiny, tmp_path, seldom):
    """They wait for the device, and so are made only when lines are written."""
    waits = []

    def watch(trainer):
        trainer.on("step", lambda t: counters.reset(), Priority.CHECK + 1)
        trainer.on("step", lambda t: waits.append(counters.synchronizations))

    begin(tiny, tmp_path / "run", open_guard(), watch=watch)
    assert waits == [0] * 2 * STEPS
