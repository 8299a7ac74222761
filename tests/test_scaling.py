"""`tools/scaling.py`: what it fits, what it predicts, and that it runs."""

import json
import subprocess
import sys

import pytest
from mpi import ROOT, SECONDS, needs_mpi
from scaling import Model, fit


def test_the_fit_finds_the_model_that_the_times_were_made_of():
    model = Model(4e-3, 0.5e-3, latency=20e-6, bandwidth=2e9, gradient=8_000_000)
    exchanges = {count: 2 * (20e-6 + count / 2 / 2e9) for count in (4, 4000, 400_000, 8_000_000)}
    found = fit(64, model.step(1, 64), model.step(1, 32), exchanges, model.gradient)
    for name, value in vars(model).items():
        assert getattr(found, name) == pytest.approx(value)


def test_what_several_devices_take():
    model = Model(fixed=1.0, each=0.5, latency=0.25, bandwidth=10.0, gradient=40)
    assert model.step(1, 4) == 1 + 4 * 0.5
    assert model.exchange(8) == pytest.approx(2 * 7 * (0.25 + 40 / 8 / 10))
    assert model.step(8, 4, speed=2) == pytest.approx((1 + 4 * 0.5) / 2 + model.exchange(8))


@needs_mpi
def test_it_measures_two_ranks_and_marks_what_it_predicts(tmp_path):
    words = ["--config", "seed", "--rounds", "2", "--calls", "1", "--json", tmp_path / "found.json"]
    ended = subprocess.run(
        [sys.executable, ROOT / "tools" / "scaling.py", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "PREDICTION, not measured" in ended.stdout
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert len(found["speed_up"]["rounds"]) == 2
    assert [entry["devices"] for entry in found["predicted"]] == [8, 64, 512] * 2
