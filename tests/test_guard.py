"""The guard's own rules: a guard that lets everything pass would prove nothing."""

import math
import operator

import guard
import numpy
import pytest
from guard import counters, xp

from xpcap.backend import is_host, namespace, to_host
from xpcap.errors import BackendError

HOST = numpy.arange(6.0).reshape(2, 3)


@pytest.fixture
def x():
    array = xp.asarray(HOST)
    counters.reset()
    return array


@pytest.mark.parametrize(
    "function",
    [
        numpy.tanh, numpy.sum, numpy.asarray, numpy.array, numpy.zeros_like, numpy.concatenate,
        numpy.ascontiguousarray, numpy.shape, numpy.float64, numpy.array_equal,
    ],
)  # fmt: skip
def test_numpy_functions_refuse_guard_arrays(function, x):
    arguments = (x, x) if function is numpy.array_equal else (x,)
    with pytest.raises(TypeError):
        function(*arguments)


def test_numpy_refuses_guard_arrays_in_a_list(x):
    with pytest.raises(TypeError):
        numpy.asarray([x, x])


@pytest.mark.parametrize("operate", [operator.add, operator.mul, operator.eq, operator.lt])
def test_host_arrays_do_not_mix(operate, x):
    for pair in [(x, HOST), (HOST, x), (x, HOST.tolist()), (HOST.tolist(), x)]:
        with pytest.raises(TypeError):
            operate(*pair)


def test_host_arrays_do_not_mix_in_products_calls_and_assignments(x):
    host = HOST.copy()
    with pytest.raises(TypeError):
        x @ host.T
    with pytest.raises(TypeError):
        host.T @ x
    with pytest.raises(TypeError):
        x += host
    with pytest.raises(TypeError):
        host += x
    with pytest.raises(TypeError):
        x[0] = host[0]
    with pytest.raises(TypeError):
        x[0] = [1.0, 2.0, 3.0]
    with pytest.raises(TypeError):
        host[0] = x[0]
    for call in (
        lambda: xp.maximum(x, host),
        lambda: xp.where(x > 0, x, host),
        lambda: xp.concatenate([x, host]),
        lambda: xp.tanh(host),
        lambda: xp.tanh([1.0, 2.0]),
        lambda: xp.maximum(x, [1.0, 2.0, 3.0]),
        lambda: xp.asarray([x, host]),
        lambda: x.dot(host.T),
    ):
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize("index", [numpy.array([0, 1]), [0, 1], (slice(None), numpy.array([0]))])
def test_host_index_arrays(index, x):
    with pytest.raises(TypeError):
        x[index]
    with pytest.raises(TypeError):
        x[index] = 0.0


def test_guard_array_does_not_index_a_host_array():
    with pytest.raises(TypeError):
        HOST[xp.asarray(numpy.array([0, 1]))]


@pytest.mark.parametrize("name", ["fromiter", "vectorize", "random", "linalg", "nditer", "__all__"])
def test_unknown_names(name):
    with pytest.raises(AttributeError):
        getattr(xp, name)


@pytest.mark.parametrize(
    "name", ["__array_interface__", "__array_struct__", "__dlpack__", "ctypes", "data", "tobytes"]
)
def test_arrays_show_no_memory(name, x):
    with pytest.raises(AttributeError):
        getattr(x, name)


@pytest.mark.parametrize("keyword", ["initial", "where"])
def test_keywords_that_cupy_lacks(keyword, x):
    with pytest.raises(TypeError):
        x.max(**{keyword: 0.0})
    with pytest.raises(TypeError):
        xp.max(x, **{keyword: 0.0})


def test_floating_dtypes_do_not_mix():
    single, double = xp.ones((2, 2), dtype=numpy.float32), xp.ones((2, 2), dtype=numpy.float64)
    whole = xp.ones((2, 2), dtype=numpy.int64)
    for call in (
        lambda: single + double,
        lambda: single @ double,
        lambda: single * double.sum(),
        lambda: single * numpy.float64(2),
        lambda: single * whole,
        lambda: xp.maximum(single, double),
        lambda: xp.concatenate([single, double]),
        lambda: xp.where(single > 0, single, double),
        lambda: operator.setitem(single, 0, double[0]),
        lambda: operator.iadd(single, double),
    ):
        with pytest.raises(TypeError):
            call()


def test_what_keeps_the_dtype_is_allowed():
    single = xp.ones((2, 2), dtype=numpy.float32)
    for value in (
        single * 2.5,
        2 * single,
        single * numpy.float32(2),
        single * single.sum(),
        single * (single > 0),
        xp.where(single > 0, single, 0.0),
        single.mean(axis=0),
        single**2,
        -single,
    ):
        assert value.dtype == numpy.float32
    assert single.astype(numpy.float64).dtype == numpy.float64
    assert (single > 0).dtype == bool


