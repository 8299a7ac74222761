"""Kernels against published numbers and plain loops, and every override against its reference."""

import inspect
import math
import sys

import numpy
import pytest
from guard import open_guard
from xpcap.kernels.pointwise import rnn_cell, sigmoid, split_gates
from xpcap.kernels.scatter import add_rows
from xpcap.kernels.softmax import log_normalizer, softmax, softmax_cross_entropy
from xpcap.layers._sequence import Packing

from xpcap import kernels
from xpcap.backend import CPU, to_host
from xpcap.kernels import KERNELS, fastest, kernel
from xpcap.kernels.batches import next_batch
from xpcap.kernels.products import product
from xpcap.kernels.top import best_continuations, top
from xpcap.kernels.updates import loss_and_norm
from xpcap.selfcheck.cases import on_device
from xpcap.selfcheck.check import scaled_difference

RNG = numpy.random.default_rng(0)
N, H, V, M, P = 7, 5, 11, 600, 70_001


def normal(*shape):
    return RNG.standard_normal(shape)


def gates(*shape):
    return RNG.random(shape)


def unwritten(*shape):
    return numpy.full(shape, numpy.nan)


def run(version, xp, arguments):
    """Return what a kernel returns and every array it was given, as it left them."""
    returned = version(xp, **arguments)
    several = returned if isinstance(returned, tuple) else (returned,)
    return {
        **{f"returned {k}": value for k, value in enumerate(several) if value is not None},
        **{name: value for name, value in arguments.items() if hasattr(value, "shape")},
    }


FALLING = Packing(N, [N, N - 2, 1])  # captions of 1 to 3 words
ROWS = FALLING.total

