"""Parameters side by side in one array."""

import numpy
import pytest

from xpcap.errors import ShapeError
from xpcap.training.flat import FlatLayout

SHAPES = {"w": (3, 5), "b": (5,), "v": (2, 8), "s": ()}


@pytest.mark.parametrize("multiple", [1, 8])
def test_arrays_lie_apart_with_zeros_between_them(multiple):
    rng = numpy.random.default_rng(0)
    arrays = {name: rng.random(shape) + 1 for name, shape in SHAPES.items()}
    layout = FlatLayout(SHAPES, multiple)
    flat = layout.join(numpy, arrays, numpy.float64)
    assert len(flat) == layout.size
    assert numpy.count_nonzero(flat) == sum(array.size for array in arrays.values())
    views = layout.views(flat)
    for name, array in arrays.items():
        numpy.testing.assert_array_equal(views[name], array)
    assert views["w"].strides == (8 * (8 if multiple == 8 else 5), 8)
    assert views["v"].flags.c_contiguous
    views["w"][...] = 0
    assert numpy.count_nonzero(flat) == sum(array.size for array in arrays.values()) - 15
    with pytest.raises(ShapeError, match=r"w: training began with \(3, 5\), now it is \(3, 8\)"):
        layout.check({**arrays, "w": numpy.zeros((3, 8))})
