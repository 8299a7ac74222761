import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from guard import open_guard

os.environ.setdefault("XPCAP_THREADS", "1")  # auto would make results depend on time

import xpcap.backend
from xpcap.backend import CPU, Backend, Namespace, open_backend
from xpcap.cli import main
from xpcap.errors import BackendError


def _open_cupy() -> Backend:
    """Open the GPU; without one skip, or fail where XPCAP_REQUIRE_GPU=1 says it must be there."""
    try:
        return open_backend("gpu")
    except BackendError as error:
        if os.environ.get("XPCAP_REQUIRE_GPU") == "1":
            pytest.fail(f"XPCAP_REQUIRE_GPU=1, but {error}")
        pytest.skip(str(error))


OPEN = {"numpy": lambda: CPU, "guard": open_guard, "cupy": _open_cupy}


@pytest.fixture(params=list(OPEN))
def backend(request: pytest.FixtureRequest) -> Backend:
    return OPEN[request.param]()


@pytest.fixture(params=["guard", "cupy"])
def elsewhere(request: pytest.FixtureRequest) -> Backend:
    """Return a backend for what is compared with NumPy's results."""
    return OPEN[request.param]()


@pytest.fixture
def gpu() -> Backend:
    return _open_cupy()


REASONS = {
    "PyTorch is not installed",
    "NCCL is not installed",
    "mpi4py is not installed",
    "there is no mpirun, of Open MPI, MPICH or another MPI",
    "only fakegpu counts what CUDA does",
    "the device runs one block after another",
}
"""Why a test that needs a GPU may be skipped although XPCAP_REQUIRE_GPU=1; others fail then."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a GPU; tests are given it by what they use")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark tests that use the fixture `gpu` or a parameter `cupy`, so that `-k gpu` has all."""
    params = item.callspec.params.values() if hasattr(item, "callspec") else ()
    cupy = any(isinstance(value, str) and value == "cupy" for value in params)
    if cupy or "gpu" in getattr(item, "fixturenames", ()):
        item.add_marker("gpu")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[pytest.TestReport]:
    report = yield
    error = None if call.excinfo is None else call.excinfo.value
    required = os.environ.get("XPCAP_REQUIRE_GPU") == "1" and item.get_closest_marker("gpu")
    if required and isinstance(error, pytest.skip.Exception) and error.msg not in REASONS:
        report.outcome = "failed"
        report.longrepr = f"XPCAP_REQUIRE_GPU=1, but skipped: {error.msg}"
    return report


@pytest.fixture
def xp(backend: Backend) -> Namespace:
    return backend.xp


@pytest.fixture(autouse=True)
def _no_default_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every test begin without a default backend, and leave none behind."""
    monkeypatch.setattr(xpcap.backend, "_default", None)
    monkeypatch.delenv("XPCAP_DEVICE", raising=False)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave files to the system: no test can see what `fsync` adds, some replace it by an error."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def _no_cache_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what tests draw out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@pytest.fixture(autouse=True)
def _default_handlers_of_signals() -> Iterator[None]:
    """Undo what a command leaves, after which a process has only to exit.

    And what a shell does: under `nohup`, or `&` in a script, processes ignore SIGINT.
    """
    for number, handler in _HANDLERS.items():
        signal.signal(number, handler)
    yield
    for number, handler in _HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def coco_dir() -> Path:
    """Return the folder with COCO's own caption and box files."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("XPCAP_COCO_DIR") or default)
    if not (folder / "captions_val2017.json").is_file():
        pytest.skip(f"no captions_val2017.json in {folder}; XPCAP_COCO_DIR names its folder")
    return folder


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Call xpcap in an empty folder; what is printed to both streams comes back."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])
