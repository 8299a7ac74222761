"""Memory that ranks have in common."""

import os
import sys
import tempfile
import threading

import numpy
import pytest
from mpi import together

from xpcap import shared_memory
from xpcap.shared_memory import share_memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is shared on Linux only")


@pytest.fixture
def opened():
    """The files in memory that this process has open, made during the test."""

    def files():
        found = set()
        for name in os.listdir("/proc/self/fd"):
            try:
                found.add((name, os.readlink(f"/proc/self/fd/{name}")))
            except OSError:  # that of the listing itself
                continue
        return {file for file in found if file[1].startswith("/memfd:xpcap")}

    before = files()
    return lambda: files() - before


def shared(own):
    return share_memory(own, 4, numpy.float32)


@linux
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_one_rank_writes_all_read(dtype):
    def work(own):
        arrays = share_memory(own, 5 + own.rank, dtype)
        assert [(array.shape, array.dtype) for array in arrays] == [
            ((5 + k,), dtype) for k in range(3)
        ]
        assert not any(array.any() for array in arrays)
        own.wait()
        arrays[own.rank][2:] = own.rank + 1
        own.wait()
        return [array.tolist() for array in arrays]

    expected = [[0, 0, *[k + 1] * (3 + k)] for k in range(3)]
    assert together(3, work) == [expected] * 3


@linux
def test_it_lasts_as_long_as_the_arrays(opened):
    def work(own):
        mine = shared(own)[own.rank]
        mine[...] = own.rank
        own.wait()
        return mine

    arrays = together(2, work)
    assert [array.tolist() for array in arrays] == [[0] * 4, [1] * 4]
    assert len(opened()) == 2
    del arrays
    assert not opened()


class Once:
    """Fails for the first that calls it, the other ranks succeed."""

    def __init__(self, work, failure):
        self._work, self._failure, self._lock = work, failure, threading.Lock()

    def __call__(self, *args):
        with self._lock:
            failure, self._failure = self._failure, None
        if failure:
            raise failure("refused")
        return self._work(*args)


@linux
@pytest.mark.parametrize(
    ("what", "failure"),
    [
        ("os.memfd_create", AttributeError),
        ("os.memfd_create", PermissionError),
        ("os.posix_fallocate", OSError),
        ("os.readlink", PermissionError),
        ("mmap.mmap", PermissionError),
    ],
)
def test_if_one_rank_cannot_none_does(monkeypatch, opened, what, failure):
    module, name = what.split(".")
    once = Once(getattr(sys.modules[module], name), failure)
    monkeypatch.setattr(what, once)
    found = together(3, shared)
    monkeypatch.undo()
    assert once._failure is None, "it was called"
    assert found == [None] * 3
    assert not opened()


@linux
def test_what_has_the_number_of_another_ranks_file_is_left_alone(monkeypatch):
    """Processes of other places have the same numbers, and their files too."""
    with tempfile.TemporaryFile() as file:
        file.write(b"someone's " * 10)
        file.flush()
        make = shared_memory._memory_file
        lost = []

        def other(*args):
            lost.append(make(*args))
            return os.dup(file.fileno())

        monkeypatch.setattr(shared_memory, "_memory_file", other)
        assert together(2, shared) == [None] * 2
        file.seek(0)
        assert file.read() == b"someone's " * 10
        for descriptor in lost:
            os.close(descriptor)