ARGUMENTS = {
    "sigmoid": {"a": normal(N, H)},
    "rnn_cell": {"ax": normal(N, H), "ah": normal(N, H), "next_h": unwritten(N, H)},
    "rnn_cell_gradient": {
        "above": normal(N, H),
        "back": normal(N, H),
        "next_h": gates(N, H),
        "da": unwritten(N, H),
    },
    "lstm_cell": {
        "gates": normal(N, 4 * H),
        "ah": normal(N, 4 * H),
        "prev_c": normal(N, H),
        "next_c": unwritten(N, H),
        "tanh_c": unwritten(N, H),
        "next_h": unwritten(N, H),
    },
    "lstm_cell_gradient": {
        "above": normal(N, H),
        "back": normal(N, H),
        "dc": normal(N, H),
        "gates": gates(N, 4 * H),
        "prev_c": normal(N, H),
        "tanh_c": gates(N, H),
        "da": unwritten(N, 4 * H),
    },
    "gru_cell": {
        "gates": normal(N, 3 * H),
        "ah": normal(N, 3 * H),
        "bn": normal(H),
        "prev_h": normal(N, H),
        "ah_n": unwritten(N, H),
        "next_h": unwritten(N, H),
    },
    "gru_cell_gradient": {
        "above": normal(N, H),
        "back": normal(N, H),
        "gates": gates(N, 3 * H),
        "ah_n": normal(N, H),
        "prev_h": normal(N, H),
        "dax": unwritten(N, 3 * H),
        "dah": unwritten(N, 3 * H),
    },
    "rnn_recurrence": {
        "ax": normal(ROWS, H),
        "b": normal(H),
        "Wh": normal(H, H),
        "prev_h": gates(ROWS, H),
        "h": unwritten(ROWS, H),
        "packing": FALLING,
    },
    "rnn_recurrence_gradient": {
        "dh": normal(ROWS, H),
        "Wh": normal(H, H),
        "h": gates(ROWS, H),
        "da": unwritten(ROWS, H),
        "back": numpy.zeros((N, H)),
        "packing": FALLING,
    },
    "lstm_recurrence": {
        "gates": normal(ROWS, 4 * H),
        "b": normal(4 * H),
        "Wh": normal(H, 4 * H),
        "prev_h": gates(ROWS, H),
        "h": unwritten(ROWS, H),
        "c0": normal(N, H),
        "c": unwritten(ROWS, H),
        "tanh_c": unwritten(ROWS, H),
        "packing": FALLING,
    },
    "lstm_recurrence_gradient": {
        "dh": normal(ROWS, H),
        "Wh": normal(H, 4 * H),
        "gates": gates(ROWS, 4 * H),
        "c0": normal(N, H),
        "c": normal(ROWS, H),
        "tanh_c": gates(ROWS, H),
        "da": unwritten(ROWS, 4 * H),
        "back": numpy.zeros((N, H)),
        "packing": FALLING,
    },
    "gru_recurrence": {
        "gates": normal(ROWS, 3 * H),
        "b": normal(3 * H),
        "Wh": normal(H, 3 * H),
        "bn": normal(H),
        "prev_h": gates(ROWS, H),
        "h": unwritten(ROWS, H),
        "ah_n": unwritten(ROWS, H),
        "packing": FALLING,
    },
    "gru_recurrence_gradient": {
        "dh": normal(ROWS, H),
        "Wh": normal(H, 3 * H),
        "gates": gates(ROWS, 3 * H),
        "ah_n": normal(ROWS, H),
        "prev_h": gates(ROWS, H),
        "dax": unwritten(ROWS, 3 * H),
        "dah": unwritten(ROWS, 3 * H),
        "back": numpy.zeros((N, H)),
        "packing": FALLING,
    },
    "rnn_advance": {
        "ax": normal(V, H),
        "ah": normal(3, H),
        "prev_h": normal(3, H),
        "words": RNG.integers(V, size=N),
        "parents": RNG.integers(3, size=N),
        "next_h": unwritten(N, H),
    },
    "lstm_advance": {
        "ax": normal(V, 4 * H),
        "ah": normal(3, 4 * H),
        "prev_c": normal(3, H),
        "words": RNG.integers(V, size=N),
        "parents": RNG.integers(3, size=N),
        "next_h": unwritten(N, H),
        "next_c": unwritten(N, H),
    },
    "gru_advance": {
        "ax": normal(V, 3 * H),
        "ah": normal(3, 3 * H),
        "prev_h": normal(3, H),
        "bn": normal(H),
        "words": RNG.integers(V, size=N),
        "parents": RNG.integers(3, size=N),
        "next_h": unwritten(N, H),
    },
    "softmax": {"scores": normal(N, V)},
    "log_softmax": {"scores": normal(N, V)},
    "log_normalizer": {"scores": 20 * normal(M, V)},
    "best_continuations": {
        "values": numpy.round(normal(8, 3 * V), 1),
        "totals": numpy.round(normal(8), 1),
        "places": numpy.array([0, 1, 3, 4, 8, 9, 10, 11]),
        "images": 3,
        "width": 4,
    },
    "top": {"values": numpy.round(normal(M, V), 1), "count": 4},
    "softmax_cross_entropy": {
        "scores": normal(M, V),
        "bias": normal(V),
        "targets": RNG.integers(V, size=M),
        "scale": (RNG.random(M) < 0.7) * RNG.random(M),
        "losses": unwritten(M),
    },
    "product": {"a": normal(N, H), "b": normal(H, V), "out": unwritten(N, V)},
    "take_rows": {
        "table": normal(V, H),
        "indices": RNG.integers(V, size=M),
        "out": unwritten(M, H),
    },
    "add_rows": {
        "indices": RNG.integers(-1, V - 2, size=M),
        "rows": normal(M, H),
        "out": unwritten(V, H),
    },
    "column_sum": {"rows": normal(M, H), "out": unwritten(H)},
    "philox": {"start": 5, "count": 100, "seed": 12345678901234, "stream": 98765432109876},
    "keep_mask": {
        "threshold": 20_000,
        "seed": 2**40 + 1,
        "stream": 2**35,
        "out": numpy.zeros(200_003, bool),
    },
    "next_batch": {
        "captions": RNG.integers(3, size=(20, 5)).astype(numpy.int32),
        "image_idxs": RNG.integers(7, size=20).astype(numpy.int32),
        "order": RNG.permutation(20).astype(numpy.int32),
        "table": normal(3, 4),
        "position": numpy.array([2, 102]),
        "null": 0,
        "words": numpy.full(4 * N, -1, numpy.int32),
        "targets": numpy.full(4 * N, -1, numpy.int32),
        "weight": unwritten(4 * N),
        "images": numpy.full(N, -1, numpy.int32),
        "settings": unwritten(4),
        "streams": numpy.zeros(2, numpy.uint64),
    },
    "square_sum": {"values": normal(P), "out": unwritten(1)},
    "loss_and_norm": {
        "losses": normal(M),
        "gradients": normal(P),
        "max_norm": 3.0,
        "totals": unwritten(2),
        "settings": numpy.array([1.0, 0.1]),
    },
    "sgd_update": {"w": normal(P), "dw": normal(P), "settings": numpy.array([0.7, 0.1])},
    "momentum_update": {
        "w": normal(P),
        "dw": normal(P),
        "velocity": normal(P),
        "settings": numpy.array([0.7, 0.1]),
        "momentum": 0.9,
    },
    "rmsprop_update": {
        "w": normal(P),
        "dw": normal(P),
        "cache": gates(P),
        "settings": numpy.array([0.7, 0.1]),
        "decay_rate": 0.9,
        "epsilon": 1e-8,
    },
    "adam_update": {
        "w": normal(P),
        "dw": normal(P),
        "m": normal(P),
        "v": gates(P),
        "settings": numpy.array([0.7, 0.1, 0.3, 0.2]),
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "weight_decay": 0.01,
    },
}


