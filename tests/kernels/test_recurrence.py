"""Recurrences in one launch on a GPU, and in one compiled call on a CPU, against single steps."""

import ctypes
from types import SimpleNamespace

import numpy
import pytest
from xpcap.layers._sequence import Packing
from xpcap.models.captioner import CELLS

import xpcap.kernels.cuda.recurrence as fused
from xpcap.backend import CPU, to_host
from xpcap.kernels import KERNELS, blas, fastest
from xpcap.kernels.products import multiplied_in
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


def unrolled(backend, cell, arguments, dh, dtype, N, T, packing=None, xp=None):
    """Return the states, and the gradients of pre-activations, of the first state and of biases."""
    with backend.activate():
        space, packing = Workspace(xp or fastest(backend.xp), dtype), packing or Packing(N, [N] * T)
        given = [backend.to_device(value.astype(dtype)) for value in arguments]
        run = CELLS[cell].unroll(*given, packing, space)
        dh = backend.to_device(dh.astype(dtype))
        gradients = CELLS[cell].unroll_backward(dh, run, given[3], packing, space)
        return [to_host(value).astype("float64") for value in (run.h, *gradients)]


@pytest.fixture
def launches(monkeypatch):
    """Note of each recurrence whether it is one launch."""
    seen, original = [], fused._plan_of

    def counted(*arguments):
        plan = original(*arguments)
        seen.append(plan is not None)
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
    assert launches == [True] * 4
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
        h, *gradients = unrolled(gpu, cell, arguments, dh, "float32", 5, 3)
    assert numpy.isnan(h).any()
    assert all(numpy.isnan(gradient).any() for gradient in gradients)


ODD = {
    "double precision": lambda arguments: [value.astype("float64") for value in arguments],
    "a bias of double precision": lambda arguments: [
        arguments[0], arguments[1].astype("float64"), *arguments[2:]
    ],
    "columns of weights": lambda arguments: [
        *arguments[:3], arguments[3].T.copy().T, *arguments[4:]
    ],
    "a strided bias": lambda arguments: [
        arguments[0], arguments[1].repeat(2)[::2], *arguments[2:]
    ],
}  # fmt: skip


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("what", ODD)
def test_other_arrays_are_taken_step_by_step(gpu, cell, what, launches):
    N, T, H = 5, 3, 16
    arguments, dh = drawn(cell, N, T, H)
    true = unrolled(CPU, cell, arguments, dh, "float64", N, T)
    with gpu.activate():
        given = ODD[what]([gpu.to_device(value.astype("float32")) for value in arguments])
        space, packing = Workspace(fastest(gpu.xp), given[0].dtype), Packing(N, [N] * T)
        run = CELLS[cell].unroll(*given, packing, space)
        dh = gpu.to_device(dh.astype(given[0].dtype))
        gradients = CELLS[cell].unroll_backward(dh, run, given[3], packing, space)
    for exact, ours in zip(true, (run.h, *gradients), strict=True):
        numpy.testing.assert_allclose(to_host(ours), exact, rtol=1e-5, atol=1e-5)
    assert not launches[0]


def test_a_hidden_size_that_does_not_fit_is_taken_step_by_step(gpu, launches):
    for size in [(5, 3, 6), (5, 1, 16)]:
        arguments, dh = drawn("lstm", *size)
        true = unrolled(CPU, "lstm", arguments, dh, "float32", *size[:2])
        found = unrolled(gpu, "lstm", arguments, dh, "float32", *size[:2])
        for exact, ours in zip(true, found, strict=True):
            numpy.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5)
    assert launches == [False] * 4


@pytest.mark.parametrize(
    ("changed", "N", "H"),
    [({"major": 7}, 128, 16), ({}, 2**23, 16), ({"cooperativeLaunch": 0}, 128, 64),
     ({"multiProcessorCount": 16}, 128, 512), ({"most": 100_000}, 128, 512)],
)  # fmt: skip
def test_devices_and_sizes_that_do_not_fit(monkeypatch, changed, N, H):
    """The blocks of a launch must all be resident, TF32 be known, and counters be enough."""

    class Runtime:
        cudaDevAttrMaxSharedMemoryPerBlockOptin = 97

        def __init__(self, most=232_448, **properties):
            h100 = {"major": 9, "cooperativeLaunch": 1, "multiProcessorCount": 132}
            self.getDeviceProperties = lambda device: {**h100, **properties}
            self.deviceGetAttribute = lambda attribute, device: most

    monkeypatch.setattr(fused, "open_source", lambda *arguments, **keywords: arguments)
    plans = [
        fused._plan.__wrapped__(
            SimpleNamespace(cuda=SimpleNamespace(runtime=Runtime(**properties))),
            0, 4, rows, H, "float32",
        )
        for properties, rows in (({}, 128), (changed, N))
    ]  # fmt: skip
    assert plans[0] is not None
    assert plans[1] is None


