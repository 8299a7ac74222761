"""The CUDA kernels and their launches, compiled for the CPU, against their references."""

import math
from pathlib import Path

import numpy
import pytest
from cuda_cases import CASES, TYPICAL, attention_arguments
from guard import counters
from host_cuda import COMPILER, HostFunction, RawModule, xp

import xpcap.kernels.cuda
from xpcap.backend import to_host
from xpcap.kernels import fastest
from xpcap.operations import OPERATIONS

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="no g++ to compile the CUDA sources for the CPU"
)
FAST = fastest(xp)
FLOATS = [numpy.float32, numpy.float64]
INDICES = {
    "softmax_cross_entropy": "targets", "take_rows": "indices", "add_rows": "indices",
    "dot_product_attention": "image", "additive_attention": "image",
}  # fmt: skip
ALL = [
    pytest.param(name, arguments, id=f"{name}-{number}")
    for number, (name, arguments) in enumerate(CASES)
]
ONE_EACH = [pytest.param(name, arguments, id=name) for name, arguments in TYPICAL.items()]


@pytest.fixture(autouse=True)
def _from_the_first_thread_on(monkeypatch):
    monkeypatch.setattr(HostFunction, "reverse", False)
    monkeypatch.setattr(HostFunction, "launches", 0)


def cast(name, arguments, dtype, index=numpy.int64):
    """Return copies of a kernel's arguments with its floats and its indices of these dtypes."""
    copied = {}
    for key, value in arguments.items():
        if isinstance(value, numpy.ndarray):
            value = value.astype(dtype if value.dtype.kind == "f" else value.dtype)
            value = value.astype(index) if key == INDICES.get(name) else value
        copied[key] = value
    return copied


def on_device(arguments):
    return {k: xp.asarray(v) if isinstance(v, numpy.ndarray) else v for k, v in arguments.items()}


def launched(name, arguments):
    """Run the kernel by its wrapper; return every array afterwards."""
    arrays = on_device(arguments)
    OPERATIONS[name](FAST, *arrays.values())
    return {k: xp.asnumpy(v) for k, v in arrays.items() if isinstance(v, xp.ndarray)}


def referred(name, arguments):
    with numpy.errstate(all="ignore"):
        OPERATIONS[name].reference(numpy, **arguments)
    return {k: v for k, v in arguments.items() if isinstance(v, numpy.ndarray)}


def assert_as_near(ours, near, true):
    """Not further from the truth than twice what the reference's own rounding costs."""
    assert ours.dtype == near.dtype
    assert ours.shape == near.shape
    if near.dtype.kind != "f":
        numpy.testing.assert_array_equal(ours, near)
    elif near.size:
        floor = 1e-7 if near.dtype == numpy.float32 else 1e-15
        limit = 2 * abs(near - true).max() + floor * max(1.0, abs(true).max())
        assert abs(ours - true).max() <= limit


def test_every_source_has_its_kernel_and_its_cases():
    folder = Path(xpcap.kernels.cuda.__file__).parent
    sources = {path.stem: path for path in folder.glob("*.cu")}
    del sources["recurrence"]  # has several kernels: see tests/kernels/test_recurrence.py
    assert set(sources) == set(TYPICAL) == {name for name, _ in CASES}
    assert all("cupy" in OPERATIONS[name].versions for name in sources)
    for path in sources.values():
        first, launch = path.read_text().split("\n")[0], path.read_text().split("extern")[0]
        made = OPERATIONS[path.stem].reference
        assert first.startswith(f"// Reference: {path.stem}")
        assert first.endswith(f"{made.__module__.replace('.', '/')}.py.")
        assert "\n// Launch: " in launch


@pytest.mark.parametrize("index", [numpy.int32, numpy.int64])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("name", "arguments"), ALL)
def test_kernels_agree_with_their_reference(name, arguments, dtype, index):
    if index == numpy.int32 and name not in INDICES:
        return
    true = referred(name, cast(name, arguments, numpy.float64))
    near = referred(name, cast(name, arguments, dtype))
    ours = launched(name, cast(name, arguments, dtype, index))
    for key, found in ours.items():
        if key != INDICES.get(name):
            assert_as_near(found, near[key], true[key])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("name", "arguments"), ONE_EACH)
def test_the_order_of_blocks_and_threads_changes_nothing(name, arguments, dtype):
    """Not one bit: sums are made in one order, and no thread runs ahead of a value it needs."""
    first = launched(name, cast(name, arguments, dtype))
    HostFunction.reverse = True
    for key, again in launched(name, cast(name, arguments, dtype)).items():
        numpy.testing.assert_array_equal(first[key], again)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("name", "arguments"), ONE_EACH)
