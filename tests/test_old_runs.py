"""Runs that earlier versions left are opened, caption as they did, and resume.

`fixtures/run-format-2` was written by version 9c6c774, before model families had names: an LSTM on
`make_tiny`'s data with dropout 0.2, learning rate 0.05 and 12 epochs, interrupted after step 44 of
60. `captions.txt` has its captions of the validation images, `uninterrupted.jsonl` the history of
the same run without the interruption.
"""

import shutil
from pathlib import Path

import pytest
from runs import resume
from tiny import make_tiny

from xpcap.data.dataset import open_dataset
from xpcap.runs import open_run
from xpcap.training.history import read_history

OLD = Path(__file__).with_name("fixtures") / "run-format-2"


@pytest.fixture
def old(tmp_path):
    return Path(shutil.copytree(OLD, tmp_path / "run"))


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "tiny")


def test_an_old_run_captions_as_it_did(old, tiny, backend):
    features = open_dataset(tiny).splits["val"].features
    expected = (OLD / "captions.txt").read_text().splitlines()
    assert open_run(old, backend).caption(features) == expected


def test_an_old_run_resumes(old, tiny):
    resume(old, data=tiny)
    found, expected = (
        read_history(path) for path in (old / "history.jsonl", OLD / "uninterrupted.jsonl")
    )
    assert found.step.tolist() == expected.step.tolist() == list(range(1, 61))
    for name in ("loss", "lr", "grad_norm", "val_loss"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-4)
