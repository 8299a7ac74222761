"""The names of the courses: the README of `xpcap.compat` lists each once, and no others."""

import re
from pathlib import Path

import pytest

from xpcap import compat
from xpcap.compat import cs231n, eecs498, step_by_step

README = (Path(compat.__file__).parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("module", "rows"),
    [(cs231n, 11), (eecs498, 4), (step_by_step, 4)],
    ids=["cs231n", "eecs498", "step_by_step"],
)
def test_the_readme_lists_every_name(module, rows):
    _, table = README.split(f" names in `{module.__name__}` |\n|---|---|\n")
    listed = [row.split(" | ")[1] for row in table.split("\n\n")[0].splitlines()]
    assert len(listed) == rows
    assert sorted(re.findall(r"`(\w+)`", "".join(listed))) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)
