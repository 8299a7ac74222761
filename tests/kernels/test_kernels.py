"""Kernels against published numbers and plain loops, and every override against its reference."""

import inspect
import math

import numpy
import pytest

import xpcap.layers  # noqa: F401  (its modules register the kernels)
from xpcap.backend import CPU, to_host
from xpcap.kernels import KERNELS, kernel
from xpcap.kernels.pointwise import sigmoid, split_gates
from xpcap.kernels.random import keep_mask, philox
from xpcap.kernels.scatter import add_rows
from xpcap.kernels.softmax import softmax, softmax_cross_entropy
from xpcap.selfcheck.cases import as_tuple, on_device
from xpcap.selfcheck.check import scaled_difference

RNG = numpy.random.default_rng(0)
N, H, V, M = 7, 5, 11, 600


def normal(*shape):
    return RNG.standard_normal(shape)


def gates(*shape):
    return RNG.random(shape)


ARGUMENTS = {
    "sigmoid": {"a": normal(N, H)},
    "rnn_cell": {"a": normal(N, H)},
    "rnn_cell_gradient": {"dnext_h": normal(N, H), "next_h": gates(N, H)},
    "lstm_cell": {"a": normal(N, 4 * H), "prev_c": normal(N, H)},
    "lstm_cell_gradient": {
        "dnext_h": normal(N, H),
        "dnext_c": normal(N, H),
        "gates": gates(N, 4 * H),
        "prev_c": normal(N, H),
        "tanh_c": gates(N, H),
    },
    "gru_cell": {"ax": normal(N, 3 * H), "ah": normal(N, 3 * H), "prev_h": normal(N, H)},
    "gru_cell_gradient": {
        "dnext_h": normal(N, H),
        "gates": gates(N, 3 * H),
        "ah_n": normal(N, H),
        "prev_h": normal(N, H),
    },
    "softmax": {"scores": normal(N, V)},
    "softmax_cross_entropy": {
        "scores": normal(M, V),
        "targets": RNG.integers(V, size=M),
        "mask": RNG.random(M) < 0.7,
    },
    "add_rows": {"indices": RNG.integers(V - 2, size=M), "rows": normal(M, H), "size": V},
    "philox": {"start": 5, "count": 100, "seed": 12345678901234, "stream": 98765432109876},
    "keep_mask": {"size": 200_003, "threshold": 20_000, "seed": 2**40 + 1, "stream": 2**35},
}
OVERRIDES = [
    pytest.param(made, override, library, id=f"{name}-{library}")
    for name, made in KERNELS.items()
    for library, override in made.overrides.items()
]


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_has_arguments(name):
    parameters = list(inspect.signature(KERNELS[name].reference).parameters)
    assert ["xp", *ARGUMENTS[name]] == parameters


@pytest.mark.parametrize(("made", "override", "library"), OVERRIDES)
def test_overrides_have_the_signature_of_their_reference(made, override, library):
    ours, reference = inspect.signature(override), inspect.signature(made.reference)
    assert list(ours.parameters) == list(reference.parameters)
    for one, other in zip(ours.parameters.values(), reference.parameters.values(), strict=True):
        assert (one.kind, one.default) == (other.kind, other.default)


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
@pytest.mark.parametrize(("made", "override", "library"), OVERRIDES)
def test_overrides_agree_with_their_reference(made, override, library, dtype, request):
    """Not further from the reference in float64 than twice what its own rounding costs."""
    arguments = ARGUMENTS[made.__name__]
    exact = as_tuple(made.reference(numpy, **arguments))
    rounded = as_tuple(made.reference(numpy, **on_device(CPU, arguments, dtype)))
    home = CPU if library == "numpy" else request.getfixturevalue("gpu")
    there = on_device(home, arguments, dtype)
    before = [to_host(value).copy() for value in there.values() if hasattr(value, "shape")]
    found = as_tuple(override(home.xp, **there))
    for ours, near, true in zip(found, rounded, exact, strict=True):
        assert ours.dtype == near.dtype
        assert ours.shape == near.shape
        if near.dtype.kind != "f":
            numpy.testing.assert_array_equal(to_host(ours), near)
            continue
        floor = 1e-7 if dtype == numpy.float32 else 1e-15
        limit = 2 * abs(near - true).max() + floor * max(1.0, abs(true).max())
        assert abs(to_host(ours) - true).max() <= limit
    after = [to_host(value) for value in there.values() if hasattr(value, "shape")]
    for now, then in zip(after, before, strict=True):
        numpy.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_agree_with_numpy(name, backend):
    arguments = ARGUMENTS[name]
    expected = as_tuple(KERNELS[name].reference(numpy, **arguments))
    found = as_tuple(KERNELS[name](backend.xp, **on_device(backend, arguments)))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert scaled_difference(ours.astype(float), theirs.astype(float)) < 1e-10