def copies(backend, arguments, dtype=None):
    """Return arguments on a device, none of them the original."""
    copied = {k: v.copy() if isinstance(v, numpy.ndarray) else v for k, v in arguments.items()}
    return on_device(backend, copied, dtype)


fastest(numpy)  # registers the compiled ones, where there are any

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
    home = request.getfixturevalue("gpu") if library == "cupy" else CPU
    exact = run(made.reference, numpy, copies(CPU, arguments, numpy.float64))
    rounded = run(made.reference, numpy, copies(CPU, arguments, dtype))
    found = run(override, home.xp, copies(home, arguments, dtype))
    assert found.keys() == rounded.keys()
    for name, near in rounded.items():
        ours, true = to_host(found[name]), exact[name]
        assert ours.dtype == near.dtype
        assert ours.shape == near.shape
        if near.dtype.kind != "f":
            numpy.testing.assert_array_equal(ours, near)
            continue
        floor = 1e-7 if dtype == numpy.float32 else 5e-15  # another order of 600 additions
        limit = 2 * abs(near - true).max() + floor * max(1.0, abs(true).max())
        assert abs(ours - true).max() <= limit, name


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_change_only_what_they_write(name, xp):
    """Inputs are read alone; what is not read before it is written was NaN."""
    changed = {
        "lstm_cell": {"gates"}, "gru_cell": {"gates"}, "lstm_cell_gradient": {"dc"},
        "gru_cell_gradient": {"back"}, "softmax_cross_entropy": {"scores"},
        "sgd_update": {"w"}, "momentum_update": {"w", "velocity"},
        "rmsprop_update": {"w", "cache"}, "adam_update": {"w", "m", "v"}, "keep_mask": {"out"},
        "loss_and_norm": {"settings"},
        "rnn_recurrence": {"ax", "prev_h"}, "rnn_recurrence_gradient": {"back"},
        "lstm_recurrence": {"gates", "prev_h"}, "lstm_recurrence_gradient": {"back"},
        "gru_recurrence": {"gates", "prev_h"}, "gru_recurrence_gradient": {"back"},
        "next_batch": {"position", "words", "targets", "images", "streams"},
    }.get(name, set())  # fmt: skip
    before = ARGUMENTS[name]
    after = run(KERNELS[name], xp, {
        key: xp.array(value) if isinstance(value, numpy.ndarray) else value
        for key, value in before.items()
    })  # fmt: skip
    for key, value in before.items():
        if not isinstance(value, numpy.ndarray):
            continue
        now = to_host(after[key])
        written = key in changed or (value.dtype.kind == "f" and numpy.isnan(value).any())
        assert written == (not numpy.array_equal(now, value)), key
        assert value.dtype.kind != "f" or numpy.isfinite(now).all(), key