@pytest.mark.parametrize(
    "read",
    [
        lambda x: float(x[0, 0]), lambda x: int(x[0, 0]), lambda x: bool(x[0, 0]),
        lambda x: x[0, 0].item(), lambda x: x.tolist(), lambda x: list(x), lambda x: xp.asnumpy(x),
        lambda x: to_host(x), lambda x: math.sqrt(x[0, 0]), lambda x: x[x > 1], lambda x: repr(x),
        lambda x: xp.nonzero(x), lambda x: xp.where(x), lambda x: f"{x}",
        lambda x: HOST.T[xp.argmax(x[0])], lambda x: range(xp.argmax(x[0])),
    ],
)  # fmt: skip
def test_synchronizations_are_counted(read, x):
    read(x)
    assert counters.synchronizations == 1


def test_computing_does_not_synchronize(x):
    y = xp.tanh(x @ x.T).sum(axis=0) + len(x) + x.shape[0] + x.size
    y[xp.asarray(numpy.array([0]))] = 1.0
    x[x > 1] = 0.0
    y += x.max()
    assert counters.synchronizations == 0
    counters.synchronizations = 3
    counters.reset()
    assert counters.synchronizations == 0


def test_large_arrays_are_counted():
    counters.reset(large_bytes=800)
    large = xp.zeros(100)
    small = xp.zeros(99)
    assert counters.large_arrays == 1
    assert large.reshape(10, 10)[2:].T.shape == (10, 8)
    large[:] = 1.0
    large += 1.0
    xp.maximum(large, 0.0, out=large)
    small + small
    assert counters.large_arrays == 1
    large * 2 + 1
    xp.tanh(large)
    assert counters.large_arrays == 4
    counters.reset()
    assert counters.large_arrays == 0


def test_values_are_those_of_numpy(x):
    indices = numpy.array([1, 0, 1])
    device = xp.asarray(indices)
    for ours, theirs in [
        (x[device], HOST[indices]),
        (x[device, device], HOST[indices, indices]),
        (x[:, 1:], HOST[:, 1:]),
        (x[..., None], HOST[..., None]),
        (x[x > 2], HOST[HOST > 2]),
        (2 - x, 2 - HOST),
        (1 / (x + 1), 1 / (HOST + 1)),
        (x.T @ x, HOST.T @ HOST),
        (x.transpose(1, 0).reshape(-1), HOST.T.reshape(-1)),
        (xp.stack([x, x], axis=1), numpy.stack([HOST, HOST], axis=1)),
        (xp.tensordot(x, x, axes=([1], [1])), HOST @ HOST.T),
        (abs(-x), HOST),
        (x.argmax(axis=1), HOST.argmax(axis=1)),
        (xp.split(x, 3, axis=1)[2], HOST[:, 2:]),
        ((x > 1) & ~(x > 4), (HOST > 1) & ~(HOST > 4)),
    ]:
        numpy.testing.assert_array_equal(xp.asnumpy(ours), theirs)


def test_memory_is_not_shared_with_the_host():
    host = HOST.copy()
    x = xp.asarray(host)
    host[0, 0] = 99.0
    assert float(x[0, 0]) == 0.0
    xp.asnumpy(x)[0, 0] = 99.0
    assert float(x[0, 0]) == 0.0
    assert xp.asarray(x) is x


def test_views_know_their_base(x):
    assert x[0].base is x
    assert x.T[1].base is x
    assert (x + 1).base is None
    x[0][:] = 7.0
    assert to_host(x)[0].tolist() == [7.0, 7.0, 7.0]


def test_empty_is_spoilt():
    assert numpy.isnan(to_host(xp.empty((2, 2)))).all()
    assert numpy.isnan(to_host(xp.empty_like(xp.ones(3, dtype=numpy.float32)))).all()
    assert (to_host(xp.empty(2, dtype=numpy.int32)) < 0).all()


def test_the_guard_is_a_namespace(x):
    assert namespace(x, 1.0, None) is xp
    assert not is_host(xp)
    with pytest.raises(BackendError, match="numpy and guard"):
        namespace(HOST, x)
    assert guard.open_guard().to_device(HOST)[1, 2].item() == 5.0


def test_names_are_cupys():
    cupy = pytest.importorskip("cupy")
    names = guard.CREATION | guard.UFUNCS | guard.FUNCTIONS | guard.SYNCHRONIZING | guard.CONSTANTS
    for name in names | {"array", "asarray", "asnumpy", "ndarray"}:
        assert hasattr(cupy, name), name
        getattr(xp, name)
    for name in guard.METHODS | guard.ATTRIBUTES | {"T", "base", "item", "tolist"}:
        assert hasattr(cupy.ndarray, name), name
    for name in guard.BINARY:
        assert hasattr(cupy.ndarray, f"__{name}__"), name
    for name in guard.UFUNCS:
        assert isinstance(getattr(cupy, name), cupy.ufunc), name
