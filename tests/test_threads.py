"""CPU threads: their number, and work shared among them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy
import pytest
from runs import TRANSFORMER
from tiny import make_tiny

import xpcap
from xpcap import CaptioningRNN, threads
from xpcap.backend import CPU
from xpcap.decoding import Beam, Sampling
from xpcap.errors import ConfigurationError, ShapeError
from xpcap.models.objective import Objective
from xpcap.runs import open_run
from xpcap.threads import available, use_threads
from xpcap.training.options import RunOptions
from xpcap.training.run import resume_run, train_run
from xpcap.training.shared import SharedLoss
from xpcap.training.trainer import Schedule

SMALL = ["--hidden", 8, "--wordvec", 4, "--batch-size", 10]


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


V1 = "3:cpuset:/\n2:cpu,cpuacct:/docker/abc\n1:memory:/\n"
QUOTAS = {
    "none": ({}, 8),
    "v2": ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "300000 100000\n"}, 3),
    "v2 without a limit": (
        {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"},
        8,
    ),
    "v2, a group above": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "500000 100000\n",
        },
        2,
    ),
    "v2 in a container": (
        {"proc/self/cgroup": "0::/../x\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"},
        1,
    ),
    "v1": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    "v1 in a container": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        2,
    ),
    "v1 without a limit": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        8,
    ),
}  # fmt: skip


@pytest.fixture
def eight(monkeypatch):
    for name in threads.LIMITS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_processors", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    return monkeypatch


@pytest.mark.parametrize(("files", "expected"), QUOTAS.values(), ids=QUOTAS)
def test_a_quota_limits_the_number(files, expected, tmp_path, eight):
    write(tmp_path, files)
    assert available(tmp_path) == expected


def test_the_environment_limits_the_number(tmp_path, eight):
    eight.setenv("OMP_NUM_THREADS", "3")
    assert available(tmp_path) == 3
    eight.setenv("OPENBLAS_NUM_THREADS", "many")
    assert available(tmp_path) == 3
    eight.setenv("OMP_NUM_THREADS", "30")
    assert available(tmp_path) == 8


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, 1),
        ({"PMI_SIZE": "8", "MPI_LOCALNRANKS": "2"}, 4),
        ({"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_TASKS_PER_NODE": "3(x2)"}, 2),
        ({"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "2,1"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "64", "OMPI_COMM_WORLD_LOCAL_SIZE": "64"}, 1),
    ],
)
def test_ranks_of_one_machine_share_its_processors(names, expected, tmp_path, eight):
    for name, value in names.items():
        eight.setenv(name, value)
    assert available(tmp_path) == expected


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "", "99999", "²"])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ConfigurationError, match=f"'{value}' is neither auto nor a positive"):
        use_threads(value)


def test_the_number_is_set_inside_a_block_and_restored_after_it():
    before = blas_threads()
    assert threads.number() == 1  # XPCAP_THREADS in tests/conftest.py
    assert not threads.automatic()
    with xpcap.use_threads(1) as outer:
        assert threads.number() == 1
        with xpcap.use_threads("2"):
            assert threads.number() == 2
            assert set(blas_threads()) == {2}
        assert threads.number() == 1
        with outer:
            assert threads.number() == 1
    assert blas_threads() == before


def test_callers_in_several_threads_have_settings_of_their_own():
    inside, meeting = [], threading.Barrier(2, timeout=60)

    def call(number):
        with threads.shared_among(number):
            meeting.wait()
            inside.append(threads.number() == number)
            meeting.wait()
        meeting.wait()
        return threads.number()

    with ThreadPoolExecutor(2) as callers:
        after = list(callers.map(call, (2, 3)))
    assert inside == [True, True]
    assert after == [1, 1]
    assert threads.number() == 1


def test_the_environment_sets_the_number(monkeypatch):
    threads._default.cache_clear()
    monkeypatch.setenv("XPCAP_THREADS", "3")
    assert threads.number() == 3
    monkeypatch.delenv("XPCAP_THREADS")
    assert threads.number() == available()
    assert threads.automatic()
    monkeypatch.setenv("XPCAP_THREADS", "many")
    with pytest.raises(ConfigurationError, match="'many' is neither auto nor a positive"):
        threads.number()


def blas_threads():
    return [controller.num_threads for controller in threads._controllers()]


@pytest.mark.parametrize(
    ("count", "number", "expected"),
    [
        (128, 2, [(0, 64), (64, 128)]),
        (100, 3, [(0, 33), (33, 66), (66, 100)]),
        (31, 8, [(0, 31)]),
        (40, 8, [(0, 20), (20, 40)]),
        (0, 2, [(0, 0)]),
    ],
)
def test_spans_are_equal_and_not_too_short(count, number, expected):
    with use_threads(number):
        spans = threads.spans(count)
    assert [(span.start, span.stop) for span in spans] == expected


def test_tasks_run_side_by_side_with_a_one_threaded_blas():
    meeting = threading.Barrier(3, timeout=60)

    def task(k):
        meeting.wait()
        return k, threading.get_ident(), blas_threads()

    with use_threads(3):
        results = threads.run([partial(task, k) for k in range(3)])
        assert set(blas_threads()) == {3}
    assert [k for k, _, _ in results] == [0, 1, 2]
    assert results[0][1] == threading.get_ident()
    assert len({thread for _, thread, _ in results}) == 3
    assert {n for _, _, numbers in results for n in numbers} == {1}


def test_blas_has_its_threads_again_when_the_last_of_several_callers_has_ended():
    first_ended, second_began = threading.Event(), threading.Event()

    def first():
        second_began.wait(60)

    def second():
        second_began.set()
        first_ended.wait(60)
        return blas_threads()

    with use_threads(2), ThreadPoolExecutor(1) as caller:
        other = caller.submit(threads.run, [second])
        threads.run([first])
        first_ended.set()
        (numbers,) = other.result()
        assert set(numbers) == {1}
        assert set(blas_threads()) == {2}


@pytest.mark.parametrize("failing", [0, 1])
def test_all_tasks_have_ended_when_one_has_failed(failing):
    ended = []

    def task(k):
        if k == failing:
            raise ZeroDivisionError
        time.sleep(0.05)
        ended.append(k)

    with pytest.raises(ZeroDivisionError):
        threads.run([partial(task, k) for k in range(2)])
    assert ended == [1 - failing]
    assert threads.run([lambda: 5]) == [5]


def test_an_interrupt_waits_for_the_other_tasks():
    """They write into memory that the caller may use again."""
    ended, began = [], threading.Event()

    def slow():
        began.set()
        time.sleep(0.3)
        ended.append(True)

    main = threading.main_thread().ident
    timer = threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        threads.run([lambda: timer.start() or began.wait(60), slow])
        time.sleep(60)
    assert ended == [True]


def test_a_setting_made_while_others_compute_counts_after_them():
    entered, go = threading.Event(), threading.Event()

    def task():
        entered.set()
        go.wait(60)
        return blas_threads()

    with ThreadPoolExecutor(1) as caller, use_threads(2):
        other = caller.submit(threads.run, [task])
        entered.wait(60)
        with use_threads(3):
            assert set(blas_threads()) == {1}
            go.set()
            assert {n for numbers in other.result() for n in numbers} == {1}
            assert set(blas_threads()) == {3}
        assert set(blas_threads()) == {2}


def test_a_setting_is_that_of_all_threads_of_the_process():
    with use_threads(3), ThreadPoolExecutor(1) as caller:
        assert caller.submit(threads.number).result() == 3


def test_tasks_inside_tasks_run_one_after_another():
    def outer():
        return threads.run([threading.get_ident, threading.get_ident])

    for inner in threads.run([outer, outer]):
        assert len(set(inner)) == 1


def test_a_task_sees_its_callers_floating_point_errors_setting():
    with numpy.errstate(over="ignore"):
        found = threads.run([numpy.geterr, numpy.geterr])
    assert [setting["over"] for setting in found] == ["ignore", "ignore"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_has_threads_of_its_own():
    threads.run([int, int])
    code = (
        "import os, sys\nfrom xpcap import threads\nthreads.run([int, int])\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(threads.run([int, int]) != [0, 0])\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("value", ["0", "many", "-2"])
def test_a_number_that_cannot_be_is_one_line(call, value):
    result = call("train", "--threads", value)
    assert result.exit_code == 2
    assert f"'{value}' is neither auto nor a positive number" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def trained(folder, number, *, epochs=1, **options):
    data = folder / "tiny"
    if not data.exists():
        make_tiny(data)
    options = {"hidden": 8, "wordvec": 4, **options}
    how = RunOptions(schedule=Schedule(epochs=epochs), **options)
    with use_threads(number):
        train_run(data, folder / f"run-{number}", how, CPU)
    return folder / f"run-{number}"


def losses(run):
    lines = map(json.loads, (run / "history.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "lr" in line]


@pytest.mark.parametrize(
    "family", [{"wordvec": 4, "dropout": 0.3}, {**TRANSFORMER, "lr": 0.05, "epochs": 6}]
)
def test_numbers_of_threads_give_the_same_within_rounding(tmp_path, family):
    """With dropout too: its masks do not depend on how captions are shared."""
    runs = [trained(tmp_path, n, batch_size=40, dtype="float64", **family) for n in (1, 2)]
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-10)
    assert losses(runs[0]) != losses(runs[1])  # a sum in another order


def test_gradients_of_any_memory_order_are_summed():
    model = CaptioningRNN({"<NULL>": 0, "<START>": 1, "<END>": 2}, 3, 4, 5, "gru", seed=0)
    rng = numpy.random.default_rng(0)
    features, captions = rng.random((40, 3)), rng.integers(3, size=(40, 6))
    expected = {name: numpy.empty_like(value) for name, value in model.params.items()}
    Objective(model, 0.1).loss(features, captions, 0, expected)
    found = {name: numpy.empty_like(value, order="F") for name, value in model.params.items()}
    with use_threads(2):
        SharedLoss(model, 0.1).loss(features, captions, 0, found)
    for name, value in expected.items():
        numpy.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6)


def test_shares_of_features_that_do_not_fit_are_refused():
    model = CaptioningRNN({"<NULL>": 0, "<START>": 1, "<END>": 2}, 3, 4, 5, seed=0)
    with use_threads(2), pytest.raises(ShapeError, match="features"):
        SharedLoss(model).evaluate(numpy.zeros((50, 3)), numpy.ones((40, 6), int))


def test_a_resumed_run_uses_its_own_number_of_threads(tmp_path, monkeypatch):
    monkeypatch.setenv("XPCAP_THREADS", "auto")
    whole = trained(tmp_path / "whole", 2, epochs=2, batch_size=40)
    run = trained(tmp_path / "half", 2, epochs=1, batch_size=40)

    def longer(options):
        return replace(options, schedule=Schedule(epochs=2))

    monkeypatch.setattr(threads, "available", lambda: 1)
    with use_threads("auto"):
        resume_run(run, CPU, longer)
    assert losses(run) == losses(whole)
    assert open_run(run, CPU).config["training"]["threads"] == 2


def test_a_resumed_run_can_be_given_another_number(tmp_path):
    run = trained(tmp_path, 2, batch_size=40)
    with use_threads(1):
        resume_run(run, CPU, lambda options: replace(options, schedule=Schedule(epochs=2)))
    assert open_run(run / "last.safetensors", CPU).config["training"]["threads"] == 1


def test_decoding_and_likelihoods_are_shared(tmp_path, monkeypatch):
    run = open_run(trained(tmp_path, 1), CPU)
    features = numpy.random.default_rng(0).random((70, 7), numpy.float32)
    captions = numpy.ones((70, 3), numpy.int32)
    several, original = [], threads.run
    monkeypatch.setattr("xpcap.models.generation._WORK", 0)  # however small the model is

    def counted(tasks):
        several.append(len(tasks))
        return original(tasks)

    monkeypatch.setattr(threads, "run", counted)
    for how in (None, Beam(width=2), Sampling(count=2, seed=3)):
        one = run.decode(features, how)
        with use_threads(4):
            four = run.decode(features, how)
        numpy.testing.assert_array_equal(one.words, four.words)
        numpy.testing.assert_allclose(one.log_probs, four.log_probs, rtol=1e-5)
    one = run.score(features, captions)
    with use_threads(4):
        numpy.testing.assert_allclose(run.score(features, captions), one, rtol=1e-5)
        greedy = run.model.sample(features, 9)
    numpy.testing.assert_array_equal(greedy, run.model.sample(features, 9))
    assert several == [1, 4] * 4 + [4, 1]