def test_a_launch_neither_waits_nor_allocates(name, arguments, dtype):
    arrays = on_device(cast(name, arguments, dtype))
    if name == "keep_mask":
        arrays["stream"] = xp.asarray(numpy.array([3], numpy.uint64))
    counters.reset(large_bytes=4097)
    OPERATIONS[name](FAST, **arrays)
    assert (counters.synchronizations, counters.large_arrays) == (0, 0)
    assert HostFunction.launches == (2 if name in ("square_sum", "loss_and_norm") else 1)


def test_a_second_launch_looks_nothing_up(monkeypatch):
    """Neither the kernel of its types, nor what its macros stand for."""
    arguments = on_device(cast("lstm_cell", TYPICAL["lstm_cell"], numpy.float32))
    OPERATIONS["lstm_cell"](FAST, *arguments.values())
    monkeypatch.setattr(RawModule, "get_function", lambda *args: pytest.fail("looked up again"))
    monkeypatch.setattr("xpcap.kernels.cuda.launch._TYPES", {})
    OPERATIONS["lstm_cell"](FAST, *arguments.values())
    assert HostFunction.launches == 2


def test_nothing_is_launched_for_nothing():
    for name, arguments in CASES:
        if name not in ("add_rows", "column_sum", "square_sum", "loss_and_norm") and any(
            isinstance(value, numpy.ndarray) and value.size == 0 for value in arguments.values()
        ):
            launched(name, cast(name, arguments, numpy.float32))
    assert HostFunction.launches == 0


def strided(array):
    """Return an array of the same values that is not contiguous."""
    wide = xp.asarray(numpy.repeat(array, 2, axis=-1))
    return wide[..., ::2]


@pytest.mark.parametrize(("name", "arguments"), ONE_EACH)
def test_arrays_that_are_not_contiguous_are_the_references(name, arguments):
    true = referred(name, cast(name, arguments, numpy.float64))
    names = [key for key, value in arguments.items() if isinstance(value, numpy.ndarray)]
    for key in names:
        if arguments[key].shape[-1] == 1:
            continue
        arrays = on_device(cast(name, arguments, numpy.float64))
        arrays[key] = strided(arguments[key])
        OPERATIONS[name](FAST, **arrays)
        assert HostFunction.launches == 0, key
        for other in names:
            ours = xp.asnumpy(arrays[other]).astype(float)
            numpy.testing.assert_allclose(ours, true[other].astype(float), rtol=1e-9, atol=1e-12)


PADDED = {
    "column_sum": "rows", "softmax_cross_entropy": "scores", "take_rows": "table",
    "add_rows": "out",
}  # fmt: skip


@pytest.mark.parametrize("name", PADDED)
def test_rows_may_be_padded(name):
    """What lies between them is not a number, and stays there."""
    true = referred(name, cast(name, TYPICAL[name], numpy.float64))
    arrays = on_device(cast(name, TYPICAL[name], numpy.float64))
    key, values = PADDED[name], TYPICAL[name][PADDED[name]]
    wide = xp.asarray(numpy.pad(values, ((0, 0), (0, 3)), constant_values=numpy.nan))
    arrays[key] = wide[:, : values.shape[1]]
    OPERATIONS[name](FAST, **arrays)
    for other, expected in true.items():
        numpy.testing.assert_allclose(xp.asnumpy(arrays[other]), expected, rtol=1e-9, atol=1e-12)
    assert numpy.isnan(xp.asnumpy(wide)[:, values.shape[1] :]).all()
    assert HostFunction.launches == 1


def test_dtypes_that_a_source_does_not_know_are_the_references():
    ax = xp.asarray(numpy.ones((2, 3), numpy.float16))
    out = xp.empty((2, 3), dtype=numpy.float16)
    OPERATIONS["rnn_cell"](FAST, ax, ax, out)
    assert float(out[1, 2]) == pytest.approx(math.tanh(2), rel=1e-3)
    places = xp.asarray(numpy.array([1, 0], numpy.int16))
    rows = xp.empty((2, 3), dtype=numpy.float32)
    OPERATIONS["take_rows"](FAST, xp.asarray(numpy.ones((2, 3), numpy.float32)), places, rows)
    assert float(rows.sum()) == 6
    mask = xp.asarray(numpy.zeros(100, bool))
    OPERATIONS["keep_mask"](FAST, 30_000, 1, numpy.uint64(2), mask)
    with pytest.raises(TypeError, match="floating dtypes mixed"):
        OPERATIONS["rnn_cell"](FAST, ax.astype("f4"), ax.astype("f8"), out)
    assert HostFunction.launches == 0


