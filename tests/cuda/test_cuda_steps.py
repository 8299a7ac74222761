"""Whole training steps through CUDA sources, launches and cuBLAS calls, all on the CPU."""

import ctypes
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import guard
import host_cuda
import numpy
import pytest
from cuda_cases import TYPICAL
from kernels.test_cublas import Library
from tiny import make_tiny

import xpcap.kernels.cuda  # registers what is tested here
import xpcap.kernels.products
from xpcap.backend import CPU, Backend, to_host
from xpcap.benchmark.workload import Configuration, Workload
from xpcap.data.dataset import open_dataset
from xpcap.data.minibatch import EpochBatches
from xpcap.data.vocabulary import SPECIAL
from xpcap.errors import BackendError, ShapeError
from xpcap.kernels import cublas
from xpcap.kernels.cuda.launch import Source
from xpcap.kernels.graphs import Repeated
from xpcap.models import AttentionRNN, CaptioningRNN, generation
from xpcap.models.objective import Objective
from xpcap.operations import OPERATIONS
from xpcap.optim import Optimizer
from xpcap.training.resident import ResidentStep

pytestmark = pytest.mark.skipif(
    host_cuda.COMPILER is None, reason="no g++ to compile the CUDA sources for the CPU"
)


@pytest.fixture
def rehearsal(monkeypatch):
    """Arrays of the guard that belong to `host_cuda.xp`, and a cuBLAS that computes with NumPy.

    Functions run at each call instead of being captured.
    """
    monkeypatch.setattr(guard, "xp", host_cuda.xp)
    monkeypatch.setattr(
        host_cuda.xp.cuda, "get_current_stream", lambda: SimpleNamespace(ptr=1), raising=False
    )
    monkeypatch.setattr(cublas, "_pointer", lambda a: ctypes.c_void_p(a._values.ctypes.data))
    opened = cublas.CuBLAS(Library(), host_cuda.xp)
    monkeypatch.setattr(xpcap.kernels.products, "open_cublas", lambda xp, device: opened)
    monkeypatch.setattr(Repeated, "__call__", lambda self, function: function())
    monkeypatch.setattr(host_cuda.HostFunction, "launches", 0)
    return Backend("rehearsal", host_cuda.xp)


def fail(*arguments):
    pytest.fail("a reference ran where the CUDA kernel should have")


def train(dataset, backend, cell, dropout, steps, family=CaptioningRNN, split=None, **options):
    """Take steps on minibatches that are gathered on the device; return loss and parameters."""
    split = split or dataset.splits["train"]
    model = family(
        dataset.vocabulary.word_to_idx, split.features.shape[-1], 8, 16, cell,
        "float64", seed=1, dropout=dropout, backend=backend, **options,
    )  # fmt: skip
    step = ResidentStep(model, Optimizer("adam", learning_rate=0.02), split, 7, 1.0)
    batches = EpochBatches(split, 7, 0, with_features=False)
    taken = step.epoch(batches, 0, 0, 0, [1.0] * len(batches))
    for _ in range(steps):
        guard.counters.reset()
        next(taken)
        waits = guard.counters.synchronizations
    params = {name: to_host(value) for name, value in model.params.items()}
    return float(to_host(step.loss)), params, waits


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_steps_through_the_kernels_are_those_of_numpy(
    cell, dropout, tmp_path, rehearsal, monkeypatch
):
    """No step falls back to a reference, and a later one does not wait for the device."""
    dataset = open_dataset(make_tiny(tmp_path / "tiny"))
    loss, params, _ = train(dataset, CPU, cell, dropout, steps=3)
    for name in TYPICAL:
        monkeypatch.setattr(OPERATIONS[name], "reference", fail)
    found_loss, found, waits = train(dataset, rehearsal, cell, dropout, steps=3)
    assert found_loss == pytest.approx(loss, rel=1e-10)
    for name, value in params.items():
        numpy.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-11)
    assert waits == 0
    assert host_cuda.HostFunction.launches > 50


def regions(images, L, D, seed=0):
    """Draw features `(images, L, D)`; of the first images some regions are absent, and all."""
    features = numpy.random.default_rng(seed).standard_normal((images, L, D)).astype("f4")
    features[:4, 2:] = 0
    features[1] = 0
    return features


