import pytest
from click.testing import CliRunner
from tiny import make_tiny

from xpcap.backend import CPU
from xpcap.cli import main
from xpcap.training import Schedule
from xpcap.training.run import RunOptions, train_run


@pytest.fixture(scope="module")
def place_of_a_run(tmp_path_factory):
    """A folder with the data folder `tiny` and `run`, for tests that change neither."""
    folder = tmp_path_factory.mktemp("place")
    options = RunOptions(hidden=16, wordvec=8, batch_size=10, schedule=Schedule(epochs=1))
    train_run(make_tiny(folder / "tiny"), folder / "run", options, CPU)
    return folder


@pytest.fixture
def call_beside_a_run(place_of_a_run, monkeypatch):
    """Call xpcap there; what is printed to both streams comes back."""
    monkeypatch.chdir(place_of_a_run)
    return lambda *words: CliRunner().invoke(main, list(words))
