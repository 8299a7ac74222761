"""The watch over self-critical training: one warning for each cause, and none without."""

import json
import re

import numpy
import pytest
from mpi import together
from runs import begin, resume, stopping
from tiny import make_tiny

from xpcap.backend import CPU
from xpcap.distributed import Alone
from xpcap.errors import Stopped
from xpcap.runs import open_run
from xpcap.training.history import read_history
from xpcap.training.options import following_options
from xpcap.training.rewards import Rewards
from xpcap.training.run import RunContext, train_run
from xpcap.training.samples import FIGURES
from xpcap.training.watch import causes

REFERENCES = {"words": 10.0, "repeats": 0.05, "bad_endings": 0.02}
HEALTHY = {
    "reward": (0.6, 0.9), "baseline": (0.6, 0.9), "advantage": (0.3, 0.2), "entropy": (2.0, 0.8),
    "distinct": (4.9, 3.0), "words": (9.5, 10.5), "repeats": (0.08, 0.1),
    "bad_endings": (0.1, 0.05), "val_CIDEr-D": (0.6, 0.65),
}  # fmt: skip
EPOCHS, STEPS = 4, 20
ALONE = Alone()


@pytest.fixture
def curves(tmp_path):
    """Make a history in which figures go from one value to another, with noise of 5%."""

    def make(noise=0.05, **changed):
        figures = {**HEALTHY, **changed}
        rng, lines = numpy.random.default_rng(0), []
        for step in range(1, EPOCHS * STEPS + 1):
            epoch = -(-step // STEPS)
            way = (step - 1) / (EPOCHS * STEPS - 1)
            now = {name: ends[0] + way * (ends[1] - ends[0]) for name, ends in figures.items()}
            drawn = {name: now[name] * (1 + noise * rng.standard_normal()) for name in FIGURES}
            lines.append({"step": step, "epoch": epoch, "loss": drawn["entropy"], **drawn})
            if step % STEPS == 0:
                metric = {"val_CIDEr-D": now["val_CIDEr-D"]}
                lines.append({"step": step, "epoch": epoch, "val_loss": 2 + way, **metric})
        path = tmp_path / "history.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return read_history(path)

    return make


WORSE = [
    (
        "repeats",
        (0.08, 0.4),
        "3[5-9]% of captions repeat a phrase, 8% at the start and 5% of train",
    ),
    ("bad_endings", (0.1, 0.5), "4.% of captions break off or end with a word such as 'a', 1"),
    ("words", (9.5, 6.0), r"captions have 6\.\d words, 9\.\d at the start and 10\.0 in training"),
    ("words", (9.5, 16.0), r"captions have 15\.\d words, 9\.\d at the start and 10\.0 in training"),
    (
        "entropy",
        (2.0, 0.1),
        r"entropy of captions fell to 0\.\d\d nats per word, from [12]\.\d\d at",
    ),
    ("distinct", (4.9, 1.1), r"only 1\.\d\d of the captions drawn of an image are different, 4\."),
]


@pytest.mark.parametrize(("name", "ends", "text"), WORSE)
def test_each_cause_is_warned_of_alone(curves, name, ends, text):
    ((cause, told),) = causes(curves(**{name: ends}), REFERENCES)
    assert cause == name.removeprefix("val_")
    assert re.match(r"the reward rose from 0\.\d+ to 0\.\d+, but ", told)
    assert re.search(text, told)
    assert "would help" in told
    assert any(option in told for option in ("--entropy", "--cross-entropy", "--lr", "--reward"))


def test_a_healthy_run_is_not_warned_of(curves):
    """Nor one whose figures were as bad at the start, or that has no reward."""
    assert not [*causes(curves(), REFERENCES)]
    assert not [*causes(curves(repeats=(0.5, 0.4), words=(6.0, 6.5)), REFERENCES)]
    assert not [*causes(curves(distinct=(1.0, 1.0), noise=0), REFERENCES)]  # a single sample
    assert not [*causes(curves(repeats=(0.12, 0.2)), REFERENCES)]  # of captions drawn, not chosen


@pytest.mark.parametrize("rewards", [(0.6, 0.9), (0.9, 0.6)])
def test_a_metric_that_falls_is_told_whatever_the_reward_does(curves, rewards):
    said = r"CIDEr-D of validation captions is 0\.300, 0\.528 after epoch 1; .*--lr would help"
    ((cause, told),) = causes(curves(reward=rewards, **{"val_CIDEr-D": (0.6, 0.3)}), REFERENCES)
    assert cause == "CIDEr-D"
    assert re.match(said, told)


def test_the_metric_before_training_counts(curves):
    ((_, told),) = causes(curves(), REFERENCES, before=0.9)
    assert "is 0.650, 0.900 before training" in told
    assert not [*causes(curves(), REFERENCES, before=0.66)]


@pytest.mark.parametrize("name", ["repeats", "entropy"])
def test_without_a_higher_reward_there_is_no_warning(curves, name):
    ends = {"repeats": (0.08, 0.4), "entropy": (2.0, 0.1)}[name]
    for rewards in ((0.9, 0.6), (0.6, 0.6)):
        assert not [*causes(curves(reward=rewards, **{name: ends}), REFERENCES)]


def test_noise_is_not_a_cause(curves):
    """Figures beyond the limits, and as far beyond them at the start."""
    assert not [*causes(curves(repeats=(0.3, 0.3), bad_endings=(0.4, 0.4)), REFERENCES)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run that starts to caption the tiny set."""
    folder = tmp_path_factory.mktemp("source")
    begin(make_tiny(folder / "tiny"), folder / "run", epochs=8)
    return folder / "run"


def start(source, out, warn=None, watch=None, ranks=ALONE, **options):
    """Train from a run, self-critically."""
    run = open_run(source, "cpu")
    chosen = {"epochs": 6, "batch_size": 4, "lr": 0.02, "select": "loss", **options}
    chosen = following_options(run, stage="self-critical", **chosen)
    context = RunContext(watch=watch, ranks=ranks, warn=[].append if warn is None else warn.append)
    return train_run(source.parent / "tiny", out, chosen, CPU, context, run)


@pytest.fixture
def paid_for_repeating(monkeypatch):
    """A reward that is the share of the word `a` among ten."""
    monkeypatch.setattr("xpcap.training.assembly.check_rewards", lambda *given: None)

    def share(self, images, captions):
        return (captions == self._word_to_idx["a"]).sum(axis=1) / 10.0

    monkeypatch.setattr(Rewards, "__call__", share)


def test_a_run_that_collapses_is_warned_of_once(source, tmp_path, paid_for_repeating):
    warnings = []
    trainer, _ = start(source, tmp_path / "run", warnings)
    assert trainer.measured["reward"] > 0.5
    assert all(text.startswith("warning: the reward rose from ") for text in warnings)
    for text in (
        "of captions repeat a phrase, [0-4]% at the start and 0% of training captions",
        "of captions break off or end with a word such as 'a'",
        r"captions have [5-7]\.\d words, 3\.\d at the start and 4\.0 in training captions",
    ):
        assert len([told for told in warnings if re.search(text, told)]) == 1


def test_of_several_ranks_the_first_warns(source, tmp_path, paid_for_repeating):
    def work(ranks):
        warnings = []
        start(source, tmp_path / "run", warnings, ranks=ranks)
        return warnings

    first, second = together(2, work)
    assert any("of captions repeat a phrase" in text for text in first)
    assert not second


def test_a_resumed_run_is_compared_with_its_start(source, tmp_path, paid_for_repeating):
    """It has collapsed before it is stopped, and nothing changes after."""

    with pytest.raises(Stopped):
        start(source, tmp_path / "run", watch=stopping("epoch", 5))
    warnings = []
    trainer, _ = resume(tmp_path / "run", warn=warnings)
    assert trainer.epoch == 6
    assert any("of captions repeat a phrase" in text for text in warnings)
