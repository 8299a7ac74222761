"""XPCAP_REQUIRE_GPU=1: a test that needs a GPU fails if it is skipped for a reason without name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = """
import pytest

@pytest.fixture
def gpu():
    pass

def test_named(gpu):
    pytest.skip("PyTorch is not installed")

def test_unnamed(gpu):
    pytest.skip("too slow")

@pytest.mark.skipif(True, reason="too slow")
@pytest.mark.parametrize("library", ["numpy", "cupy"])
def test_library(library):
    pass

def test_expected(gpu):
    pytest.xfail("a known fault")

def test_other():
    pytest.skip("too slow")
"""
TESTS = str(Path(__file__).parent)
OUTCOMES = {
    "named": "SKIPPED",
    "unnamed": "SKIPPED",
    "library[numpy]": "SKIPPED",
    "library[cupy]": "SKIPPED",
    "expected": "XFAIL",
    "other": "SKIPPED",
}


def outcomes(folder, *options):
    """Run the cases under this suite's conftest.py in a Python of their own."""
    (folder / "test_cases.py").write_text(CASES)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-v", *options, "test_cases.py"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [TESTS, *sys.path]))}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return dict(re.findall(r"::test_(\S+) ([A-Z]+)", done.stdout)), done.stdout


@pytest.mark.parametrize("required", ["0", "1"])
def test_only_named_skips_pass_where_a_gpu_is_required(tmp_path, monkeypatch, required):
    monkeypatch.setenv("XPCAP_REQUIRE_GPU", required)
    found, output = outcomes(tmp_path)
    if required == "0":
        assert found == OUTCOMES
        return
    assert found == {**OUTCOMES, "unnamed": "FAILED", "library[cupy]": "ERROR"}
    assert output.count("XPCAP_REQUIRE_GPU=1, but skipped: too slow") >= 2


def test_what_needs_a_gpu_is_chosen_by_that_word(tmp_path):
    found, _ = outcomes(tmp_path, "-k", "gpu")
    assert found.keys() == {"named", "unnamed", "library[cupy]", "expected"}
