"""A few hundred of the files that `tools/fuzz.py` makes by the thousand."""

import sys

import pytest

pytest.importorskip("hypothesis")

from fuzzing.changes import generated
from fuzzing.child import SECONDS, Child
from fuzzing.faults import FAULTS, hangs, takes_long
from fuzzing.hdf5 import ELSEWHERE, hdf5, moved
from fuzzing.loaders import LOADERS
from hypothesis import given, seed
from processes import WITHIN

from xpcap.errors import DataError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes cannot be waited for")

CASES = 10  # of each loader
FEW = generated(CASES)
IN_FILES = [
    name
    for name, loader in LOADERS.items()
    if loader.changed is hdf5 and not name.startswith("data info")  # which shows what is wrong
]


@pytest.fixture(scope="module")
def child():
    child = Child()
    yield child
    child.close()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", LOADERS)
def test_a_file_is_opened_or_refused_in_one_line(name, child, tmp_path):
    loader = LOADERS[name]
    if loader.missing:
        pytest.skip(f"{', '.join(loader.missing)} is not installed")
    path = loader.make(tmp_path)
    valid = path.read_bytes()
    whole = child.load(name, path)
    assert (whole.opened, whole.fault) == (True, None)

    def check(content):
        path.write_bytes(content)
        assert child.load(name, path).fault is None

    seed(0)(FEW(given(loader.changed(valid))(check)))()


@pytest.mark.parametrize("how", ELSEWHERE)
@pytest.mark.parametrize("name", IN_FILES)
def test_no_number_is_read_from_another_place(name, how, tmp_path):
    path = LOADERS[name].make(tmp_path.resolve())
    moved(path, how)
    with pytest.raises(DataError, match=r"is a link|is stored in another file"):
        LOADERS[name].load(path)


@pytest.fixture(scope="module")
def faulty():
    child = Child("faults")
    yield child
    child.close()


@pytest.mark.skipif(sys.platform != "linux", reason="how much memory is taken is not known")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_whatever_goes_wrong_is_seen(fault, faulty, tmp_path, monkeypatch):
    monkeypatch.setattr(faulty, "hangs", 0.5 if fault is hangs else WITHIN)
    monkeypatch.setattr(faulty, "seconds", 0.1 if fault is takes_long else SECONDS)
    found = faulty.load(fault.__name__, tmp_path)
    again = faulty.load("refuses", tmp_path)
    assert found.fault == FAULTS[fault] or FAULTS[fault] in found.fault
    assert (again.opened, again.fault) == (False, None)
