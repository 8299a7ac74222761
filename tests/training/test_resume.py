"""A run that was stopped goes on as if it never had been: the same files, bit for bit."""

import shutil
import sys
from dataclasses import replace

import h5py
import numpy
import pytest
from commands import one_line
from guard import open_guard
from runs import NEVER, STEPS, TRANSFORMER, Killed, at, begin, content, resume, same, stopping
from tiny import make_tiny

import xpcap.training.assembly
from xpcap.backend import CPU, to_host
from xpcap.data import folder as layout
from xpcap.data.minibatch import EpochBatches
from xpcap.data.scenes.build import cache_folder
from xpcap.errors import CheckpointError, DataError, Stopped
from xpcap.optim import cosine
from xpcap.runs import open_run
from xpcap.runs.checkpoint import read_checkpoint, write_checkpoint
from xpcap.training.history import read_history
from xpcap.training.resident import ResidentStep
from xpcap.training.saving import Saving


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "tiny")


@pytest.fixture
def regions(tmp_path):
    return make_tiny(tmp_path / "regions", regions=True)


@pytest.fixture
def runs(tiny, tmp_path):
    """Train one run undisturbed, another with stops, and return both folders."""

    def train(*stops, backend=CPU, **options):
        begin(tiny, tmp_path / "whole", backend, **options)
        for k, stop in enumerate(stops):
            with pytest.raises(Stopped):
                if k == 0:
                    begin(tiny, tmp_path / "run", backend, watch=stop, **options)
                else:
                    resume(tmp_path / "run", backend, watch=stop)
        trainer, _ = resume(tmp_path / "run", backend)
        return tmp_path / "run", tmp_path / "whole", trainer

    return train


