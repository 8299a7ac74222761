"""What the benchmark times is what it says; times themselves are not tested."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from click.testing import CliRunner

from xpcap import threads
from xpcap.backend import CPU
from xpcap.benchmark import (
    CONFIGURATIONS,
    Configuration,
    Ours,
    Products,
    Times,
    Workload,
    contenders,
    draw_captions,
    interleave,
    load,
)
from xpcap.benchmark.machine import processor
from xpcap.benchmark.workload import END, MAX_LENGTH, NULL, START

SMALL = Configuration(batch_size=20, hidden=24, features=10, vocabulary=50, wordvec=8)


@pytest.mark.parametrize(
    ("vocabulary", "count", "distinct"),
    [(1004, 100, 311), (1004, 128, 360), (1004, 512, 678), (10_000, 128, 460), (10_000, 512, 1071)],
)
def test_captions_are_like_those_of_coco(vocabulary, count, distinct):
    """The numbers of different words were counted in val2017's captions of at most 15 words."""
    rng = numpy.random.default_rng(0)
    batches = [draw_captions(count, vocabulary, 16, rng) for _ in range(20)]
    read = [numpy.unique(c[:, :-1][c[:, 1:] != NULL]) for c in batches]
    assert numpy.mean([len(words) for words in read]) == pytest.approx(distinct, rel=0.05)
    assert numpy.mean([(c[:, 1:] != NULL).mean() for c in batches]) == pytest.approx(0.7, abs=0.01)
    for captions in batches:
        lengths = (captions != NULL).sum(axis=1)
        assert (captions[:, 0] == START).all()
        assert (captions[numpy.arange(count), lengths - 1] == END).all()
        assert ((captions == END).sum(axis=1) == 1).all()


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_decoded_captions_have_the_lengths_of_the_data(cell):
    workload = Workload(SMALL, cell)
    said = Ours(workload, CPU).decode(0)
    assert said.shape == (20, MAX_LENGTH)
    expected = (workload.split.captions[:20, 1:] != NULL).sum(axis=1)
    numpy.testing.assert_array_equal((said != NULL).sum(axis=1), expected)


@pytest.mark.parametrize(
    ("config", "cell"),
    [("seed", "rnn"), ("seed", "lstm"), ("seed", "gru"), ("full", "lstm"), ("bigvocab", "lstm")],
)
def test_the_model_that_is_trained_is_an_ordinary_one(config, cell):
    """Its first loss is near that of a guess among all words, and steps bring it down."""
    workload = Workload(CONFIGURATIONS[config], cell)
    ours = Ours(workload, CPU)
    assert float(ours.loss(0)) == pytest.approx(workload.loss_of_guessing(0), rel=0.05)
    ours.decode(0)
    ours.train(0)
    ours.train(1)
    assert float(ours.loss(0)) < workload.loss_of_guessing(0)


