"""Recurrences and steps of decoding: the lines to read, compiled ones, and one launch on a GPU."""

import ctypes
from types import SimpleNamespace

import numpy
import oracle
import pytest

import xpcap.kernels.cuda.recurrence as fused
from xpcap.backend import CPU, to_host
from xpcap.kernels import blas, fastest
from xpcap.kernels.products import multiplied_in
from xpcap.layers.recurrence import Packing, unroll, unroll_backward, weight_gradients
from xpcap.models.recurrent import CELLS
from xpcap.operations import Accelerated
from xpcap.workspace import Workspace

# N, T, H; with more than 16 hidden units several blocks have to run at once, which a GPU alone can
SMALL = [(1, 2, 4), (3, 5, 16), (37, 3, 12), (70, 2, 8)]
LARGE = [(100, 16, 200), (128, 16, 512), (256, 4, 512), (37, 7, 132)]

PACKINGS = {
    "even": (20, [20] * 4),
    "even, one caption": (1, [1, 1, 1]),
    "uneven": (20, [20, 20, 9, 3, 1, 1]),
    "uneven, a caption without a word": (5, [4, 2]),
    "one step": (5, [5]),
    "no step": (5, []),
}  # captions, and how many of them are active at each step


def even(N, T):
    return Packing(N, [N] * T)


def drawn(cell, packing, H):
    """Return a recurrence's arguments and the gradient of its states, by name, in float64."""
    rng, cell = numpy.random.default_rng(packing.captions + H), CELLS[cell]
    normal, shapes = rng.standard_normal, cell.shapes(1, H)
    del shapes["Wx"]
    given = {name: normal(shape) for name, shape in shapes.items()}
    given["Wh"] /= numpy.sqrt(H)
    given["ax"] = normal((packing.total, len(cell.gates) * H))
    given["dh"] = normal((packing.total, H))
    return {**given, **{f"{name}0": normal((packing.captions, H)) for name in cell.states}}


def on_device(backend, given, dtype):
    return {name: backend.to_device(value.astype(dtype)) for name, value in given.items()}


def computed(cell, xp, given, packing, with_bias=True):
    """Unroll a cell and return the states and all gradients, by name, in float64.

    Without its bias, the recurrence is given inputs to which the bias has been added.
    """
    cell, given = CELLS[cell], dict(given)
    space = Workspace(xp, given["ax"].dtype)
    weights = {name: given[name] for name in ("Wh", *cell.biases)}
    ax, b = given["ax"].copy(), given["b"]
    if not with_bias:
        ax, b = ax + b, None
    start = [given[f"{name}0"] for name in cell.states]
    run = unroll(cell, ax, b, start, weights, packing, space)
    dax, dah, dh0 = unroll_backward(cell, given["dh"], run, weights, packing, space)
    found = {"h": run.h, "dax": dax, "dah": dah, "dh0": dh0}
    found |= {name: xp.empty_like(value) for name, value in weights.items()}
    weight_gradients(cell, run, dah, found, xp)
    return {name: to_host(value).astype("float64") for name, value in found.items()}