def test_the_version_is_chosen_by_the_namespaces_name():
    @kernel
    def chosen(xp):
        return "reference"

    try:

        @chosen.override("numpy")
        def fast(xp):
            return "override"

        class Other:
            __name__ = "other"

        assert chosen(numpy) == "override"
        assert chosen(Other()) == "reference"
        assert chosen.reference(numpy) == "reference"
        assert KERNELS["chosen"] is chosen
    finally:
        del KERNELS["chosen"]


# The known answers of Random123, file kat_vectors, philox4x32 with 10 rounds.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_known_answers(counter, key, answer, xp):
    c = [int(word, 16) for word in counter.split()]
    k = [int(word, 16) for word in key.split()]
    words = philox(
        xp, start=c[0] | c[1] << 32, count=1, seed=k[0] | k[1] << 32, stream=c[2] | c[3] << 32
    )
    assert words.shape == (1, 4)
    assert [f"{word:08x}" for word in to_host(words)[0].tolist()] == answer.split()


def test_philox_goes_through_the_counters(xp):
    many = to_host(philox(xp, 2**32 - 2, 4, seed=3, stream=4))
    one_by_one = [to_host(philox(xp, 2**32 - 2 + k, 1, seed=3, stream=4))[0] for k in range(4)]
    numpy.testing.assert_array_equal(many, one_by_one)
    assert len(numpy.unique(many)) == 16


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 65_536, 65_537])
def test_keep_mask_takes_eight_elements_of_each_counter(size, xp):
    """Element e is half e % 8 of counter e // 8: lower halves of the four words, then upper."""
    threshold = 30_000
    found = to_host(keep_mask(xp, size, threshold, 17, 5))
    assert found.dtype == bool
    assert found.shape == (size,)
    for e in {0, 3, 4, 7, 8, size // 2, size - 1} & set(range(size)):
        word = int(philox(numpy, e // 8, 1, 17, 5)[0, e % 4])
        half = word >> 16 if e % 8 >= 4 else word & 0xFFFF
        assert found[e] == (half >= threshold)


def test_keep_mask_is_a_beginning_of_every_longer_one(xp):
    short, long = keep_mask(xp, 1001, 32_768, 1, 2), keep_mask(xp, 100_000, 32_768, 1, 2)
    numpy.testing.assert_array_equal(to_host(short), to_host(long)[:1001])


def test_sigmoid(xp):
    a = [-1e4, -30.0, -1.0, 0.0, 0.5, 30.0, 1e4]
    expected = [0.0 if v < -700 else 1 / (1 + math.exp(-v)) for v in a]
    found = to_host(sigmoid(xp, xp.asarray(numpy.array(a))))
    numpy.testing.assert_allclose(found, expected, rtol=0, atol=2e-16)


def test_softmax(xp):
    scores = RNG.standard_normal((3, 4))
    found = to_host(softmax(xp, xp.asarray(scores)))
    for n in range(3):
        total = sum(math.exp(s) for s in scores[n])
        expected = [math.exp(s) / total for s in scores[n]]
        numpy.testing.assert_allclose(found[n], expected, rtol=1e-13)


def test_softmax_of_three_axes_is_over_the_last(xp):
    scores = RNG.standard_normal((2, 3, 4))
    found = to_host(softmax(xp, xp.asarray(scores)))
    numpy.testing.assert_allclose(found.sum(axis=-1), numpy.ones((2, 3)), rtol=1e-13)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_scores_stay_finite(scale, xp):
    scores = xp.asarray(numpy.array([[scale, 0.0, -scale], [scale, scale, scale]]))
    assert numpy.isfinite(to_host(softmax(xp, scores))).all()
    targets, mask = xp.asarray(numpy.array([2, 1])), xp.asarray(numpy.array([True, True]))
    loss, dscores = softmax_cross_entropy(xp, scores, targets, mask)
    expected = (2e4 if scale > 0 else 0.0) + math.log(3)
    assert float(loss) == pytest.approx(expected, rel=1e-14)
    assert numpy.isfinite(to_host(dscores)).all()


def test_add_rows_adds_repeated_indices(xp):
    indices = numpy.array([2, 0, 2, 2])
    rows = numpy.arange(8.0).reshape(4, 2)
    found = to_host(add_rows(xp, xp.asarray(indices), xp.asarray(rows), 4))
    assert found.tolist() == [[2.0, 3.0], [0.0, 0.0], [10.0, 13.0], [0.0, 0.0]]


def test_add_rows_of_nothing(xp):
    nothing = xp.asarray(numpy.zeros(0, numpy.int64)), xp.asarray(numpy.zeros((0, 3)))
    assert to_host(add_rows(xp, *nothing, 2)).tolist() == [[0.0] * 3] * 2


def test_split_gates_are_views(xp):
    wide = xp.asarray(numpy.arange(12.0).reshape(2, 6))
    parts = split_gates(wide, 3)
    assert [to_host(part).tolist() for part in parts] == [
        [[0.0, 1.0], [6.0, 7.0]], [[2.0, 3.0], [8.0, 9.0]], [[4.0, 5.0], [10.0, 11.0]],
    ]  # fmt: skip
    parts[1][:] = 0.0
    assert float(wide.sum()) == 66.0 - 22.0
