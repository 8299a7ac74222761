"""Capture and replay by CuPy itself; `tests/cuda` has the same logic without a GPU."""

import gc
import weakref

import numpy
import pytest
from guard import open_guard

from xpcap.errors import ShapeError
from xpcap.kernels.graphs import Repeated


class Counter:
    """Doubles a number on the device, through memory that is allocated at each call."""

    def __init__(self, gpu):
        self.number = gpu.xp.ones(300)
        self.repeated = Repeated(gpu.xp, "float64")
        self.calls = 0
        self.fault = None  # raised by, or happening in, the second call, which is captured

    def double(self):
        self.calls += 1
        self.temporary = self.number + self.number
        if self.calls == 2 and self.fault is not None:
            self.fault()
        self.number[...] = self.temporary

    def take(self):
        self.repeated(self.double)
        return float(self.number[7])


def test_a_graph_is_replayed_on_cupy(gpu):
    counter = Counter(gpu)
    assert [counter.take() for _ in range(5)] == [2, 4, 8, 16, 32]
    assert counter.calls == 2


def test_memory_of_a_graph_is_its_own_as_long_as_it_lives_on_cupy(gpu):
    """What is allocated in a capture is not given to another graph, or to anybody else."""
    pool = gpu.xp.get_default_memory_pool()
    first, second = Counter(gpu), Counter(gpu)
    for counter in (first, second):
        assert [counter.take(), counter.take()] == [2, 4]
        counter.temporary = None  # the only array of this memory
    taken = [gpu.xp.zeros(300) for _ in range(8)]
    assert [first.take(), second.take(), first.take(), second.take()] == [8, 8, 16, 16]
    assert not any(array.any() for array in taken)
    del taken
    used = pool.used_bytes()
    dropped = weakref.ref(first)
    gc.disable()
    try:
        del first
        assert dropped() is None
        assert used - pool.used_bytes() == 2 * 2560  # the number, and what the graph allocated
    finally:
        gc.enable()


@pytest.mark.filterwarnings("error")
def test_a_capture_that_fails_leaves_launches_on_cupy(gpu):
    counter = Counter(gpu)
    counter.fault = lambda: float(counter.temporary[0])  # waits for a stream that is captured
    found = [counter.take()]
    with pytest.warns(RuntimeWarning, match=r"cannot be captured \(\w+: .*one by one") as warned:
        found += [counter.take() for _ in range(3)]
    assert len(warned) == 1
    assert len(str(warned[0].message).splitlines()) == 1
    assert found == [2, 4, 8, 16]
    assert counter.calls == 5  # 4 and the capture
    other = Counter(gpu)
    assert [other.take() for _ in range(4)] == [2, 4, 8, 16]
    assert other.calls == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, ShapeError, MemoryError])
def test_other_errors_end_a_capture_and_are_raised_on_cupy(gpu, error):
    def fault():
        raise error

    counter = Counter(gpu)
    counter.fault = fault
    counter.take()
    with pytest.raises(error):
        counter.take()
    assert [counter.take() for _ in range(3)] == [4, 8, 16]
    assert counter.calls == 3  # the third is captured


def test_graphs_can_be_turned_off_on_cupy(gpu, monkeypatch):
    monkeypatch.setenv("XPCAP_GRAPHS", "0")
    counter = Counter(gpu)
    assert [counter.take() for _ in range(4)] == [2, 4, 8, 16]
    assert counter.calls == 4


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
@pytest.mark.parametrize("xp", [numpy, open_guard().xp], ids=["numpy", "guard"])
def test_nothing_is_captured_on_the_cpu(xp, dtype):
    calls = []
    repeated = Repeated(xp, dtype)
    for _ in range(3):
        repeated(lambda: calls.append(1))
    assert len(calls) == 3
