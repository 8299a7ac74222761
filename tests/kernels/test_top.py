"""The largest values of each row, and the best continuations of a beam, against sorts of all."""

import numpy
import pytest

from xpcap.backend import to_host
from xpcap.kernels.top import best_continuations, top

RNG = numpy.random.default_rng(0)


@pytest.mark.parametrize("count", [1, 2, 5, 16, 17, 40])
def test_the_largest_of_each_row(xp, count):
    """Equal ones in their order, by sorting and by looking again and again."""
    values = numpy.round(numpy.random.default_rng(4).standard_normal((30, 40)), 1)
    found, places = top(xp, xp.asarray(values), count)
    for row, best, where in zip(values, to_host(found), to_host(places), strict=True):
        order = sorted(range(40), key=lambda k: (-row[k], k))[:count]
        assert where.tolist() == order
        assert best.tolist() == row[order].tolist()


def test_minus_infinity_may_be_among_the_largest(xp):
    values = numpy.array([[1.0, -numpy.inf, -numpy.inf]])
    given = xp.asarray(values)
    assert to_host(top(xp, given, 2)[0]).tolist() == [[1.0, -numpy.inf]]
    numpy.testing.assert_array_equal(to_host(given), [[1.0, -numpy.inf, -numpy.inf]])


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
def test_continuations_against_a_sort_of_all(xp, dtype):
    """Many equal sums; of words that are forbidden, and where a beam has less than is asked for."""
    width, words = 4, 40
    values = numpy.round(RNG.standard_normal((9, words)), 1).astype(dtype)
    values[RNG.random(values.shape) < 0.3] = -numpy.inf
    values[3, 2:], values[4:6] = -numpy.inf, -numpy.inf
    totals = numpy.round(RNG.standard_normal(9), 1).astype(dtype)
    places = numpy.array([0, 1, 2, 4, 8, 13, 20, 22, 23])
    arrays = [xp.asarray(array) for array in (values, totals, places)]
    found, parents, said = map(to_host, best_continuations(xp, *arrays, 7, width))
    for image in range(7):
        everything = [
            (-(values[row, word] + totals[row]), place % width, word)
            for row, place in enumerate(places)
            if place // width == image
            for word in range(words)
        ]
        best = [entry for entry in sorted(everything) if entry[0] < numpy.inf][:width]
        count = len(best)
        ours = list(zip(-found[image], parents[image], said[image], strict=True))
        assert ours[:count] == best
        assert (found[image, count:] == -numpy.inf).all()
