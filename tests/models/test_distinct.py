import numpy
import pytest
from xpcap.models.distinct import distinct

from xpcap.backend import to_host


def test_each_is_there_once_on_the_host():
    some, which = distinct(numpy, numpy.array([5, 3, 5, 5, 0, 3]))
    assert some.tolist() == [0, 3, 5]
    assert which.tolist() == [2, 1, 2, 2, 0, 1]


@pytest.mark.parametrize("indices", [[4, 1, 4], [2], []])
def test_they_are_found_again_on_every_backend(backend, indices):
    there = backend.to_device(numpy.array(indices, numpy.int64))
    some, which = distinct(backend.xp, there)
    assert to_host(some[which]).tolist() == indices
