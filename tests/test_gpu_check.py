"""The check of a GPU, rehearsed without one."""

import json

import gpu_check
import pytest
from click.testing import CliRunner

from xpcap.train.resident import ResidentStep


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(gpu_check, "STEPS", 5)
    return tmp_path / "results"


def test_parts_are_written_as_they_end(results):
    words = ["--device", "cpu", "--part", "agreement", "--part", "epoch", "--part", "selfcheck"]
    ended = CliRunner().invoke(gpu_check.main, words)
    assert ended.exit_code == 0, ended.output
    (file,) = results.iterdir()
    found = json.loads(file.read_text())
    assert found["device"] == "cpu"
    assert len(found["agreement"]) == 6
    assert found["agreement"]["lstm float64"]["passed"]
    assert found["epoch"]["float32"]["steps"] == 8
    assert found["selfcheck"]["exit"] == 0


def test_a_device_that_computes_something_else_fails(results, monkeypatch):
    original = ResidentStep._launch

    def a_little_more(self):
        original(self)
        self._parameters *= 1.001

    monkeypatch.setattr(ResidentStep, "_launch", a_little_more)
    ended = CliRunner().invoke(gpu_check.main, ["--device", "cpu", "--part", "agreement"])
    assert ended.exit_code == 1
    assert "agreement  FAILED" in ended.output


def test_a_part_that_raises_is_told_and_the_next_is_run(results, monkeypatch):
    def raising(backend, seconds):
        raise RuntimeError("no such luck")

    monkeypatch.setitem(gpu_check.PARTS, "agreement", (raising, 1))
    words = ["--device", "cpu", "--part", "agreement", "--part", "epoch"]
    ended = CliRunner().invoke(gpu_check.main, words)
    assert ended.exit_code == 1
    assert "no such luck" in ended.output
    assert "epoch      passed" in ended.output


def test_a_command_that_takes_too_long_is_ended():
    command = [gpu_check.sys.executable, "-c", "import time; time.sleep(60)"]
    ended = gpu_check.run(command, 0.5)
    assert ended["exit"] is None
    assert gpu_check.broken(ended)


def test_all_parts_together_take_less_than_eight_minutes():
    assert sum(seconds for _, seconds in gpu_check.PARTS.values()) <= 480
