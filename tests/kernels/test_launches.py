"""How often training and decoding call a GPU, as fakegpu (shared/cupy_on_cpu) counts it."""

import numpy
import pytest

from xpcap.benchmark.contenders import Ours
from xpcap.benchmark.workload import Configuration, Workload

SIZE = Configuration(batch_size=8, hidden=16, features=9, vocabulary=40, wordvec=8, steps=6)
CELLS = ["rnn", "lstm", "gru"]


@pytest.fixture
def counted(gpu):
    """Call a function and return what CUDA was asked for, by kind."""
    fakegpu = pytest.importorskip("fakegpu", reason="only fakegpu counts what CUDA does")

    def counted(function, *arguments):
        fakegpu.reset()
        function(*arguments)
        return dict(fakegpu.counts())

    return counted


def nodes(counts):
    """Return how many kernels, products, and copies or fills were captured."""
    captured = {key.split()[1]: 0 for key in counts if key.startswith("captured")}
    for key in counts:
        if key.startswith("captured"):
            captured[key.split()[1]] += counts[key]
    kernels, products = (captured.pop(kind) for kind in ("kernel", "gemm"))
    return kernels, products, sum(captured.values())


@pytest.mark.parametrize("cell", CELLS)
def test_a_training_step_is_one_graph(gpu, counted, cell):
    """With one launch for the recurrence, one for its gradient and nine products."""
    program = Ours(Workload(SIZE, cell), gpu)
    first, captured, replayed = (counted(program.train, k) for k in range(3))
    assert first["kernel forward"] == first["kernel backward"] == 1
    kernels, products, copies = nodes(captured)
    assert kernels <= (15 if cell == "gru" else 14)
    assert products == 9
    assert copies <= 3
    assert replayed["graphLaunch"] == 1
    assert replayed["kernel"] == 1  # copies the loss
    assert not [key for key in replayed if key.startswith(("sync", "gemm", "malloc"))]


@pytest.mark.parametrize("cell", CELLS)
def test_double_precision_is_a_graph_of_single_steps(gpu, counted, cell):
    program = Ours(Workload(SIZE, cell), gpu, numpy.float64)
    first, captured, replayed = (counted(program.train, k) for k in range(3))
    assert first[f"kernel {cell}_cell"] == first[f"kernel {cell}_cell_gradient"] == SIZE.steps
    kernels, products, copies = nodes(captured)
    assert kernels <= (33 if cell == "gru" else 26)
    assert products == 9 + 2 * SIZE.steps
    assert copies <= 5
    assert replayed["graphLaunch"] == 1


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_of_decoding_is_one_graph(gpu, counted, cell):
    program = Ours(Workload(SIZE, cell), gpu)
    captured, replayed = counted(program.decode, 0), counted(program.decode, 0)
    kernels, products, copies = nodes(captured)
    assert kernels <= 14
    assert products == 3
    assert copies <= 3
    assert replayed["graphLaunch"] % 4 == 0  # of all steps; whether any goes on is asked every 4
    assert replayed["kernel"] <= 6
    assert replayed["sync streamSynchronize"] == replayed["graphLaunch"] // 4