MOMENTS = {
    "the first step": ("step", 1),
    "the middle of an epoch": ("step", 3),
    "the last step before a validation": ("step", STEPS),
    "the middle of a validation": ("measured", 4),
    "the end of a validation": ("measured", 8),
    "the end of an epoch": ("epoch", 1),
    "the first step of the second epoch": ("step", STEPS + 1),
    "the last step": ("step", 2 * STEPS),
    "the last validation": ("measured", 9),
    "the end": ("epoch", 2),
    "after the last checkpoint": ("epoch", 2, False),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_it_goes_on_from_any_moment(runs, cell, moment):
    """With dropout, a smaller last batch, and features that are read ahead."""
    stop = stopping(*MOMENTS[moment])
    run, whole, trainer = runs(stop, cell=cell, dropout=0.3, lazy=True)
    same(run, whole)
    assert trainer.step == 2 * STEPS
    best = open_run(whole).model.params
    for name, value in trainer.model.params.items():
        numpy.testing.assert_array_equal(value, best[name])
    steps = read_history(run / "history.jsonl").step.tolist()
    assert steps == list(range(1, 2 * STEPS + 1))


ATTENTION = {"model": "attention", "doubly_stochastic": 0.5, "dropout": 0.3}


@pytest.mark.parametrize(
    "options", [ATTENTION, {**ATTENTION, "cell": "gru", "scoring": "dot"}, TRANSFORMER]
)
def test_other_families_go_on(regions, tmp_path, options):
    begin(regions, tmp_path / "whole", **options)
    for name, stop in (("first", stopping(count=3)), ("last", stopping(count=2 * STEPS))):
        with pytest.raises(Stopped):
            begin(regions, tmp_path / name, watch=stop, **options)
        resume(tmp_path / name)
        same(tmp_path / name, tmp_path / "whole")


@pytest.mark.parametrize("rule", ["sgd", "sgd_momentum", "rmsprop", "adam", "adamw"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_update_rule_remembers(runs, rule, dtype):
    run, whole, _ = runs(stopping(count=3), rule=rule, dtype=dtype)
    same(run, whole)
    wanted = {"sgd": set(), "sgd_momentum": {"velocity"}, "rmsprop": {"cache"}}
    state = read_checkpoint(run / "last.safetensors").state
    assert state.memory.keys() == wanted.get(rule, {"m", "v"})
    assert {value.dtype.name for value in state.parameters.values()} == {dtype}


def test_label_smoothing_and_weight_decay_are_those_of_the_run(runs):
    options = {"rule": "adamw", "weight_decay": 0.2, "label_smoothing": 0.3}
    run, whole, trainer = runs(stopping(count=3), **options)
    same(run, whole)
    assert trainer.training_step.packed.label_smoothing == 0.3
    assert trainer.optimizer.config["weight_decay"] == 0.2


@pytest.mark.parametrize("clip_norm", [None, 0.1])
@pytest.mark.parametrize(("cosine", "warmup"), [(False, 0), (True, 3), (True, 9)])
def test_with_every_schedule(runs, clip_norm, cosine, warmup):
    schedule = {"clip_norm": clip_norm, "cosine": cosine, "warmup": warmup}
    same(*runs(stopping(count=8), **schedule)[:2])


def test_it_may_be_stopped_again_and_again(runs):
    stops = [stopping(count=2), stopping(count=1), stopping("measured", 1), stopping("measured", 2)]
    run, whole, _ = runs(*stops, stopping(count=4), stopping(count=1), epochs=3, dropout=0.2)
    same(run, whole)


@pytest.mark.parametrize("every", [1, 2, 3, 5, 7])
def test_saved_by_steps(tiny, tmp_path, every):
    """Killed in the middle of a step, it goes on from the checkpoint before."""
    options = {"saving": Saving(steps=every), "dropout": 0.3}
    begin(tiny, tmp_path / "whole", **options)

    def kill(trainer):
        raise Killed

    with pytest.raises(Killed):
        begin(tiny, tmp_path / "run", watch=at("step", 8, kill), **options)
    found = read_checkpoint(tmp_path / "run" / "last.safetensors").state.progress
    assert found.step == max(7 // every * every, STEPS)
    resume(tmp_path / "run")
    same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("moment", [("step", 2), ("measured", 2), ("epoch", 1), ("step", 7)])
@pytest.mark.parametrize("open_backend", [lambda: CPU, open_guard])
def test_from_data_that_lie_on_the_device(runs, monkeypatch, moment, open_backend):
    def place(split, model, optimizer, options, size, ranks):
        batches = EpochBatches(split, size, options.seed, with_features=False)
        return batches, ResidentStep(model, optimizer, split, size, options.schedule.clip_norm)

    monkeypatch.setattr(xpcap.training.assembly, "_place", place)
    same(*runs(stopping(*moment), backend=open_backend(), dropout=0.3)[:2])


@pytest.mark.parametrize("family", [{"model": "recurrent"}, {"model": "attention"}, TRANSFORMER])
def test_on_another_device_within_rounding(regions, tmp_path, family, backend):
    options = {"dropout": 0.3, "dtype": "float64", **family}
    begin(regions, tmp_path / "whole", CPU, **options)
    with pytest.raises(Stopped):
        begin(regions, tmp_path / "run", CPU, watch=stopping(count=3), **options)
    trainer, _ = resume(tmp_path / "run", backend)
    expected = open_run(tmp_path / "whole").model.params
    for name, value in trainer.model.params.items():
        numpy.testing.assert_allclose(to_host(value), expected[name], rtol=1e-9, atol=1e-11)
    last = read_checkpoint(tmp_path / "run" / "last.safetensors")
    assert last.written_by["device"] == backend.name


def more(epochs):
    return lambda options: replace(options, schedule=replace(options.schedule, epochs=epochs))


@pytest.mark.parametrize("stop", [stopping(count=2), stopping("epoch", 1), None])
def test_epochs_can_be_raised(tiny, tmp_path, stop):
    """At a constant rate that is what more epochs from the beginning would have been."""
    begin(tiny, tmp_path / "whole", epochs=3, cosine=False)
    if stop is None:
        begin(tiny, tmp_path / "run", epochs=1, cosine=False)
    else:
        with pytest.raises(Stopped):
            begin(tiny, tmp_path / "run", epochs=1, cosine=False, watch=stop)
    trainer, _ = resume(tmp_path / "run", change=more(3))
    assert trainer.epoch == 3
    same(tmp_path / "run", tmp_path / "whole")


def rates(run):
    return read_history(run / "history.jsonl").lr


def restarted(rate, epochs):
    def change(options):
        return replace(options, lr=rate, schedule=replace(options.schedule, epochs=epochs))

    return change


def test_more_epochs_during_warm_up_change_no_rate(tiny, tmp_path):
    with pytest.raises(Stopped):
        begin(tiny, tmp_path / "run", warmup=4, watch=stopping(count=4))
    warned = []
    resume(tmp_path / "run", change=more(3), warn=warned)
    assert warned == []
    assert rates(tmp_path / "run")[:5] == pytest.approx([0.005, 0.01, 0.015, 0.02, 0.02])
    assert rates(tmp_path / "run")[10] == pytest.approx(0.02 * cosine(6 / 11))


def test_more_epochs_of_a_cosine_are_remarked_with_both_rates(tiny, tmp_path):
    begin(tiny, tmp_path / "run")
    warned = []
    resume(tmp_path / "run", change=more(4), warn=warned)
    last, following = rates(tmp_path / "run")[9:11]
    assert following > 10 * last
    assert warned == [
        f"warning: the learning rate goes from {last:.2g} to {following:.2g}, that of a cosine over"
        f" 4 epochs; --lr {last:.2g} would anneal it from where it was"
    ]
    for change in (more(4), None):
        resume(tmp_path / "run", change=change, warn=warned)
    assert len(warned) == 1


@pytest.mark.parametrize("change", [more(3), None])
def test_no_jump_is_no_remark(tiny, tmp_path, change):
    warned = []
    begin(tiny, tmp_path / "run", epochs=1, cosine=change is None)
    resume(tmp_path / "run", change=change, warn=warned)
    assert warned == []


@pytest.mark.parametrize("stop", [stopping(count=3), None])
def test_another_rate_is_annealed_over_the_remaining_epochs(tiny, tmp_path, stop):
    """The schedule starts again, once: resuming with the same rate goes on."""
    if stop is None:
        begin(tiny, tmp_path / "run")
    else:
        with pytest.raises(Stopped):
            begin(tiny, tmp_path / "run", watch=stop)
    step = read_checkpoint(tmp_path / "run" / "last.safetensors").state.progress.step
    again, warned = restarted(0.003, 4), []
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    resume(tmp_path / "whole", change=again, warn=warned)
    with pytest.raises(Stopped):
        resume(tmp_path / "run", change=again, watch=stopping(count=2))
    resume(tmp_path / "run", change=again, warn=warned)
    same(tmp_path / "run", tmp_path / "whole")
    share = numpy.arange(20 - step) / (20 - step)
    expected = 0.003 * (1 + numpy.cos(numpy.pi * share)) / 2
    numpy.testing.assert_allclose(rates(tmp_path / "run")[step:], expected, rtol=1e-6)
    assert warned == []


def test_another_rate_is_the_rate_after_recoveries_too(tiny, stopped):
    path = stopped / "last.safetensors"
    last = read_checkpoint(path)
    progress = replace(last.state.progress, rate_scale=0.25, recoveries=2)
    write_checkpoint(path, replace(last, state=replace(last.state, progress=progress)))
    trainer, _ = resume(stopped, change=restarted(0.005, 2))
    assert rates(stopped)[7] == pytest.approx(0.005)
    assert trainer.recoveries == 2


@pytest.mark.parametrize("start", [8, -1, 2.0, "x", None])
def test_schedules_that_start_elsewhere_are_refused(stopped, start):
    path = stopped / "last.safetensors"
    last = read_checkpoint(path)
    schedule = {**last.config["training"]["schedule"], "start": start}
    training = {**last.config["training"], "schedule": schedule}
    write_checkpoint(path, replace(last, config={**last.config, "training": training}))
    with pytest.raises(CheckpointError, match=r"last\.safetensors: "):
        resume(stopped)


def test_a_run_that_has_ended_only_shows_what_it_was(tiny, tmp_path):
    ended, _ = begin(tiny, tmp_path / "run")
    before = content(tmp_path / "run")
    for change in (None, more(1)):
        trainer, _ = resume(tmp_path / "run", change=change)
        assert content(tmp_path / "run") == before
        assert (trainer.step, trainer.best_loss) == (ended.step, ended.best_loss)
        for name, value in ended.best_params.items():
            numpy.testing.assert_array_equal(trainer.model.params[name], value)


def falling_and_rising(monkeypatch):
    """Let the validation losses be lowest after the second epoch."""

    def measure(trainer):
        loss = [3.0, 2.0, 4.0, 5.0, 6.0, 7.0][trainer.epoch]
        for batches in trainer.validation.values():
            for _ in batches.epoch(0):
                trainer._emit("measured")
        return {"val": loss}

    monkeypatch.setattr(xpcap.training.Trainer, "_measure_all", measure)


@pytest.mark.parametrize("count", range(1, 5))
def test_patience_counts_the_epochs_before(runs, monkeypatch, count):
    falling_and_rising(monkeypatch)
    run, whole, trainer = runs(stopping("epoch", count), epochs=6, patience=2)
    same(run, whole)
    assert (trainer.epoch, trainer.best_epoch) == (4, 2)
    assert read_checkpoint(run / "best.safetensors").state.progress.epoch == 2

    def patient(options):
        return replace(options, schedule=replace(options.schedule, patience=3))

    trainer, _ = resume(run, change=patient)
    assert (trainer.epoch, trainer.best_epoch) == (5, 2)


def test_the_best_epoch_is_found_again_whenever_it_was(runs, monkeypatch):
    falling_and_rising(monkeypatch)
    run, whole, trainer = runs(stopping(count=17), epochs=4)
    same(run, whole)
    best = read_checkpoint(whole / "best.safetensors").state.parameters
    last = read_checkpoint(whole / "last.safetensors").state.parameters
    for name, value in trainer.model.params.items():
        numpy.testing.assert_array_equal(value, best[name])
    assert not numpy.array_equal(best["Wh"], last["Wh"])


@pytest.fixture
def stopped(tiny, tmp_path):
    """A run that was stopped in its second epoch."""
    with pytest.raises(Stopped):
        begin(tiny, tmp_path / "run", watch=stopping(count=7))
    return tmp_path / "run"


def test_data_that_have_moved(tiny, stopped, tmp_path):
    begin(tiny, tmp_path / "whole")
    moved = tiny.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"tiny, on which .* does not exist; .* \(data=FOLDER\)$"):
        resume(stopped)
    resume(stopped, data=moved)
    found, expected = (
        read_checkpoint(run / "last.safetensors") for run in (stopped, tmp_path / "whole")
    )
    for name, value in expected.state.parameters.items():
        numpy.testing.assert_array_equal(found.state.parameters[name], value)
    history = "history.jsonl"
    assert (stopped / history).read_bytes() == (tmp_path / "whole" / history).read_bytes()
    assert found.config["data"]["folder"] == str(moved)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("what", ["captions", "image_idxs"])
def test_other_data_are_refused(tiny, stopped, split, what):
    before = content(stopped)
    with h5py.File(tiny / "coco2014_captions.h5", "r+") as file:
        rows = file[f"{split}_{what}"][:]
        file[f"{split}_{what}"][:] = rows[[1, 0, *range(2, len(rows))]] if what == "captions" else 0
    with pytest.raises(DataError, match=r"tiny has other captions than .*run was trained with"):
        resume(stopped)
    assert content(stopped) == before


def test_other_words_and_features_are_refused(tiny, stopped, tmp_path):
    shutil.copytree(tiny, tmp_path / "words")
    path = tmp_path / "words" / "coco2014_vocab.json"
    path.write_text(path.read_text().replace("star", "moon"))
    with pytest.raises(DataError, match="words has another vocabulary"):
        resume(stopped, data=tmp_path / "words")
    make_tiny(tmp_path / "wide", shapes=("circle", "square", "star"))
    for name in ("train", "val"):
        with h5py.File(tmp_path / "wide" / f"{name}2014_vgg16_fc7.h5", "r+") as file:
            rows = file["features"][:]
            del file["features"]
            file["features"] = numpy.hstack([rows, rows])
    with pytest.raises(DataError, match="wide has 14 features per image; expected 7"):
        resume(stopped, data=tmp_path / "wide")


KINDS = {"whole": {}, "lazy": {"lazy": True}, "half precision": {"feature_dtype": "float16"}}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("feature_kind", ["fc7", "pca"])
@pytest.mark.parametrize("kind", KINDS)
def test_changed_features_are_refused(tmp_path, kind, feature_kind, split):
    tiny = make_tiny(tmp_path / "tiny", kinds=(feature_kind,))
    with pytest.raises(Stopped):
        begin(tiny, tmp_path / "run", watch=stopping(count=7), **KINDS[kind])
    before = content(tmp_path / "run")
    path = tiny / layout.features_file(split, feature_kind)
    with h5py.File(path, "r+") as file:
        kept = file["features"][:]
        file["features"][4] = kept[5]
    with pytest.raises(DataError, match=r"other feature values than .*run was trained with"):
        resume(tmp_path / "run")
    assert content(tmp_path / "run") == before
    with h5py.File(path, "r+") as file:  # one more image
        del file["features"]
        file["features"] = numpy.vstack([kept, kept[:1]])
    urls = tiny / layout.urls_file(split)
    urls.write_text(urls.read_text() + "http://localhost/one-more.png\n")
    (tiny / layout.REFERENCES).unlink()
    with pytest.raises(DataError, match=r"other feature values than .*run was trained with"):
        resume(tmp_path / "run")


def test_features_that_are_only_stored_otherwise_are_the_same(tiny, stopped, tmp_path):
    begin(tiny, tmp_path / "whole")
    for split in ("train", "val"):
        with h5py.File(tiny / layout.features_file(split, "fc7"), "r+") as file:
            rows = file["features"][:].astype(numpy.float64)
            del file["features"]
            file.create_dataset("features", data=rows, chunks=(5, 3), compression="gzip")
    resume(stopped, change=lambda options: replace(options, lazy=True))
    found, expected = content(stopped), content(tmp_path / "whole")
    assert found["history.jsonl"] == expected["history.jsonl"]


def test_without_the_best_epochs_parameters_it_does_not_go_on(stopped):
    path = stopped / "best.safetensors"
    best = read_checkpoint(path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"best.safetensors is not of epoch 1, the best one"):
        resume(stopped)
    older = replace(best.state, progress=replace(best.state.progress, best_epoch=0))
    write_checkpoint(path, replace(best, state=older))
    with pytest.raises(CheckpointError, match=r"best.safetensors is not of epoch 1, the best one"):
        resume(stopped)
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"best.safetensors is not a whole checkpoint"):
        resume(stopped)
    write_checkpoint(path, best)
    assert resume(stopped)[0].epoch == 2


def test_a_copy_of_the_best_is_nothing_to_go_on_from(stopped):
    """It lacks what the update rule remembers: the steps would be others."""
    shutil.copy(stopped / "best.safetensors", stopped / "last.safetensors")
    with pytest.raises(CheckpointError, match=r"last.safetensors lacks optimizer state of adam"):
        resume(stopped)


def test_an_earlier_checkpoint_is_something_to_go_on_from(tiny, tmp_path):
    saving = Saving(steps=2, keep=NEVER)
    for name in ("run", "whole"):
        begin(tiny, tmp_path / name, saving=saving)
    shutil.copy(tmp_path / "run" / "step-00000004.safetensors", tmp_path / "run/last.safetensors")
    resume(tmp_path / "run")
    found, expected = content(tmp_path / "run"), content(tmp_path / "whole")
    for name in ("history.jsonl", "last.safetensors", "best.safetensors"):
        assert found[name] == expected[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: {**config, "training": {}}, "expected the options of a training run"),
        (lambda config: {**config, "training": None}, "expected the options of a training run"),
        (
            lambda config: {**config, "training": {**config["training"], "batch_size": "10"}},
            "expected the options of a training run",
        ),
        (
            lambda config: {**config, "training": {**config["training"], "saving": {"every": 1}}},
            "expected the options of a training run",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(stopped, change, message):
    path = stopped / "last.safetensors"
    last = read_checkpoint(path)
    write_checkpoint(path, replace(last, config=change(last.config)))
    with pytest.raises(CheckpointError, match=rf"last.safetensors: {message}"):
        resume(stopped)


def test_captions_that_no_one_knows_of_are_refused(stopped):
    path = stopped / "last.safetensors"
    last = read_checkpoint(path)
    data = {name: value for name, value in last.config["data"].items() if name != "captions"}
    write_checkpoint(path, replace(last, config={**last.config, "data": data}))
    with pytest.raises(DataError, match="other captions"):
        resume(stopped)


def test_numbers_of_another_rule_are_refused(stopped):
    path = stopped / "last.safetensors"
    last = read_checkpoint(path)
    numbers = {"t": 7, "learning_rate": 0.1}
    write_checkpoint(path, replace(last, state=replace(last.state, optimizer=numbers)))
    with pytest.raises(CheckpointError, match=r"last.safetensors lacks optimizer state of adam"):
        resume(stopped)


def test_what_is_no_run_is_refused(tmp_path):
    for name in ("none", "empty"):
        with pytest.raises(
            CheckpointError, match=rf"{name} has no last.safetensors to resume from"
        ):
            resume(tmp_path / name)
        (tmp_path / "empty").mkdir(exist_ok=True)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_history_that_was_lost_goes_on_with_what_is_there(tiny, stopped, tmp_path):
    begin(tiny, tmp_path / "whole")
    whole = (tmp_path / "whole" / "history.jsonl").read_text().splitlines(keepends=True)
    path = stopped / "history.jsonl"
    path.write_bytes(path.read_bytes()[:250])  # in the middle of a line
    kept = path.read_text().count("\n")
    warned = []
    resume(stopped, warn=warned)
    assert warned == [f"warning: {path} lacks some steps; it is continued as it is"]
    assert path.read_text().splitlines(keepends=True) == whole[:kept] + whole[8:]


def test_lines_of_steps_that_are_taken_again_are_dropped(tiny, stopped, tmp_path):
    begin(tiny, tmp_path / "whole")
    with open(stopped / "history.jsonl", "a") as file:
        file.write('{"step": 8, "epoch": 2, "lr": 1, "loss": 1}\n{"step": 9, "ep')
    resume(stopped)
    same(stopped, tmp_path / "whole")


def test_what_killed_processes_left_is_removed_and_nothing_else(tiny, stopped, tmp_path):
    begin(tiny, tmp_path / "whole")
    ours = ("last.safetensors", "best.safetensors", "step-00000005.safetensors", "diverged.json")
    for name in ours:
        (stopped / f".{name}.4711.part").write_bytes(b"half")
    others = (".captioner.safetensors.4711.part", "last.safetensors.part", "mine.part")
    for name in others:
        (stopped / name).write_bytes(b"of others")
    resume(stopped)
    for name in others:
        (stopped / name).unlink()
    same(stopped, tmp_path / "whole")


# the command line


def command(call, *words):
    return call("train", *words, "--device", "cpu")


TRAIN = ["--data", "tiny", "--out", "run", "--hidden", 8, "--wordvec", 4, "--batch-size", 10]
SCHEDULE = ["--lr", 0.02, "--schedule", "constant", "--warmup", 5]


@pytest.fixture
def ended(call, tiny):
    found = command(call, *TRAIN, *SCHEDULE, "--epochs", 2)
    assert found.exit_code == 0, found.output
    return call


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--hidden", 16],
            r"--hidden cannot be changed .*\(it was 8\); these can: --epochs",
        ),
        (["--lr", 0], r"--lr must be a number in \(0, inf\), got 0\.0"),
        (["--clip", 0], r"--clip cannot be changed when a run is resumed \(it was 5.0\)"),
        (["--schedule", "cosine"], r"--schedule cannot be changed .*\(it was constant\)"),
        (["--warmup", 3], r"--warmup cannot be changed .*\(it was 5\)"),
        (["--lr-decay", 0.9], r"--lr-decay cannot be changed .*\(it was 1.0\)"),
        (["--batch-size", 5], r"--batch-size cannot be changed .*\(it was 10\)"),
        (["--feature-dtype", "float16"], r"--feature-dtype cannot be changed"),
        (["--max-train", 10], r"--max-train cannot be changed .*\(it was None\)"),
        (["--features", "pca"], r"--features cannot be changed .*\(it was fc7\)"),
        (["--cell", "gru"], r"--cell cannot be changed"),
        (["--rule", "sgd"], r"--rule cannot be changed"),
        (["--dtype", "float64"], r"--dtype cannot be changed"),
        (["--precision", "tf32"], r"--precision cannot be changed"),
        (["--seed", 1], r"--seed cannot be changed .*--save-every, --keep, --on-nan,.*--device"),
        (["--wordvec", 5], r"--wordvec cannot be changed"),
        (["--dropout", 0.5], r"--dropout cannot be changed"),
        (["--weight-decay", 0.1], r"--weight-decay cannot be changed .*\(it was None\)"),
        (["--label-smoothing", 0.1], r"--label-smoothing cannot be changed .*\(it was 0.0\)"),
        (["--out", "other"], r"--out does not go with --resume"),
        (["--epochs", 0], "epochs must be at least 1"),
        (["--epochs", 1], r"run, 5 steps; expected more epochs, --epochs N, or in a new run a"),
        (["--save-every", "0"], "save-every must be at least 1"),
        (["--save-every", "soon"], "'soon' is neither a number of steps nor one of minutes"),
        (["--data", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_what_cannot_be_changed_is_refused_by_name(ended, tmp_path, words, message):
    before = content(tmp_path / "run")
    result = command(ended, "--resume", "run", *words)
    one_line(result, message)
    assert content(tmp_path / "run") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "tiny"]


def test_the_same_options_may_be_said_again(ended, tmp_path):
    again = ["--hidden", 8, *SCHEDULE, "--clip", 5, "--seed", 0]
    result = command(ended, "--resume", "run", *again, "--features", "auto", "--epochs", 3)
    assert result.exit_code == 0, result.output
    assert "run: run, from step 10 of 15" in result.stderr
    assert result.stdout.splitlines()[-1].endswith("(epoch 3); run: run")
    shutil.move(tmp_path / "run", tmp_path / "resumed")
    assert command(ended, *TRAIN, *SCHEDULE, "--epochs", 3).exit_code == 0
    same(tmp_path / "resumed", tmp_path / "run")


@pytest.mark.parametrize("model", ["recurrent", "attention"])
def test_the_built_in_scenes_are_those_that_the_model_needs(call, model):
    folder = cache_folder()
    make_tiny(folder / "scenes")
    make_tiny(folder / "scenes-grid", regions=True)
    words = ["--hidden", 8, "--wordvec", 4, "--model", model, "--out", "run", "--epochs"]
    assert command(call, *words, 1).exit_code == 0
    resumed = command(call, "--resume", "run", "--data", "scenes", "--epochs", 2)
    assert resumed.exit_code == 0, resumed.output


def test_a_rate_given_anew_starts_the_schedule_again(call, tiny, tmp_path):
    assert command(call, *TRAIN, "--epochs", 2, "--lr", 0.02).exit_code == 0
    again = ["--resume", "run", "--lr", 0.003, "--epochs"]
    for words in ([*again, 3], [*again, 3], ["--resume", "run", "--keep", 1]):
        result = command(call, *words)
        assert result.exit_code == 0, result.output
        assert "warning" not in result.stderr
        training = read_checkpoint(tmp_path / "run" / "last.safetensors").config["training"]
        assert (training["lr"], training["schedule"]["start"]) == (0.003, 10)
    result = command(call, *again, 5)
    assert "the learning rate goes from 0.00029 to 0.0023, that of a cosine over 5" in result.stderr
    schedule = {**training["schedule"], "epochs": 5}
    last = read_checkpoint(tmp_path / "run" / "last.safetensors")
    assert last.config["training"]["schedule"] == schedule


def test_how_it_is_saved_and_mended_stays_unless_said_anew(ended, tmp_path):
    def said():
        return read_checkpoint(tmp_path / "run" / "last.safetensors").config["training"]

    words = ["--save-every", "2m", "--keep", 1, "--on-nan", "skip", "--on-nan-limit", 7]
    assert command(ended, "--resume", "run", *words, "--epochs", 3).exit_code == 0
    assert said()["saving"] == {"steps": None, "minutes": 2.0, "keep": 1}
    assert said()["on_nan"] == {"policy": "skip", "limit": 7}
    assert command(ended, "--resume", "run", "--epochs", 4, "--keep", 2).exit_code == 0
    assert said()["saving"] == {"steps": None, "minutes": 2.0, "keep": 2}
    assert said()["on_nan"] == {"policy": "skip", "limit": 7}
    assert said()["schedule"]["epochs"] == 4


def test_an_epoch_that_is_resumed_at_its_end_has_no_speed(call, tiny, tmp_path):
    with pytest.raises(Stopped):
        begin(tiny, tmp_path / "run", watch=stopping(count=STEPS))
    result = call("train", "--resume", "run", "--device", "cpu")
    first, second = (line for line in result.stderr.splitlines() if line.startswith("epoch "))
    assert "captions/s" not in first
    assert "captions/s" in second


def test_what_cannot_be_resumed_is_one_line(ended, tmp_path):
    for name in ("nowhere", "tiny"):
        one_line(command(ended, "--resume", name), f"{name} has no last.safetensors to resume from")
    (tmp_path / "run" / "last.safetensors").write_bytes(b"\0" * 100)
    one_line(command(ended, "--resume", "run"), "last.safetensors is not a whole checkpoint")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_a_history_that_never_ends_is_refused(tiny, tmp_path):
    begin(tiny, tmp_path / "run", epochs=1)
    history = tmp_path / "run" / "history.jsonl"
    history.unlink()
    history.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"history\.jsonl is not a plain file"):
        resume(tmp_path / "run")
    history.unlink()
    with open(history, "wb") as file:
        file.truncate(2**30 + 1)  # without blocks on the disk
    with pytest.raises(DataError, match=r"is 1073741825 bytes; expected at most 1073741824"):
        resume(tmp_path / "run")
