"""What the benchmark computes; times themselves are not tested."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from click.testing import CliRunner
from commands import one_line
from xpcap_self_critical import WithSelfCritical

from xpcap import threads
from xpcap.backend import CPU
from xpcap.benchmark import clock, contenders
from xpcap.benchmark.contenders import Ours, Products, products
from xpcap.benchmark.timing import Times, interleave
from xpcap.benchmark.workload import (
    CONFIGURATIONS,
    END,
    GRIDS,
    MAX_LENGTH,
    NULL,
    START,
    Configuration,
    Workload,
    draw_captions,
)

SMALL = Configuration(batch_size=20, hidden=24, features=10, vocabulary=50, wordvec=8)
SMALL_GRID = replace(SMALL, regions=6)


@pytest.mark.parametrize(
    ("vocabulary", "count", "distinct"),
    [(1004, 100, 311), (1004, 128, 360), (1004, 512, 678), (10_000, 128, 460), (10_000, 512, 1071)],
)
def test_generated_captions_have_the_statistics_of_coco(vocabulary, count, distinct):
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


@pytest.mark.parametrize(
    ("cell", "scoring"),
    [
        ("rnn", None), ("lstm", None), ("gru", None), ("lstm", "additive"), ("gru", "dot"),
        ("transformer", None),
    ],
)  # fmt: skip
def test_decoded_and_drawn_captions_have_the_lengths_of_the_data(cell, scoring):
    recurrent = cell != "transformer" and scoring is None
    workload = Workload(SMALL if recurrent else SMALL_GRID, cell, scoring=scoring)
    ours = WithSelfCritical(workload, CPU)
    tokens = ours.decode(0)
    assert tokens.shape == (20, MAX_LENGTH)
    expected = (workload.split.captions[:20, 1:] != NULL).sum(axis=1)
    numpy.testing.assert_array_equal((tokens != NULL).sum(axis=1), expected)
    searched, totals = ours.beam(0)
    numpy.testing.assert_array_equal((searched != NULL).sum(axis=1), expected)
    assert (totals < 0).all()
    for k in range(3):
        ours.self_critical(k)
    assert ours.critical.gradient_norm > 0
    captions, rewards = ours.drawn
    numpy.testing.assert_array_equal((captions != NULL).sum(axis=1), numpy.repeat(expected, 5))
    assert rewards.std() > 0


def test_drawn_captions_have_the_word_frequencies_of_the_data():
    workload = Workload(CONFIGURATIONS["seed"], "lstm")
    ours = WithSelfCritical(workload, CPU)
    ours.self_critical(0)
    counts = [
        numpy.bincount(words.ravel(), minlength=1004)[3:]
        for words in (ours.drawn[0], workload.split.captions)
    ]
    drawn, known = (count / count.sum() for count in counts)
    assert drawn[1] == pytest.approx(known[1], rel=0.1)  # the most frequent
    assert abs(drawn - known).sum() / 2 < 0.15


@pytest.mark.parametrize(
    ("config", "cell"),
    [("seed", "rnn"), ("seed", "lstm"), ("seed", "gru"), ("full", "lstm"), ("bigvocab", "lstm")],
)
def test_the_trained_model_starts_near_the_uniform_loss_and_improves(config, cell):
    workload = Workload(CONFIGURATIONS[config], cell)
    ours = Ours(workload, CPU)
    assert float(ours.loss(0)) == pytest.approx(workload.uniform_loss(0), rel=0.05)
    ours.decode(0)
    ours.train(0)
    ours.train(1)
    assert float(ours.loss(0)) < workload.uniform_loss(0)


def test_batches_are_disjoint_and_cyclic():
    workload = Workload(SMALL, "rnn")
    seen = numpy.concatenate([workload.rows(k) for k in range(len(workload.split) // 20)])
    assert len(numpy.unique(seen)) == len(seen)
    assert len(workload.rows(10_000)) == 20


@pytest.mark.parametrize("task", ["train", "loss", "decode"])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru", "transformer"])
def test_every_program_runs_every_task(cell, task):
    workload = Workload(SMALL, cell)
    for program in (Ours(workload, CPU), products(workload, numpy)):
        getattr(program, task)(0)
        getattr(program, task)(1)


def test_the_products_are_all_that_our_training_step_has(monkeypatch):
    """Ours, whose recurrences are not compiled here, and the floor multiply the same shapes."""
    monkeypatch.setenv("XPCAP_COMPILED", "0")

    def shapes_of(function):
        found = []
        original = numpy.matmul

        def matmul(a, b, out):
            found.append((a.shape, b.shape, out.shape))
            return original(a, b, out=out)

        with monkeypatch.context() as patch:
            patch.setattr(numpy, "matmul", matmul)
            function(3)
        return sorted(found)

    for cell in ("rnn", "lstm", "gru", "transformer"):
        workload = Workload(SMALL_GRID if cell == "transformer" else SMALL, cell)
        alone = shapes_of(products(workload, numpy).train)
        assert shapes_of(Ours(workload, CPU).train) == alone
        assert len(alone) > 20


def test_operations_of_a_transformers_products(monkeypatch):
    """Of attention, too, whose products are of stacks of matrices; the operands are as small."""
    workload, found = Workload(SMALL_GRID, "transformer"), []
    alone = products(workload, numpy)

    def counted(xp, a, b, out):
        assert out.shape == (*a.shape[:-1], b.shape[-1])
        found.append(2 * out.size * a.shape[-1])

    monkeypatch.setattr(contenders, "product", counted)
    monkeypatch.setattr(contenders, "stacked_product", counted)
    alone.train(0)
    assert sum(found) == alone.operations
    size = SMALL_GRID
    captions = workload.split.captions[workload.rows(0)]
    lengths = (captions[:, 1:] != NULL).sum(axis=1)
    H, M, L = size.hidden, lengths.sum(), size.regions
    affine = 3 * (M * size.layers * 16 * H * H + M * H * size.vocabulary)
    regions = 2 * size.batch_size * L * size.features * H
    among = size.layers * 7 * (lengths**2).sum() * H
    looking = size.layers * 7 * M * size.heads * L * H
    assert alone.operations == 2 * (affine + regions + among + looking)


def test_bench_of_a_transformer(call, monkeypatch):
    monkeypatch.setitem(GRIDS, "grid-512", SMALL_GRID)
    words = ["bench", "--model", "transformer", "--device", "cpu", "--rounds", "1", "--json"]
    done = call(*words)
    assert done.exit_code == 0, done.output
    found = {(result["config"], result["program"]) for result in json.loads(done.stdout)}
    assert found == {("grid-512", "xpcap"), ("grid-512", "products")}
    one_line(call(*words, "--cell", "lstm"), "--cell goes with --model recurrent")
    one_line(call("bench", "--config", "grid-512"), "grid-512 goes with --model transformer")


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


def test_the_order_of_turns_rotates():
    calls = []
    programs = {name: lambda k, name=name: calls.append((name, k)) for name in "ab"}
    figures = interleave(programs, rounds=2, calls=2, synchronize=lambda: None)
    assert calls == [
        ("a", 0), ("a", 0), ("a", 1), ("b", 0), ("b", 0), ("b", 1),
        ("b", 2), ("b", 2), ("b", 3), ("a", 2), ("a", 2), ("a", 3),
    ]  # fmt: skip
    assert [len(times.rounds) for times in figures.values()] == [2, 2]


def test_medians_quartiles_and_ratios():
    one, other = Times((1.0, 2.0, 3.0)), Times((2.0, 2.0, 9.0))
    assert one.median == 2.0
    assert one.quartiles == (1.5, 2.5)
    assert other.over(one) == 2.0
    assert Times((4.0,)).quartiles == (4.0, 4.0)


@pytest.mark.parametrize(
    ("cell", "scoring"),
    [*itertools.product(["rnn", "lstm", "gru"], [None, "additive", "dot"]), ("transformer", None)],
)
def test_the_pytorch_program_computes_the_same(cell, scoring):
    pytest.importorskip("torch")
    import bench

    recurrent = cell != "transformer" and scoring is None
    workload = Workload(SMALL if recurrent else SMALL_GRID, cell, scoring=scoring)
    for masked in (False, True):
        assert bench.compare(workload, CPU, masked) < 1e-8
        assert bench.compare_self_critical(workload, CPU, masked) < 1e-9


@pytest.mark.parametrize(
    ("cell", "scoring"), [("lstm", None), ("gru", "additive"), ("transformer", None)]
)
def test_both_beams_are_the_same_where_their_captions_end_at_different_steps(
    cell, scoring, monkeypatch
):
    torch = pytest.importorskip("torch")
    from torch_peer import TorchPeer

    monkeypatch.setattr(clock, "_WEIGHT", 2.0)  # the clock alone does not end captions
    size = SMALL if cell == "lstm" else SMALL_GRID
    workload = Workload(replace(size, batch_size=60), cell, scoring=scoring)
    words, totals = Ours(workload, CPU, numpy.float64).beam(0)
    by_clock = (workload.split.captions[:60, 1:] != NULL).sum(axis=1)
    assert ((words != NULL).sum(axis=1) != by_clock).any()
    for masked in (False, True):
        found, log_probs = TorchPeer(workload, "cpu", torch.float64, masked).search(40)
        numpy.testing.assert_array_equal(found.numpy(), words)
        numpy.testing.assert_allclose(log_probs.numpy(), totals, rtol=1e-12)


def test_a_pytorch_program_with_another_loss_is_detected(monkeypatch):
    torch = pytest.importorskip("torch")
    import bench
    import torch_recurrent

    def mean_over_words(self, *args):
        return original(self, *args) / 2

    original = torch_recurrent.Captioner.loss
    monkeypatch.setattr(torch_recurrent.Captioner, "loss", mean_over_words)
    workload = Workload(SMALL, "lstm")
    assert bench.compare(workload, CPU) > 0.1
    assert bench.compare_self_critical(workload, CPU) > 0.1
    assert torch.get_default_dtype() == torch.float32


def test_a_pytorch_program_with_other_rewards_is_detected(monkeypatch):
    pytest.importorskip("torch")
    import bench
    import torch_self_critical

    workload = Workload(SMALL, "lstm")
    monkeypatch.setattr(torch_self_critical, "END", 1)
    assert bench.compare_self_critical(workload, CPU) > 1e-3


def test_both_programs_draw_words_of_the_same_distribution():
    """Both captions have the same mean cross entropy, whichever way PyTorch draws."""
    torch = pytest.importorskip("torch")
    from torch_peer import TorchPeer

    workload = Workload(CONFIGURATIONS["seed"], "lstm")
    ours = WithSelfCritical(workload, CPU)
    ours.self_critical(0)
    torch.manual_seed(0)
    for masked in (False, True):
        critical = TorchPeer(workload, masked=masked).critical
        captions = critical.draw()
        loss = critical.loss(captions, torch.ones(len(captions))).item()
        assert loss == pytest.approx(float(ours.critical.loss), rel=0.05)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: Xeon(R) 1\nflags\t\t: fpu sse2 avx avx2 avx512f\n\n", "Xeon(R) 1, AVX-512"),
        ("model name : EPYC 2\nflags : sse2 avx avx2\nmodel name : EPYC 2\n", "EPYC 2, AVX2"),
    ],
)
def test_the_processor_is_named_with_its_instruction_set(text, expected, tmp_path):
    from bench import processor

    (tmp_path / "cpuinfo").write_text(text)
    assert processor(tmp_path / "cpuinfo") == expected
    assert processor(tmp_path / "none")


@pytest.fixture
def bench(monkeypatch):
    """`tools/bench.py` with small sizes and without peers of other libraries."""
    import bench

    monkeypatch.setitem(bench.KNOWN, "seed", SMALL)
    monkeypatch.setattr(bench, "HAS_TORCH", False)
    monkeypatch.setattr(bench, "check_first_loss", lambda *args: None)
    monkeypatch.setattr(bench, "peak_memory", lambda *args: 2**20)
    return bench


WORDS = ["--config", "seed", "--cell", "rnn", "--rounds", "1", "--calls", "1"]


def test_a_failing_program_does_not_stop_the_others(bench, monkeypatch, tmp_path):
    """When it is made, when it first works, and when it is asked for its memory."""
    file = tmp_path / "figures.json"

    def fail(*args):
        raise RuntimeError("out of order\nand more")

    monkeypatch.setattr(bench, "WithNumPyAlone", fail)
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
        ("decode", "xpcap"), ("beam", "xpcap"), ("self-critical", "xpcap"),
    ]  # fmt: skip
    assert found["processor"] == bench.processor()
    assert bench.processor() in done.output


def test_load_compares_numbers_of_threads(bench, monkeypatch, tmp_path):
    """While processes are busy, which end with the measurement of a task."""
    file, started, busy_while = tmp_path / "figures.json", [], []

    @contextlib.contextmanager
    def busy_processes(count, nice):
        with keep_busy(count, nice) as processes:
            started.extend(processes)
            yield processes

    def interleave(*args):
        busy_while.append([process.poll() is None for process in started])
        return original(*args)

    original, keep_busy = bench.interleave, bench.busy_processes
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


def test_busy_processes_end_with_their_context():
    from bench import busy_processes

    with pytest.raises(RuntimeError):
        with busy_processes(2, nice=19) as processes:
            assert [process.poll() for process in processes] == [None, None]
            raise RuntimeError
    assert None not in [process.poll() for process in processes]


def test_busy_processes_end_when_their_parent_is_killed():
    code = (
        "import os, signal\nfrom bench import busy_processes\n"
        "with busy_processes(1) as started:\n"
        "    print(started[0].pid, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=paths) as parent:
        assert parent.stdout is not None
        assert parent.stdout.read().strip().isdigit()  # to its end: nobody has it open any more
    assert parent.returncode == -signal.SIGKILL


def test_the_tool_runs_from_a_bare_checkout(tmp_path):
    """It runs the package beside it, whatever is installed."""
    root = Path(__file__).resolve().parent.parent
    for folder in ("tools", "xpcap"):
        shutil.copytree(root / folder, tmp_path / folder)
    code = f"import runpy; runpy.run_path({str(tmp_path / 'tools' / 'bench.py')!r}); import xpcap;"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code + "print(xpcap.__file__)"],
        cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(tmp_path / "xpcap" / "__init__.py")
