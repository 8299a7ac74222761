"""Operations against published numbers and plain loops, and each version against its reference."""

import importlib
import inspect
import sys

import numpy
import pytest
from guard import open_guard

from xpcap import kernels
from xpcap.backend import CPU, to_host
from xpcap.kernels import fastest
from xpcap.layers.affine import product
from xpcap.layers.embedding import add_rows
from xpcap.layers.rnn import rnn_cell
from xpcap.operations import OPERATIONS, Accelerated, Operation
from xpcap.selfcheck.cases import on_device, scaled_difference

RNG = numpy.random.default_rng(0)
N, H, V, M, P = 7, 5, 11, 600, 70_001
IMAGES, L, D = 4, 6, 8


def normal(*shape):
    return RNG.standard_normal(shape)


def gates(*shape):
    return RNG.random(shape)


def unwritten(*shape):
    return numpy.full(shape, numpy.nan)


def regions():
    """Draw regions of images, of which each lacks one more, and the last all."""
    found = normal(IMAGES, L, D)
    for n, of_image in enumerate(found):
        of_image[: n * L // (IMAGES - 1)] = 0
    return found


REGIONS = regions()
PRESENT = (REGIONS != 0).any(axis=2)
ATTENTION = {"query": normal(N, H), "keys": normal(IMAGES, L, H), "values": normal(IMAGES, L, D)}
LOOKING = {
    "present": PRESENT,
    "image": RNG.integers(IMAGES, size=N),
    "weights": unwritten(N, L),
    "context": unwritten(N, D),
}
FROM_ABOVE = {"dcontext": normal(3, D), "dweights": normal(3, L), "query": normal(3, H)}
FROM_ABOVE |= {"keys": ATTENTION["keys"], "values": ATTENTION["values"]}
GRADIENTS = {"weights": gates(3, L), "dquery": unwritten(3, H)}
GRADIENTS |= {"dkeys": normal(IMAGES, L, H), "dvalues": normal(IMAGES, L, D)}

G, A, T = 3, 2, 5
CAUSAL = numpy.tri(T, L, dtype=bool)[None, None]
SOME = RNG.random((G, 1, 1, L)) < 0.6
SOME[1] = False  # of a row of scores nothing is left


def run(version, xp, arguments):
    """Return what an operation returns and every array it was given, as it left them."""
    returned = version(xp, **arguments)
    several = returned if isinstance(returned, tuple) else (returned,)
    return {
        **{f"returned {k}": value for k, value in enumerate(several) if value is not None},
        **{name: value for name, value in arguments.items() if hasattr(value, "shape")},
    }


ARGUMENTS = {
    "rnn_cell": {"gates": normal(N, H), "ah": normal(N, H), "h": unwritten(N, H)},
    "rnn_cell_gradient": {
        "above": normal(N, H),
        "back": normal(N, H),
        "h": gates(N, H),
        "da": unwritten(N, H),
    },
    "lstm_cell": {
        "gates": normal(N, 4 * H),
        "ah": normal(N, 4 * H),
        "prev_c": normal(N, H),
        "c": unwritten(N, H),
        "tanh_c": unwritten(N, H),
        "h": unwritten(N, H),
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
        "h": unwritten(N, H),
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
    "dot_product_attention": {**ATTENTION, **LOOKING},
    "additive_attention": {**ATTENTION, "w": normal(H), **LOOKING},
    "dot_product_attention_gradient": {**FROM_ABOVE, **GRADIENTS},
    "additive_attention_gradient": {
        **FROM_ABOVE,
        "w": normal(H),
        **GRADIENTS,
        "dw": unwritten(3, H),
    },
    "stacked_product": {
        "a": normal(G, A, T, D),
        "b": normal(G, A, D, L),
        "out": unwritten(G, A, T, L),
    },
    "draw_words": {
        "scores": 3 * normal(N, V),
        "uniform": RNG.random(N),
        "words": numpy.full(N, -1, numpy.int32),
        "log_probs": unwritten(N),
    },
    "masked_softmax": {"scores": normal(G, A, T, L), "scale": 0.6, "mask": SOME},
    "attention_step": {
        "qkv": normal(N, 3 * A * D),
        "position": RNG.integers(T, size=N),
        "keys": normal(N, T, A * D),
        "values": normal(N, T, A * D),
        "weights": unwritten(N, A, T),
        "context": unwritten(N, A * D),
    },
    "softmax_gradient": {
        "weights": gates(G, A, T, L),
        "scale": 0.6,
        "dweights": normal(G, A, T, L),
    },
    "gelu": {"a": normal(M, H), "out": unwritten(M, H)},
    "gelu_gradient": {
        "dout": normal(M, H),
        "a": normal(M, H),
        "out": unwritten(M, H),
        "da": unwritten(M, H),
    },
    "layer_norm": {
        "x": normal(M, D) + 3,
        "w": normal(D),
        "b": normal(D),
        "n": unwritten(M, D),
        "scale": unwritten(M, 1),
        "out": unwritten(M, D),
    },
    "layer_norm_gradient": {
        "dout": normal(M, D),
        "w": normal(D),
        "n": normal(M, D),
        "scale": gates(M, 1),
        "dx": normal(M, D),
        "dw": unwritten(D),
        "db": unwritten(D),
    },
    "present_regions": {"regions": REGIONS, "out": ~PRESENT},
    "mean_of_present": {"regions": REGIONS, "present": PRESENT, "out": unwritten(IMAGES, D)},
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
        "smoothing": 0.1,
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


OWN_IMAGE = {"query": normal(3, H), "weights": unwritten(3, L), "context": unwritten(3, D)}
LOOKS = (
    {"present": None},
    {**OWN_IMAGE, "present": None, "image": None},
    {**OWN_IMAGE, "image": None},
    {"values": ATTENTION["keys"], "context": unwritten(N, H)},  # one array for both
)
BACK = (
    {"dweights": None},
    {"dcontext": normal(3, H), "values": ATTENTION["keys"], "dvalues": GRADIENTS["dkeys"]},
)
OTHERWISE = {
    "softmax_cross_entropy": ({"smoothing": 0.0},),
    "dot_product_attention": LOOKS,
    "additive_attention": LOOKS,
    "dot_product_attention_gradient": BACK,
    "additive_attention_gradient": BACK,
    "masked_softmax": ({"mask": CAUSAL}, {"mask": None}),
    "gelu_gradient": ({"da": ARGUMENTS["gelu_gradient"]["dout"]},),  # in its memory
}
"""Other arguments that an operation is called with: what it may go without, what is one array."""


def arguments_of(name):
    return [{**ARGUMENTS[name], **other} for other in ({}, *OTHERWISE.get(name, ()))]


def copies(backend, arguments, dtype=None):
    """Return arguments on a device, none of them the original; one array remains one."""
    copied = {
        str(id(v)): v.copy() if isinstance(v, numpy.ndarray) else v for v in arguments.values()
    }
    there = on_device(backend, copied, dtype)
    return {name: there[str(id(value))] for name, value in arguments.items()}


fastest(numpy)  # registers its versions, the compiled ones where there is a compiler
importlib.import_module("xpcap.kernels.cuda")  # registers CuPy's

VERSIONS = [
    pytest.param(made, library, id=f"{name}-{library}")
    for name, made in OPERATIONS.items()
    for library in made.versions
]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_arguments(name):
    parameters = list(inspect.signature(OPERATIONS[name].reference).parameters)
    assert ["xp", *ARGUMENTS[name]] == parameters


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
@pytest.mark.parametrize(("made", "library"), VERSIONS)
def test_versions_agree_with_their_reference(made, library, dtype, request):
    """Not further from the reference in float64 than twice what its own rounding costs.

    All arguments are given by the names of the reference's parameters.
    """
    home = request.getfixturevalue("gpu") if library == "cupy" else CPU
    xp = Accelerated(home.xp, (library,))
    assert made.chosen(xp) is made.versions[library]
    for arguments in arguments_of(made.__name__):
        exact = run(made.reference, numpy, copies(CPU, arguments, numpy.float64))
        rounded = run(made.reference, numpy, copies(CPU, arguments, dtype))
        found = run(made, xp, copies(home, arguments, dtype))
        assert found.keys() == rounded.keys()
        for name, near in rounded.items():
            ours, true = to_host(found[name]), exact[name]
            assert ours.dtype == near.dtype
            assert ours.shape == near.shape
            if near.dtype.kind != "f":
                numpy.testing.assert_array_equal(ours, near)
                continue
            floor = 3e-7 if dtype == numpy.float32 else 5e-15  # another order of 600 additions
            limit = 2 * abs(near - true).max() + floor * max(1.0, abs(true).max())
            assert abs(ours - true).max() <= limit, name


@pytest.mark.parametrize("library", ["guard", "cupy"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_references_compute_the_same_with_every_library(name, library, request):
    home = open_guard() if library == "guard" else request.getfixturevalue("gpu")
    for arguments in arguments_of(name):
        expected = run(OPERATIONS[name].reference, numpy, copies(CPU, arguments))
        found = run(OPERATIONS[name], home.xp, copies(home, arguments))
        for key, theirs in expected.items():
            ours = to_host(found[key])
            assert ours.dtype == theirs.dtype
            assert scaled_difference(ours.astype(float), theirs.astype(float)) < 1e-10


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_change_only_what_they_write(name):
    """Inputs are read alone; what is not read before it is written was NaN."""
    changed = {
        "rnn_cell": {"h"}, "lstm_cell": {"gates"}, "gru_cell": {"gates"},
        "lstm_cell_gradient": {"dc"}, "gru_cell_gradient": {"back"},
        "softmax_cross_entropy": {"scores"}, "keep_mask": {"out"}, "loss_and_norm": {"settings"},
        "sgd_update": {"w"}, "momentum_update": {"w", "velocity"},
        "rmsprop_update": {"w", "cache"}, "adam_update": {"w", "m", "v"},
        "next_batch": {"position", "words", "targets", "images", "streams"},
        "dot_product_attention_gradient": {"dkeys", "dvalues"},
        "additive_attention_gradient": {"dkeys", "dvalues"}, "present_regions": {"out"},
        "masked_softmax": {"scores"}, "softmax_gradient": {"dweights"},
        "attention_step": {"keys", "values"}, "draw_words": {"scores", "words"},
        "layer_norm_gradient": {"dx"},
    }.get(name, set())  # fmt: skip
    before = ARGUMENTS[name]
    after = run(OPERATIONS[name], numpy, copies(CPU, before))
    for key, value in before.items():
        if not isinstance(value, numpy.ndarray):
            continue
        written = key in changed or (value.dtype.kind == "f" and numpy.isnan(value).any())
        assert written == (not numpy.array_equal(after[key], value)), key
        assert value.dtype.kind != "f" or numpy.isfinite(after[key]).all(), key


def extreme(name, dtype):
    """Return an operation's arguments with magnitudes from near the smallest normal number up to 1.

    Of factors in matrix products, no two have a subnormal product: those are the processor's.
    """
    rng, exponent = numpy.random.default_rng(1), numpy.finfo(dtype).minexp + 30
    lowest = exponent / 2 + 30 if name in ("product", "stacked_product") else exponent
    lowest = exponent / 5 if "attention" in name else lowest
    scores = {"scores", "bias", "ah"} | (set() if name.endswith("_gradient") else {"gates"})
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
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_operation_returns_a_subnormal_number(name, backend, xp, dtype):
    arguments = copies(backend, extreme(name, dtype), dtype)
    for key, value in run(OPERATIONS[name], xp, arguments).items():
        assert value.dtype.kind != "f" or not subnormal(value).any(), key


@pytest.mark.parametrize("rows", range(6))
def test_products_of_few_rows(rows, xp):
    """One by one on the CPU; of views too."""
    a, b = normal(H, 6)[:, :rows].T, normal(V, H).T
    out = xp.asarray(unwritten(rows, V))
    product(xp, xp.asarray(a), xp.asarray(b), out)
    numpy.testing.assert_allclose(to_host(out), a @ b, rtol=1e-12, atol=1e-14)


def test_add_rows_adds_repeated_indices(xp):
    indices, rows = numpy.array([2, -1, 0, 2, 2]), numpy.arange(-2, 8.0).reshape(5, 2)
    rows[[0, 1]] = rows[[1, 0]]  # the row of -1 is [-2, -1]
    out = xp.asarray(unwritten(4, 2))
    add_rows(xp, xp.asarray(indices), xp.asarray(rows), out)
    assert to_host(out).tolist() == [[2.0, 3.0], [0.0, 0.0], [10.0, 13.0], [0.0, 0.0]]


def test_add_rows_of_nothing(xp):
    out = xp.asarray(unwritten(2, 3))
    nothing = xp.asarray(numpy.zeros(0, numpy.int64)), xp.asarray(numpy.zeros((0, 3)))
    add_rows(xp, *nothing, out)
    assert to_host(out).tolist() == [[0.0] * 3] * 2


def test_the_namespace_chooses_the_version():
    chosen = Operation(lambda xp: "reference")
    chosen.version("first")(lambda xp: "first")
    chosen.version("second")(lambda xp: "second")
    for versions, found in [
        ((), "reference"), (("other",), "reference"), (("first",), "first"),
        (("other", "second", "first"), "second"),
    ]:  # fmt: skip
        assert chosen(Accelerated(numpy, versions)) == found
    assert chosen(numpy) == "reference"


def test_fastest_leaves_what_it_has_made_and_what_it_does_not_know():
    guard = open_guard().xp
    assert fastest(guard) is guard
    assert fastest(fastest(numpy)) is fastest(numpy)
    assert fastest(numpy).sqrt is numpy.sqrt


def test_compiled_versions_are_left_out_where_they_shall_be(monkeypatch):
    pytest.importorskip("numba")
    assert fastest(numpy).versions == ("numba", "numpy")
    monkeypatch.setenv("XPCAP_COMPILED", "0")
    assert fastest(numpy).versions == ("numpy",)


def test_a_missing_compiler_is_looked_for_once(monkeypatch):
    """Each attempt compiles a file of Python, which takes as long as a step of decoding."""
    kernels._accelerated.cache_clear()
    monkeypatch.setitem(sys.modules, "xpcap.kernels.compiled", None)
    try:
        assert fastest(numpy) is fastest(numpy)
        assert fastest(numpy).versions == ("numpy",)
        assert kernels._accelerated.cache_info().misses == 1
    finally:
        kernels._accelerated.cache_clear()


def test_compiled_versions_leave_the_rest_to_numpy():
    """Double precision, and arrays that are not contiguous."""
    pytest.importorskip("numba")
    xp = fastest(numpy)
    wide = normal(N, 3 * H).astype(numpy.float32)
    for a in (normal(N, H), wide[:, :H], numpy.asfortranarray(wide)):
        out = numpy.empty(a.shape, a.dtype)
        rnn_cell(xp, a, a, out)
        numpy.testing.assert_array_equal(out, numpy.tanh(a + a))