def expected(cell, given, packing):
    """Return the same as `computed`, but for dah, one caption after the other."""
    weights = {name: given[name] for name in ("Wh", *CELLS[cell].biases)}
    ax, first = given["ax"] + given["b"], [given[f"{name}0"] for name in CELLS[cell].states]
    found = {"h": numpy.full_like(given["dh"], numpy.nan), "dax": numpy.full_like(ax, numpy.nan)}
    found |= {"dh0": numpy.zeros_like(first[0])}
    found |= {name: numpy.zeros_like(value) for name, value in weights.items()}
    for n in range(packing.captions):
        rows = [step.start + n for step in packing.rows if n < step.stop - step.start]
        if not rows:
            continue
        h0, *others = (state[n] for state in first)

        def loss(ax=ax[rows], h0=h0, others=others, rows=rows, **changed):
            h = oracle.hidden_states(cell, ax, (h0, *others), {**weights, **changed})
            return (h * given["dh"][rows]).sum(axis=(-2, -1))

        found["h"][rows] = oracle.hidden_states(cell, ax[rows], (h0, *others), weights)
        found["dax"][rows] = oracle.gradient(lambda x, loss=loss: loss(ax=x), ax[rows])
        found["dh0"][n] = oracle.gradient(lambda x, loss=loss: loss(h0=x), h0)
        for name, value in weights.items():
            found[name] += oracle.gradient(lambda x, k=name, loss=loss: loss(**{k: x}), value)
    return found


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "bias added before"])
@pytest.mark.parametrize("size", PACKINGS)
@pytest.mark.parametrize("cell", CELLS)
def test_states_and_gradients_of_the_textbook(backend, cell, size, with_bias):
    packing = Packing(*PACKINGS[size])
    given = drawn(cell, packing, 4)
    for xp in (backend.xp, fastest(backend.xp)):
        with backend.activate():
            found = computed(cell, xp, on_device(backend, given, "float64"), packing, with_bias)
        for name, exact in expected(cell, given, packing).items():
            numpy.testing.assert_allclose(found[name], exact, 1e-10, 1e-12, err_msg=name)


@pytest.mark.parametrize("cell", CELLS)
def test_states_of_equal_steps_are_views_of_one_array(backend, cell):
    """Those of unequal steps are copies."""
    for sizes, shared in (([4, 4, 4], True), ([4, 4, 3], False)):
        packing, space = Packing(4, sizes), Workspace(backend.xp, numpy.float64)
        given = on_device(backend, drawn(cell, packing, 5), "float64")
        start = [given[f"{name}0"] for name in CELLS[cell].states]
        run = unroll(CELLS[cell], given["ax"], given["b"], start, given, packing, space)
        run.h[...] = 7
        assert bool((run.prev_h[4:] == 7).all()) == shared


def assert_accurate(cell, backend, xp, given, packing):
    """Compare float32 with the reference in float64: at most twice what the reference loses."""
    true, near = (
        computed(cell, numpy, on_device(CPU, given, dtype), packing)
        for dtype in ("float64", "float32")
    )
    with backend.activate():
        ours = computed(cell, xp, on_device(backend, given, "float32"), packing)
    for name, exact in true.items():
        if exact.size:
            floor = 5e-7 * max(1.0, abs(exact).max())
            limit = 2 * abs(near[name] - exact).max() + floor
            assert abs(ours[name] - exact).max() <= limit, name


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


def check_one_launch(gpu, cell, size, launches):
    N, T, H = size
    packing = even(N, T)
    given, xp = drawn(cell, packing, H), fastest(gpu.xp)
    assert_accurate(cell, gpu, xp, given, packing)
    true = computed(cell, numpy, given, packing)
    with gpu.activate(), multiplied_in("tf32"):
        rounded = computed(cell, xp, on_device(gpu, given, "float32"), packing)
    for name, exact in true.items():
        assert abs(rounded[name] - exact).max() <= 3e-3 * max(1.0, abs(exact).max()), name
    assert launches == [True] * 4


@pytest.mark.parametrize("size", SMALL)
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_in_one_launch(gpu, cell, size, launches):
    check_one_launch(gpu, cell, size, launches)


@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_in_one_launch_of_several_blocks(gpu, cell, size, launches):
    if not gpu.xp.cuda.runtime.getDeviceProperties(0)["cooperativeLaunch"]:
        pytest.skip("the device runs one block after another")
    check_one_launch(gpu, cell, size, launches)