@pytest.mark.parametrize("dtype", ["?", "u1", "i2", "f2", "i4", "f4", "f8", "u8"])
@pytest.mark.parametrize("index", [numpy.int32, numpy.int64])
def test_rows_of_any_dtype_are_taken(dtype, index):
    table = numpy.random.default_rng(1).integers(0, 2, size=(6, 131)).astype(dtype)
    indices = numpy.array([5, 0, 0, 3], index)
    out = xp.asarray(numpy.zeros((4, 131), dtype))
    OPERATIONS["take_rows"](FAST, xp.asarray(table), xp.asarray(indices), out)
    numpy.testing.assert_array_equal(xp.asnumpy(out), table[indices])
    assert HostFunction.launches == 1


@pytest.mark.parametrize("name", ["dot_product_attention", "additive_attention"])
def test_regions_may_be_both_keys_and_values(name):
    """Both gradients are then added to the same memory."""
    name = f"{name}_gradient"
    arguments = {
        **attention_arguments(name, 3, 11, 600, 600, 0.3), "values": None, "dvalues": None
    }  # fmt: skip
    found = []
    for namespace, arrays in ((FAST, on_device(arguments)), (numpy, arguments)):
        arrays |= {"values": arrays["keys"], "dvalues": arrays["dkeys"]}
        OPERATIONS[name](namespace, **arrays)
        found.append([to_host(arrays[key]) for key in ("dquery", "dkeys")])
    for ours, expected in zip(*found, strict=True):
        numpy.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)
    assert HostFunction.launches == 1


def test_indices_outside_a_table_reach_no_other_memory():
    table = numpy.arange(6.0).reshape(3, 2)
    indices = xp.asarray(numpy.array([-1, 3, 2**40]))
    out = xp.asarray(numpy.zeros((3, 2)))
    OPERATIONS["take_rows"](FAST, xp.asarray(table), indices, out)
    numpy.testing.assert_array_equal(xp.asnumpy(out), table[[0, 2, 2]])
    OPERATIONS["add_rows"](FAST, indices, xp.asarray(table), out)
    assert float(abs(out).max()) == 0
    scores, scale = xp.asarray(numpy.zeros((3, 2))), xp.asarray(numpy.ones(3))
    losses, bias = xp.asarray(numpy.zeros(3)), xp.asarray(numpy.zeros(2))
    OPERATIONS["softmax_cross_entropy"](FAST, scores, bias, indices, scale, losses)
    assert numpy.isnan(xp.asnumpy(losses)).all()


def test_scores_that_are_not_finite_show_in_the_loss():
    """But a row of scale 0 does not count, whatever it holds."""
    scores = numpy.zeros((4, 300))
    scores[0, 7], scores[1, 299], scores[2] = numpy.nan, numpy.inf, -numpy.inf
    scores[3, 5] = -numpy.inf
    for scale in (1.0, 0.0):
        arrays = on_device({
            "scores": scores, "bias": numpy.zeros(300), "targets": numpy.zeros(4, numpy.int32),
            "scale": numpy.full(4, scale), "losses": numpy.full(4, 9.0),
        })  # fmt: skip
        OPERATIONS["softmax_cross_entropy"](FAST, **arrays)
        losses = xp.asnumpy(arrays["losses"])
        assert numpy.isnan(losses[:3]).all() == bool(scale)
        assert losses[3] == pytest.approx(scale * math.log(299))
    assert float(abs(arrays["scores"]).max()) == 0


@pytest.mark.parametrize("stream", [0, 7, 2**64 - 1])
@pytest.mark.parametrize("first", [0, 1, 16])
def test_a_mask_is_the_same_from_a_number_and_from_memory(stream, first):
    """Also where its memory does not begin at a multiple of 16 bytes."""
    masks = []
    for which in (stream, xp.asarray(numpy.array([stream], numpy.uint64))):
        memory = xp.asarray(numpy.zeros(1100, bool))
        OPERATIONS["keep_mask"](FAST, 30_000, 5, which, memory[first : first + 1050])
        masks.append(xp.asnumpy(memory))
    expected = numpy.zeros(1050, bool)
    OPERATIONS["keep_mask"].reference(numpy, 30_000, 5, stream, expected)
    for mask in masks:
        numpy.testing.assert_array_equal(mask[first : first + 1050], expected)
        assert not mask[:first].any()
        assert not mask[first + 1050 :].any()


