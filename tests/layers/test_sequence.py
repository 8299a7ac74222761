"""Packed sequences through the recurrent cells."""

import numpy
import pytest

from xpcap.backend import to_host
from xpcap.layers.recurrence import Packing, unroll
from xpcap.models.recurrent import CELLS
from xpcap.workspace import Workspace

N, T, H = 3, 4, 5


def unrolled(cell, backend, packing):
    """Run a cell over random rows, the first N captions' the same in every packing."""
    rng = numpy.random.default_rng(1)
    shapes = {**CELLS[cell].shapes(1, H), "h0": (N, H)}
    shapes["gates"] = (T * N, *shapes["b"])
    drawn = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    drawn["h0"] = numpy.concatenate([drawn["h0"], numpy.ones((packing.captions - N, H))])
    given = {name: backend.to_device(value) for name, value in drawn.items()}
    space = Workspace(backend.xp, numpy.float64)
    return unroll(CELLS[cell], given["gates"], given["b"], (given["h0"],), given, packing, space)


@pytest.mark.parametrize("cell", CELLS)
def test_states_of_equal_steps_are_views_of_one_array(cell, backend):
    """Bit for bit those that unequal steps copy: here a further caption has no word."""
    with backend.activate():
        views = unrolled(cell, backend, Packing(N, [N] * T))
        copies = unrolled(cell, backend, Packing(N + 1, [N] * T))
        for name in ("h", "prev_h"):
            found, expected = (to_host(getattr(run, name)) for run in (views, copies))
            numpy.testing.assert_array_equal(found, expected)
        views.h[...] = copies.h[...] = 7
        assert (to_host(views.prev_h[N:]) == 7).all()
        assert not (to_host(copies.prev_h) == 7).any()