@pytest.mark.parametrize("cell", CELLS)
def test_the_same_bits_every_time(gpu, cell):
    packing = even(70, 5)
    given = on_device(gpu, drawn(cell, packing, 16), "float32")
    first, again = (computed(cell, fastest(gpu.xp), given, packing) for _ in range(2))
    for name, value in first.items():
        numpy.testing.assert_array_equal(value, again[name])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_nan_is_passed_on(gpu, cell, precision, launches):
    packing = even(5, 3)
    given = drawn(cell, packing, 16)
    given["h0"][2, 1] = numpy.nan
    with multiplied_in(precision):
        given = on_device(gpu, given, "float32")
        found = computed(cell, fastest(gpu.xp), given, packing)
    for name in ("h", "dax", "dah", "dh0"):
        assert numpy.isnan(found[name]).any(), name
    assert launches == [True] * 2


ODD = {
    "double precision": lambda given: {k: value.astype("f8") for k, value in given.items()},
    "a bias of double precision": lambda given: {**given, "b": given["b"].astype("f8")},
    "columns of weights": lambda given: {**given, "Wh": given["Wh"].T.copy().T},
    "a strided bias": lambda given: {**given, "b": given["b"].repeat(2)[::2]},
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("what", ODD)
def test_other_arrays_are_taken_step_by_step(gpu, cell, what, launches):
    packing = even(5, 3)
    given = drawn(cell, packing, 16)
    odd = ODD[what](on_device(gpu, given, "float32"))
    found = computed(cell, fastest(gpu.xp), odd, packing)
    for name, exact in computed(cell, numpy, given, packing).items():
        numpy.testing.assert_allclose(found[name], exact, rtol=1e-5, atol=1e-5)
    assert not launches[0]


@pytest.mark.parametrize(
    ("sizes", "H"),
    [([5] * 3, 6), ([5], 16), ([5, 4], 16), ([4, 4], 16)],
    ids=["hidden size", "one step", "uneven", "without a word"],
)
def test_sizes_that_do_not_fit_are_taken_step_by_step(gpu, sizes, H, launches):
    packing = Packing(5, sizes)
    assert_accurate("lstm", gpu, fastest(gpu.xp), drawn("lstm", packing, H), packing)
    assert launches == [False] * 2


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


class Spoilt(Accelerated):
    """NumPy with compiled versions, whose new arrays hold NaN."""

    def empty(self, shape, dtype):
        return numpy.full(shape, numpy.nan, dtype)


@pytest.fixture
def compiled(monkeypatch):
    """What is compiled for the CPU; `compiled.steps` counts recurrences step by step."""
    pytest.importorskip("numba")
    import xpcap.kernels.compiled as module

    found = SimpleNamespace(xp=Spoilt(numpy, ("numba", "numpy")), module=module, steps=0)

    def counted(reference):
        def run(xp, *arguments):
            found.steps += xp is found.xp
            reference(xp, *arguments)

        return run

    for cell in CELLS.values():
        for made in (cell.unroll, cell.unroll_backward):
            monkeypatch.setattr(made, "reference", counted(made.reference))
    module._routines.cache_clear()
    yield found
    module._routines.cache_clear()


@pytest.mark.parametrize("H", [4, 37])
@pytest.mark.parametrize("size", PACKINGS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_in_one_compiled_call(compiled, cell, size, H):
    if blas.addresses() is None:
        pytest.skip("the routines of NumPy's BLAS cannot be found")
    packing = Packing(*PACKINGS[size])
    assert_accurate(cell, CPU, compiled.xp, drawn(cell, packing, H), packing)
    assert not compiled.steps


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("what", ["double precision", "columns of weights"])
def test_what_is_not_compiled_is_taken_step_by_step(compiled, cell, what):
    packing = even(5, 3)
    given = drawn(cell, packing, 4)
    odd = ODD[what](on_device(CPU, given, "float32"))
    found = computed(cell, compiled.xp, odd, packing)
    for name, exact in computed(cell, numpy, given, packing).items():
        numpy.testing.assert_allclose(found[name], exact, rtol=1e-5, atol=1e-5)
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
    packing = Packing(*PACKINGS["uneven"])
    for cell in CELLS:
        assert_accurate(cell, CPU, compiled.xp, drawn(cell, packing, 37), packing)
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


def subnormal(values):
    return (abs(values) < numpy.finfo(values.dtype).tiny) & (values != 0)


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
@pytest.mark.parametrize("cell", CELLS)
def test_recurrences_leave_no_subnormal_number(backend, cell, dtype):
    """But in products: h Wh, and the gradient of the first state."""
    cell, rng, packing, H = CELLS[cell], numpy.random.default_rng(1), even(40, 3), 16
    tiny = [2.0 ** (numpy.finfo(dtype).minexp + k) for k in (1, 4, 20)]

    def some(values, *shape):
        signs = rng.choice([-1, 1], shape) * rng.uniform(1, 1.9, shape)
        return backend.to_device((rng.choice(values, shape) * signs).astype(dtype))

    weights = {"Wh": some([0.1], H, len(cell.gates) * H)}
    weights |= {name: some([0.3, 14], H) for name in cell.biases}
    for xp in (backend.xp, fastest(backend.xp)):
        start = [some([0.3, 0], 40, H), *(some(tiny, 40, H) for _ in cell.states[1:])]
        gates = some([0.3, 8, 14, 88, *tiny], packing.total, len(cell.gates) * H)
        dh, space = some([1, *tiny], packing.total, H), Workspace(xp, dtype)
        run = unroll(cell, gates, None, start, weights, packing, space)
        dax, dah, _ = unroll_backward(cell, dh, run, weights, packing, space)
        further = {name: run.more[name] for name in (*cell.states[1:], *cell.kept)}
        arrays = {"gates": run.gates, "h": run.h, **further, "dax": dax, "dah": dah}
        for name, array in arrays.items():
            assert not subnormal(to_host(array)).any(), name


HYPOTHESES = {
    "shared": (11, 3, [9, 4, 0, 4, 10, 4, 0], [2, 0, 0, 1, 0, 0, 2]),
    "each its own": (7, 7, None, None),
    "words alone are shared": (11, 7, [9, 4, 0, 4, 10, 4, 0], None),
}  # distinct words, parents, and which of them each hypothesis has


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
@pytest.mark.parametrize("which", HYPOTHESES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_step_of_decoding_is_one_of_the_textbook(backend, cell, which, dtype):
    name, cell, rng, H, R = cell, CELLS[cell], numpy.random.default_rng(2), 5, 7
    D, P, words, parents = HYPOTHESES[which]
    given = {"ax": rng.standard_normal((D, len(cell.gates) * H))}
    given |= {state: rng.standard_normal((P, H)) for state in cell.states}
    weights = {"Wh": rng.standard_normal((H, len(cell.gates) * H)) / 3}
    weights |= {bias: rng.standard_normal(H) for bias in cell.biases}
    of_word, of_parent = (numpy.arange(R) if rows is None else rows for rows in (words, parents))
    exact = [
        oracle.CELL_STEPS[name](
            given["ax"][word], [given[state][parent] for state in cell.states], **weights
        )[0]
        for word, parent in zip(of_word, of_parent, strict=True)
    ]
    rows = [None if r is None else backend.to_device(numpy.array(r)) for r in (words, parents)]
    for xp in (backend.xp, fastest(backend.xp)):
        ours, theirs = (on_device(backend, part, dtype) for part in (given, weights))
        states = [ours[state] for state in cell.states]
        after = [xp.full((R, H), numpy.nan, dtype=dtype) for _ in states]
        cell.advance(xp, ours["ax"], states[0] @ theirs["Wh"], states, theirs, *rows, after)
        for k, state in enumerate(after):
            near = 1e-13 if dtype == numpy.float64 else 1e-6
            numpy.testing.assert_allclose(to_host(state), [s[k] for s in exact], rtol=0, atol=near)
        for state, values in zip(states, [given[s] for s in cell.states], strict=True):
            numpy.testing.assert_array_equal(to_host(state), values.astype(dtype))