def extreme(name, dtype):
    """Return a kernel's arguments with magnitudes from near the smallest normal number up to 1.

    Of factors in matrix products, no two have a subnormal product: those are the processor's.
    """
    rng, exponent = numpy.random.default_rng(1), numpy.finfo(dtype).minexp + 30
    lowest = exponent / 2 + 30 if name == "product" else exponent
    scores = {"scores", "bias", "ax", "ah", "gates", "a"} - ({"a"} if name == "product" else set())
    if name.endswith("_gradient"):
        scores.remove("gates")
    found = {}
    for key, value in ARGUMENTS[name].items():
        if isinstance(value, numpy.ndarray) and value.dtype.kind == "f":
            magnitude = 2 ** rng.uniform(lowest, 0, value.shape)
            if key in scores:
                magnitude = rng.choice([0.3, 30, 88, 100, 700, 800], value.shape) * rng.uniform(
                    0.9, 1.1, value.shape
                )
            if key not in ("scale", "settings", "weight"):
                value = magnitude * numpy.where(value < 0, -1, 1)
        found[key] = value
    if name in ("softmax", "log_softmax", "log_normalizer", "softmax_cross_entropy"):
        found["scores"] = found["scores"] * rng.choice([0.01, 1.0], (len(found["scores"]), 1))
    return found


def subnormal(array):
    values = to_host(array)
    return (abs(values) < numpy.finfo(values.dtype).tiny) & (values != 0)


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
@pytest.mark.parametrize("name", KERNELS)
def test_no_kernel_returns_a_subnormal_number(name, backend, dtype):
    for xp in {backend.xp.__name__: backend.xp, "fastest": fastest(backend.xp)}.values():
        for version in (KERNELS[name], KERNELS[name].reference):
            arguments = copies(backend, extreme(name, dtype), dtype)
            for key, value in run(version, xp, arguments).items():
                product = name.endswith("recurrence_gradient") and key == "back"
                if value.dtype.kind == "f" and not product:
                    assert not subnormal(value).any(), (xp.__name__, key)


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
def test_powers_are_zero_from_a_bound_on(xp, dtype):
    """Of words 2^-80 times as likely as the likeliest, or 2^-918 times in double precision."""
    bits = {numpy.float32: 80, numpy.float64: 918}[dtype]
    scores = math.log(2) * numpy.array([[0, -bits + 0.01, -bits - 0.01, -bits - 50, -1]], dtype)
    gradient, losses = xp.array(scores), xp.asarray(numpy.zeros(1, dtype))
    bias, scale = xp.asarray(numpy.zeros(5, dtype)), xp.asarray(numpy.ones(1, dtype))
    of = xp.asarray(numpy.array([4]))
    softmax_cross_entropy(fastest(xp), gradient, bias, of, scale, losses)
    assert (to_host(gradient) != 0).tolist() == [[True, True, False, False, True]]
    assert (to_host(softmax(xp, xp.asarray(scores))) != 0).tolist() == [
        [True, True, False, False, True]
    ]


@pytest.mark.parametrize(
    ("name", "moment"),
    [("momentum_update", "velocity"), ("rmsprop_update", "cache"), ("adam_update", "m"),
     ("adam_update", "v")],
)  # fmt: skip
def test_what_a_rule_remembers_of_a_word_decays_to_zero(name, moment, backend):
    """Not to the subnormal number whose 0.9-fold rounds to itself; other words lose nothing."""
    arguments = {**ARGUMENTS[name], "dw": numpy.zeros(P)}
    if moment == "v":
        arguments["beta2"] = 0.9
    arguments[moment] = numpy.where(numpy.arange(P) % 2, 1e-37, 1e-3)
    arguments = copies(backend, arguments, numpy.float32)
    for _ in range(60):
        KERNELS[name](fastest(backend.xp), **arguments)
    found = to_host(arguments[moment])
    assert (found[1::2] == 0).all()
    numpy.testing.assert_allclose(found[::2], 1e-3 * 0.9**60, rtol=1e-4)