def test_what_changes_a_step_is_read_from_memory():
    """The same launches again, as a graph repeats them, with other settings and streams."""
    batch = on_device(cast("next_batch", TYPICAL["next_batch"], numpy.float32))
    mask = xp.asarray(numpy.zeros(160, bool))
    seen = []
    for _ in range(3):
        OPERATIONS["next_batch"](FAST, **batch)
        OPERATIONS["keep_mask"](FAST, 30_000, 5, batch["streams"][:1], mask)
        seen.append((batch["position"].tolist(), batch["settings"].tolist(), mask.tolist()))
    assert [position for position, _, _ in seen] == [[k, 2**33 + k] for k in (2, 3, 4)]
    table = TYPICAL["next_batch"]["table"].astype(numpy.float32)
    assert [settings for _, settings, _ in seen] == table[[1, 2, 2]].tolist()
    for step, (_, _, drawn) in enumerate(seen, start=2**33 + 1):
        expected = numpy.zeros(160, bool)
        OPERATIONS["keep_mask"].reference(numpy, 30_000, 5, 2 * step, expected)
        assert drawn == expected.tolist()


def test_they_run_where_they_are_asked_for():
    arguments = on_device(cast("lstm_cell", TYPICAL["lstm_cell"], numpy.float32))
    OPERATIONS["lstm_cell"](xp, **arguments)
    assert HostFunction.launches == 0
    assert FAST.versions == ("cupy",)


def compiled(text, name):
    return RawModule(code=f'extern "C" {text}', options=("-std=c++17",)).get_function(name)


def test_the_rehearsal_refuses_arguments_of_another_type():
    f = compiled("__global__ void f(int n, float *a, long long m) { a[n] = m; }", "f")
    a = xp.asarray(numpy.zeros(32, numpy.float32))
    good = (numpy.int32(3), a, numpy.int64(8))
    f((1,), (32,), good)
    assert float(a[3]) == 8
    for bad in (
        (3, *good[1:]), (numpy.int64(3), *good[1:]), (good[0], a.astype("f8"), good[2]),
        (a, a, good[2]), (good[0], numpy.zeros(32, numpy.float32), good[2]), good[:2],
    ):  # fmt: skip
        with pytest.raises(TypeError):
            f((1,), (32,), bad)
    for grid, block in [((0,), (32,)), ((1, 2**16), (32,)), ((1,), (33,)), ((1,), (1056,))]:
        with pytest.raises(ValueError, match="no "):
            f(grid, block, good)


def test_the_rehearsal_sees_barriers_that_some_threads_pass_by():
    for condition in ("threadIdx.x != 5", "threadIdx.x < 32"):
        text = f"__global__ void f(float *a) {{ if ({condition}) __syncthreads(); a[0] = 1; }}"
        with pytest.raises(RuntimeError, match="barrier"):
            compiled(text, "f")((1,), (64,), (xp.asarray(numpy.zeros(1, numpy.float32)),))
    text = """__global__ void f(float *a) {
        if (threadIdx.x < 5) a[0] = __shfl_xor_sync(-1u, 1.0f, 1); else __syncthreads(); }"""
    with pytest.raises(RuntimeError, match="barrier"):
        compiled(text, "f")((1,), (32,), (xp.asarray(numpy.zeros(1, numpy.float32)),))


def test_the_rehearsal_sees_addresses_that_a_gpu_refuses():
    f = compiled("__global__ void f(bool *a) { *(long long *)(a + 4) = 1; }", "f")
    memory = xp.asarray(numpy.zeros(64, bool))
    f((1,), (32,), (memory[4:],))
    with pytest.raises(RuntimeError, match="address"):
        f((1,), (32,), (memory,))


def test_the_rehearsal_shows_a_barrier_that_is_missing():
    text = """__global__ void f(int *a) {{
        __shared__ int kept[64];
        for (int k = 0; k < 2; ++k) {{
            kept[threadIdx.x] = threadIdx.x + k;
            {before}
            a[64 * k + threadIdx.x] = kept[63 - threadIdx.x];
            {after}
        }} }}"""
    barrier = "__syncthreads();"
    for before, after, same in (
        (barrier, barrier, True),
        ("", barrier, False),
        (barrier, "", False),
    ):
        f, found = compiled(text.format(before=before, after=after), "f"), []
        for HostFunction.reverse in (False, True):
            a = xp.asarray(numpy.zeros(128, numpy.int32))
            f((1,), (64,), (a,))
            found.append(a.tolist())
        assert (found[0] == found[1]) == same