def test_batches_go_round():
    workload = Workload(SMALL, "rnn")
    seen = numpy.concatenate([workload.rows(k) for k in range(len(workload.split) // 20)])
    assert len(numpy.unique(seen)) == len(seen)
    assert len(workload.rows(10_000)) == 20


@pytest.mark.parametrize("task", ["train", "loss", "decode"])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_every_program_does_every_task(cell, task):
    workload = Workload(SMALL, cell)
    for program in (Ours(workload, CPU), Products(workload, numpy)):
        getattr(program, task)(0)
        getattr(program, task)(1)


def test_the_products_are_all_that_our_training_step_has(monkeypatch):
    """Ours, through its kernel, and the floor multiply the same shapes."""

    def shapes_of(function):
        found = []
        original = numpy.matmul

        def matmul(a, b, out):
            found.append((a.shape, b.shape, out.shape))
            return original(a, b, out=out)

        monkeypatch.setattr(numpy, "matmul", matmul)
        function(3)
        monkeypatch.undo()
        return sorted(found)

    for cell in ("rnn", "lstm", "gru"):
        workload = Workload(SMALL, cell)
        products = shapes_of(Products(workload, numpy).train)
        assert shapes_of(Ours(workload, CPU).train) == products
        assert len(products) > 20


def test_products_on_a_gpu_are_replayed_without_python(gpu, monkeypatch):
    """The first call launches them, the second captures them."""
    calls = []
    monkeypatch.setattr(contenders, "product", lambda xp, *arrays: calls.append(arrays))
    products = Products(Workload(SMALL, "lstm"), gpu.xp)
    for task in ("train", "decode"):
        calls.clear()
        getattr(products, task)(0)
        launched = len(calls)
        for k in range(1, 5):
            getattr(products, task)(k)
        assert len(calls) == 2 * launched > 0


def test_turns_are_taken_in_changing_order():
    calls = []
    programs = {name: lambda k, name=name: calls.append((name, k)) for name in "ab"}
    figures = interleave(programs, rounds=2, calls=2, synchronize=lambda: None)
    assert calls == [
        ("a", 0), ("a", 0), ("a", 1), ("b", 0), ("b", 0), ("b", 1),
        ("b", 2), ("b", 2), ("b", 3), ("a", 2), ("a", 2), ("a", 3),
    ]  # fmt: skip
    assert [len(times.rounds) for times in figures.values()] == [2, 2]


def test_figures():
    one, other = Times((1.0, 2.0, 3.0)), Times((2.0, 2.0, 9.0))
    assert one.median == 2.0
    assert one.quartiles == (1.5, 2.5)
    assert other.over(one) == 2.0
    assert Times((4.0,)).quartiles == (4.0, 4.0)


def test_named_sizes():
    assert {name: c.vocabulary for name, c in CONFIGURATIONS.items()} == {
        "seed": 1004, "full": 1004, "bigvocab": 10_000
    }  # fmt: skip


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_the_peer_in_pytorch_computes_the_same(cell):
    pytest.importorskip("torch")
    import bench

    for masked in (False, True):
        assert bench.compare(Workload(SMALL, cell), CPU, masked) < 1e-8


def test_a_peer_that_computes_something_else_is_found(monkeypatch):
    torch = pytest.importorskip("torch")
    import bench
    import torch_peer

    def mean_over_words(self, features, captions):
        return original(self, features, captions) / 2

    original = torch_peer.Captioner.loss
    monkeypatch.setattr(torch_peer.Captioner, "loss", mean_over_words)
    assert bench.compare(Workload(SMALL, "lstm"), CPU) > 0.1
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: Xeon(R) 1\nflags\t\t: fpu sse2 avx avx2 avx512f\n\n", "Xeon(R) 1, AVX-512"),
        ("model name : EPYC 2\nflags : sse2 avx avx2\nmodel name : EPYC 2\n", "EPYC 2, AVX2"),
    ],
)
def test_the_processor_is_named_with_its_instruction_set(text, expected, tmp_path):
    (tmp_path / "cpuinfo").write_text(text)
    assert processor(tmp_path / "cpuinfo") == expected
    assert processor(tmp_path / "none")


@pytest.fixture
def bench(monkeypatch):
    """`tools/bench.py` with small sizes and without peers of other libraries."""
    import bench

    monkeypatch.setitem(bench.CONFIGURATIONS, "seed", SMALL)
    monkeypatch.setattr(bench, "HAS_TORCH", False)
    monkeypatch.setattr(bench, "check_first_loss", lambda *args: None)
    monkeypatch.setattr(bench, "peak_memory", lambda *args: 2**20)
    return bench


WORDS = ["--config", "seed", "--cell", "rnn", "--rounds", "1", "--calls", "1"]


def test_a_contender_that_fails_leaves_the_others(bench, monkeypatch, tmp_path):
    """When it is made, when it first works, and when it is asked for its memory."""
    file = tmp_path / "figures.json"

    def fail(*args):
        raise RuntimeError("out of order\nand more")

    monkeypatch.setattr(bench, "WithoutCompiledKernels", fail)
    monkeypatch.setattr(Products, "decode", fail)
    monkeypatch.setattr(bench, "peak_memory", fail)
    done = CliRunner().invoke(bench.main, [*WORDS, "--json", str(file)])
    assert done.exit_code == 1
    assert "seed rnn decode: products left out: RuntimeError: out of order\n" in done.output
    assert "seed rnn train: numpy left out: RuntimeError: out of order\n" in done.output
    assert "seed rnn: no peak memory of xpcap: RuntimeError: out of order\n" in done.output
    found = json.loads(file.read_text())
    assert [(r["task"], r["program"]) for r in found["results"]] == [
        ("train", "xpcap"), ("train", "products"), ("loss", "xpcap"), ("loss", "products"),
        ("decode", "xpcap"),
    ]  # fmt: skip
    assert found["processor"] == processor()
    assert processor() in done.output


def test_load_compares_numbers_of_threads(bench, monkeypatch, tmp_path):
    """While processes are busy, which end with the measurement of a task."""
    file, started, busy_while = tmp_path / "figures.json", [], []

    @contextlib.contextmanager
    def busy_processes(count, nice):
        with load.busy_processes(count, nice) as processes:
            started.extend(processes)
            yield processes

    def interleave(*args):
        busy_while.append([process.poll() is None for process in started])
        return original(*args)

    original = bench.interleave
    monkeypatch.setattr(bench, "busy_processes", busy_processes)
    monkeypatch.setattr(bench, "interleave", interleave)
    monkeypatch.setattr(threads, "available", lambda: 2)
    words = [*WORDS, "--task", "train", "--task", "decode", "--load", "1", "--nice", "3"]
    done = CliRunner().invoke(bench.main, [*words, "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert busy_while == [[True], [False, True]]
    assert None not in [process.poll() for process in started]
    found = json.loads(file.read_text())
    assert [(r["task"], r["program"]) for r in found["results"]] == [
        (task, name) for task in ("train", "decode") for name in ("xpcap", "xpcap, 1")
    ]
    assert (found["load"], found["nice"]) == (1, 3)


def test_it_starts_from_a_bare_checkout(tmp_path):
    """It runs the package beside it, whatever is installed."""
    root = Path(__file__).resolve().parent.parent
    (tmp_path / "tools").mkdir()
    shutil.copy(root / "tools" / "bench.py", tmp_path / "tools")
    shutil.copytree(root / "xpcap", tmp_path / "xpcap")
    code = f"import runpy; runpy.run_path({str(tmp_path / 'tools' / 'bench.py')!r}); import xpcap;"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code + "print(xpcap.__file__)"],
        cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(tmp_path / "xpcap" / "__init__.py")
