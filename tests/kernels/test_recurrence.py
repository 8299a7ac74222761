"""Recurrences of equal steps, which a GPU takes in one launch, against those of one step each."""

import numpy
import pytest

import xpcap.kernels.cuda.recurrence as fused
from xpcap.backend import CPU, to_host
from xpcap.kernels import fastest
from xpcap.kernels.products import multiplied_in
from xpcap.layers._sequence import Packing
from xpcap.models.captioner import CELLS
from xpcap.workspace import Workspace

# N, T, H; with more than 16 hidden units several blocks have to run at once, which a GPU alone can
SMALL = [(1, 2, 4), (3, 5, 16), (37, 3, 12), (70, 2, 8)]
LARGE = [(100, 16, 200), (128, 16, 512), (256, 4, 512), (37, 7, 132)]


def drawn(cell, N, T, H):
    """Return the arguments of a cell's forward pass and the gradient of its states, as float64."""
    rng, width = numpy.random.default_rng(N + H), CELLS[cell].gates * H
    normal = rng.standard_normal
    biases = [normal(H) for _ in CELLS[cell].weights[3:]]
    Wh = normal((H, width)) / numpy.sqrt(H)
    return [normal((T * N, width)), normal(width), normal((N, H)), Wh, *biases], normal((T * N, H))


def unrolled(backend, cell, arguments, dh, dtype, N, T):
    """Return the states, and the gradients of pre-activations, of the first state and of biases."""
    with backend.activate():
        space, packing = Workspace(fastest(backend.xp), numpy.dtype(dtype)), Packing(N, [N] * T)
        given = [backend.to_device(value.astype(dtype)) for value in arguments]
        run = CELLS[cell].unroll(*given, packing, space)
        dh = backend.to_device(dh.astype(dtype))
        gradients = CELLS[cell].unroll_backward(dh, run, given[3], packing, space)
        return [to_host(value).astype("float64") for value in (run.h, *gradients)]


@pytest.fixture
def launches(monkeypatch):
    """Count the launches of whole sequences; one that does not fit is an error."""
    seen, original = [], fused._plan_of

    def counted(*arguments):
        plan = original(*arguments)
        assert plan is not None
        seen.append(plan)
        return plan

    monkeypatch.setattr(fused, "_plan_of", counted)
    return seen


def check(gpu, cell, size, launches):
    N, T, _ = size
    arguments, dh = drawn(cell, *size)
    true = unrolled(CPU, cell, arguments, dh, "float64", N, T)
    near = unrolled(CPU, cell, arguments, dh, "float32", N, T)
    ours = unrolled(gpu, cell, arguments, dh, "float32", N, T)
    with multiplied_in("tf32"):
        rounded = unrolled(gpu, cell, arguments, dh, "float32", N, T)
    assert len(launches) == 4
    for exact, close, found, roughly in zip(true, near, ours, rounded, strict=True):
        size = max(1.0, abs(exact).max())
        assert abs(found - exact).max() <= 2 * abs(close - exact).max() + 5e-7 * size
        assert abs(roughly - exact).max() <= 3e-3 * size


@pytest.mark.parametrize("size", SMALL)
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_in_one_launch(gpu, cell, size, launches):
    check(gpu, cell, size, launches)


@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_in_one_launch_of_several_blocks(gpu, cell, size, launches):
    if not gpu.xp.cuda.runtime.getDeviceProperties(0)["cooperativeLaunch"]:
        pytest.skip("the device runs one block after another")
    check(gpu, cell, size, launches)


@pytest.mark.parametrize("cell", CELLS)
def test_the_same_bits_every_time(gpu, cell):
    arguments, dh = drawn(cell, 70, 5, 16)
    first, again = (unrolled(gpu, cell, arguments, dh, "float32", 70, 5) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        numpy.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_nan_is_passed_on(gpu, cell, precision):
    arguments, dh = drawn(cell, 5, 3, 16)
    arguments[3][2, 1] = numpy.nan
    with multiplied_in(precision):
        h, *_ = unrolled(gpu, cell, arguments, dh, "float32", 5, 3)
    assert numpy.isnan(h).any()


@pytest.mark.parametrize("cell", CELLS)
def test_other_arrays_are_taken_step_by_step(gpu, cell):
    """Of double precision, and of a hidden size that is not a multiple of 4."""
    for dtype, H in (("float64", 16), ("float32", 6)):
        arguments, dh = drawn(cell, 5, 3, H)
        true = unrolled(CPU, cell, arguments, dh, dtype, 5, 3)
        found = unrolled(gpu, cell, arguments, dh, dtype, 5, 3)
        for exact, ours in zip(true, found, strict=True):
            numpy.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5)
