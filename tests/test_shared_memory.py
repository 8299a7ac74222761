"""Memory that ranks have in common."""

import os
import sys

import numpy
import pytest
from mpi import together

from xpcap import shared_memory
from xpcap.shared_memory import share_memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is shared on Linux only")


@linux
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_one_rank_writes_all_read(dtype):
    def work(own):
        arrays = share_memory(own, (2, 5), dtype)
        assert [(array.shape, array.dtype) for array in arrays] == [((2, 5), dtype)] * 3
        assert not any(array.any() for array in arrays)
        own.wait()
        arrays[own.rank][1] = own.rank + 1
        own.wait()
        return [array.tolist() for array in arrays]

    assert together(3, work) == [[[[0] * 5, [k] * 5] for k in (1, 2, 3)]] * 3


@linux
def test_it_lasts_as_long_as_the_arrays_and_no_file_stays_open():
    before = os.listdir("/proc/self/fd")

    def work(own):
        mine = share_memory(own, (4,), "float32")[own.rank]
        mine[...] = own.rank
        own.wait()
        return mine

    assert [array.tolist() for array in together(2, work)] == [[0] * 4, [1] * 4]
    assert os.listdir("/proc/self/fd") == before


def refuse(*_):
    raise PermissionError("not allowed")


@linux
@pytest.mark.parametrize("what", ["places", "no call", "refused", "limited", "not mapped"])
def test_if_one_rank_cannot_none_does(monkeypatch, what):
    """What a process sees under another's number may be something else, in another place."""
    before = os.listdir("/proc/self/fd")
    places = [("this boot", "pid:[1]"), ("this boot", "pid:[2]"), None]
    if what == "places":
        monkeypatch.setattr(shared_memory, "_where", places.pop)
    elif what == "no call":
        monkeypatch.delattr(os, "memfd_create")
    elif what == "refused":
        monkeypatch.setattr(os, "memfd_create", refuse)
    elif what == "limited":
        monkeypatch.setattr(os, "truncate", refuse)
    else:
        monkeypatch.setattr("mmap.mmap", refuse)

    assert together(3, lambda own: share_memory(own, (4,), numpy.float32)) == [None] * 3
    assert os.listdir("/proc/self/fd") == before


@linux
def test_without_proc_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(shared_memory, "_BOOT", tmp_path / "missing")
    assert together(2, lambda own: share_memory(own, (4,), numpy.float32)) == [None] * 2
