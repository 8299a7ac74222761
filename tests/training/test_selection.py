"""The best epoch as a metric of generated validation captions has it."""

import json

import numpy
import pytest
from commands import one_line
from mpi import together
from runs import SMALL, begin, resume, same, stopping
from tiny import make_tiny

from xpcap.backend import CPU, to_host
from xpcap.data.dataset import open_dataset
from xpcap.errors import DataError, Stopped
from xpcap.evaluation import evaluate_run
from xpcap.runs import BEST, LAST, make_search, open_run
from xpcap.runs.checkpoint import read_checkpoint
from xpcap.training import Schedule
from xpcap.training.history import read_history
from xpcap.training.options import RunOptions
from xpcap.training.run import RunContext, train_run
from xpcap.training.selection import CaptionMetric

LEARNS = {"epochs": 6, "lr": 0.1, "hidden": 16, "clip_norm": 5.0}


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "tiny", regions=True)


@pytest.fixture
def scripted(monkeypatch):
    """Let the metric have these values, epoch by epoch."""

    def script(*values):
        coming = iter(values)
        monkeypatch.setattr(CaptionMetric, "__call__", lambda self: next(coming))

    return script


@pytest.mark.parametrize("model", ["recurrent", "attention"])
def test_the_metric_is_that_of_evaluating_the_best_epoch(tiny, tmp_path, backend, model):
    data = tiny if model == "attention" else make_tiny(tmp_path / "pooled")
    trainer, _ = begin(data, tmp_path / "run", backend, model=model, select="CIDEr-D", **LEARNS)
    run = open_run(tmp_path / "run", backend)
    how = make_search(run.vocabulary)
    expected = evaluate_run(run, open_dataset(data), "val", how, ["CIDEr-D"]).scores.corpus
    assert trainer.best_value == expected["CIDEr-D"] > 0
    curves = read_history(tmp_path / "run" / "history.jsonl")
    assert curves.metrics["CIDEr-D"].max() == trainer.best_value
    assert curves.best == trainer.best_epoch - 1


def test_the_highest_value_selects_whatever_the_loss(tiny, tmp_path, scripted):
    """Of equal ones that of the lower loss; patience counts epochs without a better one."""
    scripted(numpy.nan, 0.1, 0.7, 0.7, numpy.nan, 0.2, 0.9)
    how = {**LEARNS, "epochs": 9, "select": "BLEU-4", "patience": 2}
    trainer, _ = begin(tiny, tmp_path / "run", **how)
    assert (trainer.best_epoch, trainer.epoch, trainer.best_value) == (4, 6, 0.7)
    curves = read_history(tmp_path / "run" / "history.jsonl")
    assert curves.best == 3
    assert curves.val_loss.argmin() == 5
    assert trainer.best_loss == curves.val_loss[3] < curves.val_loss[2]
    best, last = (read_checkpoint(tmp_path / "run" / name).state.progress for name in (BEST, LAST))
    assert (best.epoch, best.best_value, last.best_value) == (4, 0.7, 0.7)
    kept = open_run(tmp_path / "run").model.params
    for name, value in trainer.model.params.items():
        numpy.testing.assert_array_equal(to_host(value), kept[name])


@pytest.mark.parametrize("moment", [("step", 6), ("measured", 9), ("epoch", 3, False)])
def test_a_resumed_run_selects_the_same_epoch(tiny, tmp_path, monkeypatch, moment):
    """The first epoch is best here, and the run ends when patience does."""

    def smaller_with_larger_weights(metric):
        weights = metric._run.model.params.values()
        return 1 / sum(float(abs(value).sum()) for value in weights)

    monkeypatch.setattr(CaptionMetric, "__call__", smaller_with_larger_weights)
    how = {**LEARNS, "select": "CIDEr", "patience": 3}
    begin(tiny, tmp_path / "whole", **how)
    with pytest.raises(Stopped):
        begin(tiny, tmp_path / "run", watch=stopping(*moment), **how)
    trainer, _ = resume(tmp_path / "run")
    assert (trainer.best_epoch, trainer.epoch) == (1, 4)
    same(tmp_path / "run", tmp_path / "whole")


def test_ranks_select_the_epoch_that_one_selects(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("xpcap.evaluation.BATCH", 5)
    monkeypatch.setattr("xpcap.runs.run.BATCH", 5)
    options = RunOptions(
        **{**SMALL, "lr": 0.1}, dtype="float64", select="CIDEr-D", schedule=Schedule(6, patience=1)
    )
    data = make_tiny(tmp_path / "pooled")
    alone, _ = train_run(data, tmp_path / "alone", options, CPU)
    found = together(
        3, lambda own: train_run(data, tmp_path / "run", options, CPU, RunContext(ranks=own))
    )
    for trainer, _ in found:
        assert (trainer.best_epoch, trainer.epoch) == (alone.best_epoch, alone.epoch)
        assert trainer.best_value == pytest.approx(alone.best_value) != 0


def test_of_many_images_evenly_spaced_ones_are_captioned(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("xpcap.training.selection.IMAGES", 5)
    trainer, dataset = begin(tiny, tmp_path / "run", select="ROUGE-L", **LEARNS)
    run, how = open_run(tmp_path / "run"), make_search(dataset.vocabulary)
    found = evaluate_run(run, dataset, "val", how, ["ROUGE-L"], most=5)
    assert [image["id"] for image in found.images] == [0, 2, 5, 8, 11]
    assert trainer.best_value == found.scores.corpus["ROUGE-L"]


def test_it_is_seen_wherever_an_epoch_is(call, tiny, tmp_path):
    words = ["--data", tiny, "--epochs", 2, "--hidden", 8, "--wordvec", 4, "--device", "cpu"]
    result = call("train", *words, "--select", "CIDEr-D", "--out", "run", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    value = f"{found['val_CIDEr-D']:.4f}"
    assert f"perplexity {found['val_perplexity']:.2f}, CIDEr-D {value}" in result.stderr
    (curves,) = json.loads(call("curves", "run", "--json").stdout)
    assert found["val_CIDEr-D"] == max(curves["epochs"]["val_CIDEr-D"])
    result = call("train", *words, "--select", "BLEU-1", "--out", "other")
    assert "BLEU-1 0." in result.stdout
    result = call("train", *words, "--select", "novel")
    one_line(result, "--select 'novel' is unknown; expected loss, BLEU-1, BLEU-2")


def test_without_references_nothing_begins(tiny, tmp_path):
    path = tiny / "references.json"
    references = json.loads(path.read_text())
    for image in references["val"][1:]:
        image["captions"] = ["..."]
    path.write_text(json.dumps(references))
    with pytest.raises(DataError, match="'CIDEr-D' of a single validation image is always 0"):
        begin(tiny, tmp_path / "run", select="CIDEr-D")
    references["val"][0]["captions"] = []
    path.write_text(json.dumps(references))
    with pytest.raises(DataError, match="tiny: no image of 'val' has a caption to compare with"):
        begin(tiny, tmp_path / "run", select="BLEU-4")
    assert not (tmp_path / "run").exists()
    begin(tiny, tmp_path / "run")


def test_what_selects_cannot_be_changed(tiny, tmp_path, call):
    begin(tiny, tmp_path / "run")
    words = ["train", "--resume", "run", "--device", "cpu", "--select", "CIDEr"]
    one_line(call(*words), "--select cannot be changed when a run is resumed")
