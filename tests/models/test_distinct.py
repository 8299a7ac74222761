import numpy

from xpcap.backend import to_host
from xpcap.models.distinct import on_distinct


def test_each_distinct_index_is_computed_once_on_the_host():
    asked = []

    def function(indices):
        asked.extend(indices.tolist())
        return numpy.stack([indices, 2 * indices], axis=1)

    found = on_distinct(numpy, numpy.array([5, 3, 5, 5, 0, 3]), function)
    assert found.tolist() == [[5, 10], [3, 6], [5, 10], [5, 10], [0, 0], [3, 6]]
    assert sorted(asked) == [0, 3, 5]


def test_it_is_the_same_on_every_backend(backend):
    indices = backend.to_device(numpy.array([4, 1, 4]))
    table = backend.to_device(numpy.arange(15.0).reshape(5, 3))
    found = on_distinct(backend.xp, indices, lambda some: table[some])
    numpy.testing.assert_array_equal(to_host(found), numpy.arange(15.0).reshape(5, 3)[[4, 1, 4]])
