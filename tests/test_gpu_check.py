"""The check of a GPU: its stages as processes, rehearsed without one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu_check
import gpu_stages
import pytest
from gpu_check import Log, Outcome, Stage, check, summary

from xpcap.training.resident import ResidentStep

TOOL = Path(gpu_check.__file__)
GOOD = 'print("RESULT {\\"speed\\": 1.5}")'


def python(name, text, seconds=30):
    return Stage(name, seconds, (sys.executable, "-c", text))


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "out", "check")


def saved(log):
    return {entry["stage"]: entry for entry in json.loads(log.json_file.read_text())}


def test_a_stage_that_raises_hangs_or_crashes_ends_alone(log, capsys):
    stages = [
        python("raises", f"{GOOD}\nraise RuntimeError('no such kernel')"),
        python("hangs", f"{GOOD}\nimport time\nprint('waiting', flush=True)\ntime.sleep(600)", 2),
        python("crashes", f"{GOOD}\nimport os\nos.kill(os.getpid(), 11)"),
        python("works", GOOD),
    ]
    assert not check(stages, 5, "gpu", log)
    found = saved(log)
    assert found["raises"]["status"] == "exit status 1"
    assert found["hangs"]["status"] == "stopped after 2 s"
    assert found["crashes"]["status"] == "ended by SIGSEGV"
    assert found["works"]["status"] == "passed"
    assert [entry["results"] for entry in found.values()] == [{"speed": 1.5}] * 7
    assert "no such kernel" in found["raises"]["end"][-1]
    assert "waiting" in (log.json_file.parent / "log.txt").read_text()
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == [
        "raises", "raises", "hangs", "hangs", "crashes", "crashes", "works"
    ]  # fmt: skip


def test_a_stage_that_fails_is_repeated_with_blocking_launches(log):
    text = "import os, sys; sys.exit('blocking' if 'CUDA_LAUNCH_BLOCKING' in os.environ else 3)"
    check([python("fails", text)], 5, "gpu", log)
    assert [entry["end"] for entry in saved(log).values()] == [[], ["blocking"]]


def test_a_stage_has_no_more_time_than_there_is(log, monkeypatch):
    monkeypatch.setattr(gpu_check, "SHORTEST", 1.0)
    start = time.monotonic()
    check([python("one", "import time; time.sleep(60)"), python("two", GOOD)], 0.08, "gpu", log)
    assert time.monotonic() - start < 40
    assert [outcome.status for outcome in log.outcomes] == [
        "stopped after 2 s", "not run: no time left", "not run: no time left"
    ]  # fmt: skip


def test_what_was_measured_is_there_when_the_check_is_killed(tmp_path):
    """Also of the stage that was running, which ends with it."""
    one = "print('RESULT {\"speed\": 1}')"
    two = "import os, time; print('RESULT {\"process\": %d}' % os.getpid()); time.sleep(600)"
    script = tmp_path / "stages.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(TOOL.parent)!r})
from pathlib import Path
from gpu_check import Log, Stage, check
stages = [Stage(name, 600, (sys.executable, "-c", text)) for name, text in zip("ab", {[one, two]})]
check(stages, 9, "gpu", Log(Path({str(tmp_path)!r}), "check"))
""")
    process = subprocess.Popen([sys.executable, str(script)])
    file = tmp_path / "check.json"
    deadline = time.monotonic() + 60
    while not (file.exists() and "process" in file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    one, two = json.loads(file.read_text())
    assert (one["status"], one["results"]) == ("passed", {"speed": 1})
    assert two["status"] == "running"
    deadline = time.monotonic() + 30
    while Path(f"/proc/{two['results']['process']}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{two['results']['process']}").exists()


def test_the_summary_fits_and_shows_the_end_of_failures(log):
    outcomes = [Outcome(f"stage {k}", "passed", 1.0, {f"result {j}": j for j in range(300)}, [])
                for k in range(5)]  # fmt: skip
    for k in range(3):
        output = [f"line {j} of {k}" for j in range(2000)] + [f"the cause of {k}"]
        outcomes.append(Outcome(f"failed {k}", "exit status 1", 2.0, {}, output))
    text = summary(outcomes)
    assert len(text) <= gpu_check.SUMMARY
    assert text.startswith("stage 0: passed (1 s)\n  result 0")
    assert all(f"the cause of {k}" in text for k in range(3))


def test_stages_run_from_a_bare_copy_without_the_package(tmp_path):
    """No git, nothing installed but what the package needs, `OUT` names the folder."""
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "PYTHONPATH": ""}
    words = ["--device", "cpu", "--minutes", "8", "--stage", "epoch", "--stage", "kernels"]
    done = subprocess.run(
        [sys.executable, str(TOOL), *words], cwd=tmp_path, env=environment, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (tmp_path / "out").glob("*.json")
    kernels, epoch = json.loads(file.read_text())
    assert kernels["results"]["products in float32"] < 3e-6
    assert epoch["results"]["epoch float32"]["steps"] == 8
    assert "epoch: passed" in done.stdout


def test_a_result_that_is_wrong_fails_its_stage(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_stages.py", "agreement", "cpu"])
    monkeypatch.setattr(gpu_stages, "STEPS", 2)
    monkeypatch.setattr(gpu_stages, "failures", 0)
    assert gpu_stages.main() == 0
    launch = ResidentStep._launch

    def more(step):
        launch(step)
        step._parameters *= 1.001

    monkeypatch.setattr(ResidentStep, "_launch", more)
    assert gpu_stages.main() == 1
    assert '{"lstm float64": {"FAILED":' in capsys.readouterr().out