@pytest.mark.parametrize("rows", range(6))
def test_products_of_few_rows(rows, xp):
    """One by one on the CPU; of views too."""
    a, b = normal(H, 6)[:, :rows].T, normal(V, H).T
    out = xp.asarray(unwritten(rows, V))
    product(fastest(xp), xp.asarray(a), xp.asarray(b), out)
    numpy.testing.assert_allclose(to_host(out), a @ b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_agree_with_numpy(name, backend):
    arguments = ARGUMENTS[name]
    expected = run(KERNELS[name].reference, numpy, copies(CPU, arguments))
    found = run(KERNELS[name], backend.xp, copies(backend, arguments))
    for key, theirs in expected.items():
        ours = to_host(found[key])
        assert ours.dtype == theirs.dtype
        assert scaled_difference(ours.astype(float), theirs.astype(float)) < 1e-10


def test_a_missing_compiler_is_looked_for_once(monkeypatch):
    """Each attempt compiles a file of Python, which takes as long as a step of decoding."""
    kernels._compiled_numpy.cache_clear()
    monkeypatch.setitem(sys.modules, "xpcap.kernels.compiled", None)
    try:
        assert fastest(numpy) is fastest(numpy) is numpy
        assert kernels._compiled_numpy.cache_info().misses == 1
    finally:
        kernels._compiled_numpy.cache_clear()


VERSIONS = [numpy, fastest(numpy)]


@pytest.mark.parametrize("xp", VERSIONS)
@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
def test_continuations_against_a_sort_of_all(xp, dtype):
    """Many equal sums; of words that are forbidden, and where a beam has less than is asked for."""
    width, words = 4, 40
    values = numpy.round(normal(9, words), 1).astype(dtype)
    values[RNG.random(values.shape) < 0.3] = -numpy.inf
    values[3, 2:], values[4:6] = -numpy.inf, -numpy.inf
    totals = numpy.round(normal(9), 1).astype(dtype)
    places = numpy.array([0, 1, 2, 4, 8, 13, 20, 22, 23])
    found, parents, said = best_continuations(xp, values, totals, places, 7, width)
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


@pytest.mark.parametrize("xp", VERSIONS)
def test_normalizers_of_large_and_forbidden_scores(xp):
    scores = numpy.array([[1e4, 1e4, -1e4], [-1e4, -numpy.inf, -1e4], [0, 1, 2]], numpy.float32)
    expected = [1e4 + math.log(2), -1e4 + math.log(2), math.log(1 + math.e + math.e**2)]
    numpy.testing.assert_allclose(log_normalizer(xp, scores), expected, rtol=2e-7)


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


@pytest.mark.parametrize("scale_of_scores", [1e4, -1e4])
def test_extreme_scores_stay_finite(scale_of_scores, xp):
    large = scale_of_scores
    scores = xp.asarray(numpy.array([[large, 0.0, -large], [large, large, large]]))
    assert numpy.isfinite(to_host(softmax(xp, scores))).all()
    targets, scale = xp.asarray(numpy.array([2, 1])), xp.asarray(numpy.ones(2))
    losses, bias = xp.asarray(numpy.empty(2)), xp.asarray(numpy.zeros(3))
    softmax_cross_entropy(xp, scores, bias, targets, scale, losses)
    expected = (2e4 if scale_of_scores > 0 else 0.0) + math.log(3)
    assert float(losses.sum()) == pytest.approx(expected, rel=1e-14)
    assert numpy.isfinite(to_host(scores)).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_does_not_count_is_zero_whatever_it_holds(bad, xp):
    scores = xp.asarray(numpy.array([[0.0, bad, 1.0], [0.0, 0.0, 0.0]]))
    targets, scale = xp.asarray(numpy.array([2, 1])), xp.asarray(numpy.array([0.0, 2.0]))
    losses, bias = xp.asarray(numpy.empty(2)), xp.asarray(numpy.zeros(3))
    with numpy.errstate(invalid="ignore"):
        softmax_cross_entropy(xp, scores, bias, targets, scale, losses)
    numpy.testing.assert_allclose(to_host(losses), [0.0, 2 * math.log(3)], rtol=1e-15)
    expected = [[0.0, 0.0, 0.0], [2 / 3, -4 / 3, 2 / 3]]
    numpy.testing.assert_allclose(to_host(scores), expected, rtol=1e-15)


@pytest.mark.parametrize(("words", "bad"), [(6, 3), (300, 280), (1004, 700)])
def test_a_score_that_is_nan_makes_the_loss_nan(words, bad, xp):
    scores = xp.zeros((2, words), dtype=numpy.float32)
    scores[0, bad] = math.nan
    bias, targets = xp.zeros(words, dtype=numpy.float32), xp.asarray(numpy.array([1, 1]))
    scale, losses = xp.ones(2, dtype=numpy.float32), xp.zeros(2, dtype=numpy.float32)
    softmax_cross_entropy(fastest(xp), scores, bias, targets, scale, losses)
    found = to_host(losses)
    assert math.isnan(found[0])
    assert float(found[1]) == pytest.approx(math.log(words), rel=1e-6)


def test_add_rows_adds_repeated_indices(xp):
    indices, rows = numpy.array([2, -1, 0, 2, 2]), numpy.arange(-2, 8.0).reshape(5, 2)
    rows[[0, 1]] = rows[[1, 0]]  # the row of -1 is [-2, -1]
    out = xp.asarray(unwritten(4, 2))
    add_rows(xp, xp.asarray(indices), xp.asarray(rows), out)
    assert to_host(out).tolist() == [[2.0, 3.0], [0.0, 0.0], [10.0, 13.0], [0.0, 0.0]]


@pytest.mark.parametrize(("max_norm", "scale"), [(None, 1.0), (5.0, 1.0), (0.5, 0.1)])
def test_loss_norm_and_clipping_written_out(xp, max_norm, scale):
    losses, gradients = xp.asarray(numpy.array([1.0, 2.5])), xp.asarray(numpy.array([3.0, 4.0]))
    totals, settings = xp.asarray(unwritten(2)), xp.asarray(numpy.array([1.0, 0.3]))
    loss_and_norm(fastest(xp), losses, gradients, max_norm, totals, settings)
    assert to_host(totals).tolist() == [3.5, 5.0]
    assert to_host(settings).tolist() == pytest.approx([scale, 0.3])


def test_clipping_passes_on_a_norm_that_is_not_a_number(xp):
    gradients = xp.asarray(numpy.array([numpy.nan, 1.0]))
    totals, settings = xp.asarray(numpy.zeros(2)), xp.asarray(numpy.array([1.0, 0.3]))
    loss_and_norm(fastest(xp), xp.asarray(numpy.zeros(1)), gradients, 1.0, totals, settings)
    assert numpy.isnan([float(totals[1]), float(settings[0])]).all()


def test_add_rows_of_nothing(xp):
    out = xp.asarray(unwritten(2, 3))
    nothing = xp.asarray(numpy.zeros(0, numpy.int64)), xp.asarray(numpy.zeros((0, 3)))
    add_rows(xp, *nothing, out)
    assert to_host(out).tolist() == [[0.0] * 3] * 2


def test_next_batch_written_out(xp):
    """The last of three batches of an epoch of 8 captions: two captions and an empty place."""
    captions = numpy.array([[1, k, 2, 0] if k % 2 else [1, k, k, 2] for k in range(4, 12)])
    order = numpy.array([7, 6, 5, 4, 3, 2, 1, 0])
    host = [captions, 10 * numpy.arange(8), order]
    arrays = [xp.asarray(a.astype(numpy.int32)) for a in host]
    table, position = xp.asarray(numpy.arange(6.0).reshape(3, 2)), xp.asarray(numpy.array([2, 12]))
    words, targets = (xp.asarray(numpy.zeros(9, numpy.int32)) for _ in range(2))
    weight, images = xp.asarray(unwritten(9)), xp.asarray(numpy.zeros(3, numpy.int32))
    settings, streams = xp.asarray(unwritten(2)), xp.asarray(numpy.zeros(2, numpy.uint64))
    next_batch(xp, *arrays, table, position, 0, words, targets, weight, images, settings, streams)
    assert to_host(words).reshape(3, 3).tolist() == [[1, 1, -1], [5, 4, -1], [-1, 4, -1]]
    assert to_host(targets).reshape(3, 3)[:, :2].tolist() == [[5, 4], [2, 4], [0, 2]]
    assert to_host(weight).reshape(3, 3).tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0.5, 0]]
    assert to_host(images)[:2].tolist() == [10, 0]
    assert to_host(settings).tolist() == [4.0, 5.0]
    assert to_host(streams).tolist() == [24, 25]
    assert to_host(position).tolist() == [3, 13]


