import json
import shutil

import pytest
from click.testing import CliRunner
from tiny import make_tiny

from xpcap.cli import main

pytest.importorskip("matplotlib", reason="reports need the extra 'report'")
pytest.importorskip("jinja2", reason="reports need the extra 'report'")

HOSTILE = "<script>alert(1)</script> a \"red\" & 'green' star"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Two runs of a tiny set, one of whose references is hostile."""
    folder = tmp_path_factory.mktemp("report")
    data = make_tiny(folder / "tiny")
    references = json.loads((data / "references.json").read_text())
    references["val"][3]["captions"][0] = HOSTILE
    (data / "references.json").write_text(json.dumps(references))
    for name, cell in (("one", "lstm"), ("<b>two", "gru")):
        words = ["train", "--data", data, "--out", folder / name, "--cell", cell, "--epochs", 8]
        small = ["--hidden", 12, "--wordvec", 6, "--batch-size", 10, "--lr", 0.02]
        made = CliRunner().invoke(main, [str(word) for word in words + small])
        assert made.exit_code == 0, made.output
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return ["one", "<b>two"]