@pytest.mark.parametrize("scoring", ["additive", "dot"])
@pytest.mark.parametrize(("cell", "dropout"), [("lstm", 0.3), ("gru", 0.0)])
def test_steps_that_look_are_those_of_numpy(
    scoring, cell, dropout, tmp_path, rehearsal, monkeypatch
):
    """Nothing waits for the device, and no product is CuPy's, whose batches no graph captures."""
    dataset = open_dataset(make_tiny(tmp_path / "tiny"))
    split = dataset.splits["train"]
    split = replace(split, features=regions(len(split.features), 5, 9))
    more = {"family": AttentionRNN, "split": split, "scoring": scoring, "doubly_stochastic": 0.7}
    loss, params, _ = train(dataset, CPU, cell, dropout, 3, **more)
    for name in (*TYPICAL, "product"):
        monkeypatch.setattr(OPERATIONS[name], "reference", fail)
    monkeypatch.setattr(guard.GuardArray, "__matmul__", fail)
    found_loss, found, waits = train(dataset, rehearsal, cell, dropout, 3, **more)
    assert found_loss == pytest.approx(loss, rel=1e-10)
    for name, value in params.items():
        numpy.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-11)
    assert waits == 0


@pytest.mark.parametrize("scoring", ["additive", "dot"])
def test_each_batch_looks_at_its_own_images(scoring, rehearsal):
    """Also those for which the decoder of the first one is kept."""
    words = {word: k for k, word in enumerate([*SPECIAL, *(f"w{k}" for k in range(30))])}
    here, there = (
        AttentionRNN(words, 9, 8, 10, "lstm", "float64", scoring=scoring, seed=3, backend=where)
        for where in ("cpu", rehearsal)
    )
    for name, value in here.params.items():
        value *= 3
        there.params[name] = rehearsal.to_device(value)
    captions = set()
    for seed, L in [(1, 5), (2, 5), (3, 4)]:
        features = regions(6, L, 9, seed).astype(numpy.float64)
        expected = here.sample(features, 12)
        found = to_host(there.sample(rehearsal.to_device(features), 12))
        numpy.testing.assert_array_equal(found, expected)
        captions |= {tuple(caption) for caption in expected.tolist()}
    assert len(captions) > 8
    assert len(generation._decoders[there].by_key) == 2


def test_a_step_launches_few_kernels_beside_the_recurrence(tmp_path, rehearsal, monkeypatch):
    """Norm, loss, clipping and Adam are three of them."""
    dataset, names = open_dataset(make_tiny(tmp_path / "tiny")), []
    launch = Source.launch

    def noted(source, name, *arguments):
        names.append(name)
        launch(source, name, *arguments)

    monkeypatch.setattr(Source, "launch", noted)
    train(dataset, rehearsal, "lstm", 0.0, steps=1)
    T = dataset.splits["train"].captions.shape[1] - 1
    assert Counter(names) == {
        "next_batch": 1, "take_rows": 2, "lstm_cell": T, "softmax_cross_entropy": 1,
        "lstm_cell_gradient": T, "add_rows": 1, "column_sum": 3, "square_sums": 1,
        "loss_and_norm": 1, "adam_update": 1,
    }  # fmt: skip


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_rows_of_all_factors_and_products_are_aligned(cell, tmp_path, rehearsal, monkeypatch):
    """To 8 elements, whatever the size of the vocabulary, but for the features."""
    dataset, leads = open_dataset(make_tiny(tmp_path / "tiny")), set()
    layout = cublas._gemm_layout

    def noted(*layouts):
        gemm = layout(*layouts)
        leads.update(gemm[-3:])
        return gemm

    monkeypatch.setattr(cublas, "_gemm_layout", noted)
    train(dataset, rehearsal, cell, 0.3, steps=1)
    assert len(dataset.vocabulary) % 8 != 0
    assert len(leads) > 1
    assert {lead for lead in leads if lead % 8} <= {dataset.feature_dim}