def test_next_batch_keeps_padding_before_the_last_target(xp):
    captions, zero = numpy.array([[1, 0, 3, 0, 0], [1, 0, 0, 0, 0]], numpy.int32), numpy.zeros
    words, targets, images = (xp.asarray(zero(size, numpy.int32)) for size in (8, 8, 2))
    next_batch(
        xp, xp.asarray(captions), xp.asarray(zero(2, numpy.int32)),
        xp.asarray(numpy.arange(2, dtype=numpy.int32)), xp.asarray(zero((1, 1))),
        xp.asarray(zero(2, numpy.int64)), 0, words, targets, xp.asarray(zero(8)), images,
        xp.asarray(zero(1)), xp.asarray(zero(2, numpy.uint64)),
    )  # fmt: skip
    assert to_host(words).reshape(4, 2).T.tolist() == [[1, 0, -1, -1], [-1, -1, -1, -1]]


def test_the_compiled_kernels_are_left_out_where_they_shall_be(monkeypatch):
    pytest.importorskip("numba")
    assert fastest(numpy).__name__ == "numba"
    assert fastest(numpy).sqrt is numpy.sqrt
    monkeypatch.setenv("XPCAP_COMPILED", "0")
    assert fastest(numpy) is numpy
    assert fastest(open_guard().xp).__name__ == "guard"


