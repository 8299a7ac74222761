import pytest
from click.testing import CliRunner

from xpcap.cli import main


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Call xpcap in an empty folder; what is printed to both streams comes back."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])