def test_packed_batches_run_through_the_kernels(tmp_path, rehearsal, monkeypatch):
    """Only their active places and distinct words."""
    dataset = open_dataset(make_tiny(tmp_path / "tiny"))
    (batch, *_) = EpochBatches(dataset.splits["train"], 7, 0).epoch(0)
    losses, gradients = [], []
    for backend in (CPU, rehearsal):
        model = CaptioningRNN(
            dataset.vocabulary.word_to_idx, dataset.feature_dim, 8, 16, "lstm",
            "float64", seed=1, backend=backend,
        )  # fmt: skip
        features = backend.to_device(batch.features, "float64")
        into = {name: backend.xp.zeros_like(value) for name, value in model.params.items()}
        losses.append(float(Objective(model).loss(features, batch.captions, 0, into)))
        gradients.append({name: to_host(value) for name, value in into.items()})
        for name in TYPICAL:
            monkeypatch.setattr(OPERATIONS[name], "reference", fail)
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    for name, value in gradients[0].items():
        numpy.testing.assert_allclose(gradients[1][name], value, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_no_large_array_is_allocated_after_the_first_step(dropout, rehearsal):
    size = Configuration(batch_size=6, hidden=10, features=9, vocabulary=40, wordvec=8, steps=12)
    workload = Workload(size, "lstm")
    model = CaptioningRNN(
        workload.model("cpu").word_to_idx, 9, 8, 10, "lstm", dropout=dropout, seed=0,
        backend=rehearsal,
    )  # fmt: skip
    step = ResidentStep(model, Optimizer("adam"), workload.split, 6, 1.0)
    taken = step.epoch(workload, 0, 0, 0, [1.0] * len(workload))
    next(taken)
    scores = 4 * 6 * 12 * 40
    guard.counters.reset(large_bytes=scores // 4)
    next(taken)
    assert guard.counters.large_arrays == 0
    assert guard.counters.synchronizations == 0


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_captions_are_those_of_the_cpu(cell, rehearsal):
    size = Configuration(batch_size=6, hidden=10, features=9, vocabulary=40, wordvec=8, steps=12)
    workload = Workload(size, cell)
    here, there = (workload.decoding_model(where, numpy.float64) for where in ("cpu", rehearsal))
    features = workload.images_to_decode().astype(numpy.float64)
    found = to_host(there.sample(rehearsal.to_device(features)))
    numpy.testing.assert_array_equal(found, here.sample(features))


class FakeStream:
    """A stream that writes down what is asked of it."""

    def __init__(self, diary):
        self.diary = diary

    def __enter__(self):
        self.diary.append("stream")

    def __exit__(self, *error):
        self.diary.append("end stream")

    def begin_capture(self):
        self.diary.append("begin")

    def end_capture(self):
        self.diary.append("end")
        return SimpleNamespace(launch=lambda: self.diary.append("launch"))


@pytest.fixture
def diary(monkeypatch):
    monkeypatch.setattr(xpcap.kernels.products, "open_cublas", lambda xp, device: "a handle")
    return []


def repeated_in(diary, dtype="float32"):
    cuda = SimpleNamespace(
        Stream=lambda non_blocking: FakeStream(diary),
        using_allocator=lambda allocate: nullcontext(diary.append("allocator")),
        runtime=SimpleNamespace(getDevice=lambda: 0),
    )
    xp = Namespace(__name__="cupy", cuda=cuda, get_default_memory_pool=lambda: None)
    return Repeated(xp, dtype)


class Namespace(SimpleNamespace):
    """A namespace that can be a key, as modules can."""

    __hash__ = object.__hash__


CAPTURE = ["stream", "allocator", "begin", "run", "end", "end stream"]


def test_a_graph_is_captured_once_and_then_launched(diary):
    repeated = repeated_in(diary)
    for _ in range(4):
        repeated(lambda: diary.append("run"))
    assert diary == ["run", *CAPTURE, "launch", "launch", "launch"]


def test_what_cannot_be_captured_is_run_each_time(diary, monkeypatch):
    half = repeated_in(diary, "float16")
    monkeypatch.setattr(xpcap.kernels.products, "open_cublas", lambda xp, device: None)
    without_cublas = repeated_in(diary)
    for repeated in (half, without_cublas):
        diary.clear()
        for _ in range(3):
            repeated(lambda: diary.append("run"))
        assert diary == ["run"] * 3


def test_the_environment_turns_graphs_off(diary, monkeypatch):
    monkeypatch.setenv("XPCAP_GRAPHS", "0")
    repeated = repeated_in(diary)
    for _ in range(3):
        repeated(lambda: diary.append("run"))
    assert diary == ["run"] * 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, ShapeError, MemoryError])
def test_an_error_that_is_not_about_the_capture_is_raised(diary, error):
    def function():
        diary.append("run")
        if diary.count("run") == 2:
            raise error

    repeated = repeated_in(diary)
    repeated(function)
    with pytest.raises(error):
        repeated(function)
    assert diary[-2:] == ["end", "end stream"]
    diary.clear()
    repeated(function)
    assert diary == [*CAPTURE, "launch"]


@pytest.mark.parametrize("error", [RuntimeError, BackendError])
def test_without_a_capture_launches_go_one_by_one(diary, error):
    def function():
        if diary and diary[-1] == "begin":
            raise error("operation not permitted\nwhen stream is capturing")
        diary.append("run")

    repeated = repeated_in(diary)
    repeated(function)
    message = rf"cannot be captured \({error.__name__}: oper.* by one"
    with pytest.warns(RuntimeWarning, match=message) as warned:
        repeated(function)
    repeated(function)  # a second warning would be an error
    (warning,) = warned
    assert len(str(warning.message).splitlines()) == 1
    capture = [what for what in CAPTURE if what != "run"]
    assert diary == ["run", *capture, "run", "run"]