def test_compiled_kernels_leave_the_rest_to_numpy(monkeypatch):
    """Double precision, and arrays that are not contiguous."""
    pytest.importorskip("numba")
    xp = fastest(numpy)
    wide = normal(N, 3 * H).astype(numpy.float32)
    for a in (normal(N, H), wide[:, :H], numpy.asfortranarray(wide)):
        out = numpy.empty(a.shape, a.dtype)
        rnn_cell(xp, a, a, out)
        expected = numpy.empty(a.shape, a.dtype)
        rnn_cell.overrides["numpy"](numpy, a, a, expected)
        numpy.testing.assert_array_equal(out, expected)


def test_split_gates_are_views(xp):
    wide = xp.asarray(numpy.arange(12.0).reshape(2, 6))
    parts = split_gates(wide, 3)
    assert [to_host(part).tolist() for part in parts] == [
        [[0.0, 1.0], [6.0, 7.0]], [[2.0, 3.0], [8.0, 9.0]], [[4.0, 5.0], [10.0, 11.0]],
    ]  # fmt: skip
    parts[1][:] = 0.0
    assert float(wide.sum()) == 66.0 - 22.0


@pytest.mark.parametrize("count", [1, 2, 5, 16, 17, 40])
def test_the_largest_of_each_row(backend, count):
    """Equal ones in their order, by sorting and by looking again and again."""
    values = numpy.round(numpy.random.default_rng(4).standard_normal((30, 40)), 1)
    found, places = top(backend.xp, backend.to_device(values), count)
    for row, best, where in zip(values, to_host(found), to_host(places), strict=True):
        order = sorted(range(40), key=lambda k: (-row[k], k))[:count]
        assert where.tolist() == order
        assert best.tolist() == row[order].tolist()


def test_minus_infinity_may_be_among_the_largest():
    values = numpy.array([[1.0, -numpy.inf, -numpy.inf]])
    assert top(numpy, values, 2)[0].tolist() == [[1.0, -numpy.inf]]