SIZES = {
    "even": (20, [20] * 4),
    "even, one caption": (1, [1, 1, 1]),
    "uneven": (20, [20, 20, 9, 3, 1, 1]),
    "uneven, a caption without a word": (5, [4, 2]),
    "one step": (5, [5]),
    "no step": (5, []),
}


@pytest.fixture
def compiled(monkeypatch):
    """The namespace of compiled kernels; `compiled.steps` counts recurrences step by step."""
    pytest.importorskip("numba")
    import xpcap.kernels.compiled as module

    space = SimpleNamespace(xp=module.compiled_numpy, module=module, steps=0)

    def counted(reference):
        def run(xp, *arguments):
            space.steps += xp.__name__ == "numba"
            reference(xp, *arguments)

        return run

    for name in (f"{cell}_recurrence{which}" for cell in CELLS for which in ("", "_gradient")):
        monkeypatch.setattr(KERNELS[name], "reference", counted(KERNELS[name].reference))
    unwritten = lambda size, dtype: numpy.full(size, numpy.nan, dtype)  # noqa: E731
    monkeypatch.setattr(space.xp, "empty", unwritten, raising=False)
    module._routines.cache_clear()
    yield space
    module._routines.cache_clear()


def check_compiled(compiled, cell, size, H):
    N, rows = SIZES[size]
    packing, (arguments, dh) = Packing(N, rows), drawn(cell, N, 6, H)
    arguments[0], dh = arguments[0][: packing.total], dh[: packing.total]
    true, near, ours = (
        unrolled(CPU, cell, arguments, dh, dtype, N, 6, packing, xp)
        for dtype, xp in [("float64", numpy), ("float32", numpy), ("float32", compiled.xp)]
    )
    for exact, close, found in zip(true, near, ours, strict=True):
        if exact.size:
            size = max(1.0, abs(exact).max())
            assert abs(found - exact).max() <= 2 * abs(close - exact).max() + 5e-7 * size


@pytest.mark.parametrize("H", [4, 37])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_in_one_compiled_call(compiled, cell, size, H):
    if blas.addresses() is None:
        pytest.skip("the routines of NumPy's BLAS cannot be found")
    check_compiled(compiled, cell, size, H)
    assert not compiled.steps


@pytest.mark.parametrize("cell", CELLS)
def test_double_precision_is_taken_step_by_step(compiled, cell):
    arguments, dh = drawn(cell, 5, 3, 4)
    true, ours = (
        unrolled(CPU, cell, arguments, dh, "float64", 5, 3, xp=xp) for xp in (numpy, compiled.xp)
    )
    for exact, found in zip(true, ours, strict=True):
        numpy.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-12)
    assert compiled.steps == 2


@ctypes.CFUNCTYPE(None)
def does_nothing():
    pass


@pytest.mark.parametrize("found", ["nothing", "a wrong product of matrices", "a wrong one of rows"])
def test_without_blas_a_sequence_is_taken_step_by_step(compiled, found, monkeypatch):
    wrong = ctypes.cast(does_nothing, ctypes.c_void_p).value
    gemm, gemv = blas.addresses() or (wrong, wrong)
    addresses = {"nothing": None, "a wrong product of matrices": (wrong, gemv)}
    monkeypatch.setattr(blas, "addresses", lambda: addresses.get(found, (gemm, wrong)))
    for cell in CELLS:
        check_compiled(compiled, cell, "uneven", 37)
    assert compiled.steps == 2 * len(CELLS)


def test_a_blas_of_unknown_names_is_not_found(monkeypatch):
    monkeypatch.setattr(blas, "_NAMES", ("unknown_{}",))
    assert blas.addresses() is None


@pytest.mark.parametrize("integer", [ctypes.c_int32, ctypes.c_int64])
def test_integers_of_either_width(compiled, integer):
    """Passed to callbacks that take integers of that width."""
    number, pointer = ctypes.c_float, ctypes.c_void_p
    order = [ctypes.c_int32] * 2
    seen = []

    @ctypes.CFUNCTYPE(None, *order, ctypes.c_int32, integer, integer, integer, number, pointer,
                      integer, pointer, integer, number, pointer, integer)  # fmt: skip
    def gemm(*arguments):
        seen.append(arguments)

    @ctypes.CFUNCTYPE(None, *order, integer, integer, number, pointer, integer, pointer, integer,
                      number, pointer, integer)  # fmt: skip
    def gemv(*arguments):
        seen.append(arguments)

    routines = tuple(ctypes.cast(f, ctypes.c_void_p).value for f in (gemm, gemv))
    a, b, out = (numpy.zeros(s, numpy.float32) for s in [(4, 5), (5, 6), (4, 6)])
    compiled.module._product(routines, a, b, 0.5, out)
    compiled.module._product(routines, a[:1], b, 0.5, out[:1])
    A, B, C = (array.ctypes.data for array in (a, b, out))
    assert seen == [
        (101, 111, 111, 4, 6, 5, 1.0, A, 5, B, 6, 0.5, C, 6),
        (101, 112, 5, 6, 1.0, B, 6, A, 1, 0.5, C, 1),
    ]
