"""A few of the kills of `tools/torture.py`."""

import sys

import pytest
from torture import Torture

from xpcap.runs import HISTORY

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it knows no SIGKILL")
KILLS = 3


def test_what_is_killed_goes_on_as_if_undisturbed_and_what_differs_is_seen(tmp_path):
    torture = Torture(tmp_path, epochs=1, seed=1)
    for result in torture.run(KILLS):
        assert result.faults == []
    assert (result.kills, result.runs > 0) == (KILLS, True)
    assert 0 < result.resumed <= KILLS + 1
    (tmp_path / "run-1" / HISTORY).write_bytes(b"")
    torture._compare("run-1")
    assert result.faults == [f"run-1: {HISTORY} is not that of the undisturbed run"]
