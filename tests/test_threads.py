"""The number of BLAS threads, chosen on a simulated clock; no test depends on real times."""

import itertools
import json
import math
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
from tiny import make_tiny

import xpcap
from xpcap import threads
from xpcap.backend import CPU
from xpcap.benchmark import busy_processes
from xpcap.data.pca import PCA
from xpcap.errors import ConfigurationError
from xpcap.run_folder import open_run
from xpcap.threads import COST, LONGEST, Chooser, IdleProcessors, available, use_threads
from xpcap.train.options import RunOptions
from xpcap.train.run import train_run
from xpcap.train.trainer import Schedule

SMALL = ["--hidden", 8, "--wordvec", 4, "--batch-size", 10]
STEP = 0.1  # seconds on one thread of an idle machine


class Machine:
    """Cores, some of them busy; a step takes long where a thread has to wait for a core."""

    def __init__(self, cores=2, busy=0, noise=0.0):
        self.cores, self.busy, self.noise = cores, busy, noise
        self.now, self.threads, self.switches, self.told = 0.0, 1, 0, []
        self._random = random.Random(0)

    def clock(self):
        return self.now

    def apply(self, number):
        self.switches += number != self.threads
        self.threads = number

    def idle(self):
        return max(self.cores - self.busy - self.threads, 0)

    def seconds(self, number):
        free = max(self.cores - self.busy, 1)
        return STEP / number * (8 if number > free else 1)

    def work(self, amount=1.0):
        factor = 1 + self.noise * self._random.uniform(-1, 1)
        self.now += amount * factor * self.seconds(self.threads)

    def chooser(self):
        most = threads.candidates(self.cores)
        chooser = Chooser(most, 1, self.apply, self.idle, self.told.append, self.clock)
        chooser.probe(lambda: self.work(0.02))
        return chooser

    def train(self, chooser, until, amounts=(1.0,)):
        while self.now < until:
            for amount in amounts:
                with chooser.measured(amount):
                    self.work(amount)


@pytest.mark.parametrize(("busy", "expected"), [(0, 2), (1, 1), (2, 1)])
def test_the_first_number_is_that_with_which_products_are_fast(busy, expected):
    machine = Machine(busy=busy)
    assert machine.chooser().number == expected


def test_a_number_that_is_clearly_worse_is_given_up_after_one_window():
    machine = Machine(cores=8, busy=7)
    assert machine.chooser().number == 1
    assert machine.now < 0.1


def test_load_brings_the_number_down_and_its_end_brings_it_up_again():
    machine = Machine()
    chooser = machine.chooser()
    machine.train(chooser, 10)
    assert chooser.number == 2
    machine.busy = 1
    machine.train(chooser, 14)
    assert chooser.number == 1
    switches = machine.switches
    machine.train(chooser, 60)
    assert chooser.number == 1
    assert machine.switches == switches  # no processor is idle
    machine.busy = 0
    machine.train(chooser, 65)
    assert chooser.number == 2
    assert [line.split(",")[0] for line in machine.told] == ["threads: 1", "threads: 2"]


def test_many_cores_are_followed_down_and_up():
    machine = Machine(cores=12)
    chooser = machine.chooser()
    machine.train(chooser, 40)
    assert chooser.number == 12
    for busy, expected in ((9, 2), (0, 12)):
        machine.busy = busy
        machine.train(chooser, machine.now + 40)
        assert chooser.number == expected


@pytest.mark.parametrize("busy", [0, 1, 2])
@pytest.mark.parametrize("hidden", [False, True])
def test_trials_cost_less_than_their_share(busy, hidden, monkeypatch):
    machine = Machine(busy=busy, noise=0.1)
    if hidden:  # as where the system has no statistics
        monkeypatch.setattr(machine, "idle", lambda: math.inf)
    chooser = machine.chooser()
    machine.train(chooser, 600)
    steps = (600 - chooser.spent) / machine.seconds(2 if busy == 0 else 1)
    best = steps * machine.seconds(2 if busy == 0 else 1)
    assert chooser.spent < COST * 600
    assert best > 600 * (1 - COST)


def test_trials_of_long_steps_cost_no_more():
    machine = Machine()
    chooser = machine.chooser()
    machine.train(chooser, 3000, amounts=(20.0,))
    assert 0 < chooser.spent < COST * 3000


def test_a_trial_ends_after_one_step_that_is_clearly_worse(monkeypatch):
    machine, used = Machine(busy=1), []
    monkeypatch.setattr(machine, "idle", lambda: math.inf)
    chooser = machine.chooser()
    while machine.now < 100:
        with chooser.measured(1.0):
            machine.work()
            used.append(machine.threads)
    assert used.count(2) > 1
    assert (2, 2) not in itertools.pairwise(used)


def test_noise_and_single_outliers_change_nothing():
    machine = Machine(noise=0.25)
    chooser = machine.chooser()
    for _ in range(100):
        machine.train(chooser, machine.now + 3)
        with chooser.measured(1.0):
            machine.work(20)
    assert machine.told == []
    assert chooser.number == 2


def test_steps_of_all_sizes_are_compared_by_their_work():
    machine = Machine()
    chooser = machine.chooser()
    machine.train(chooser, 100, amounts=[*[1.0] * 9, *[4.0] * 9])
    assert machine.told == []
    assert chooser.spent < COST * 100


def test_numbers_that_are_equally_fast_do_not_alternate():
    machine = Machine(noise=0.02)
    machine.seconds = lambda number: STEP
    chooser = machine.chooser()
    machine.train(chooser, 300)
    assert chooser.number == 1
    assert machine.told == []


def test_trials_become_rare():
    machine = Machine()
    chooser = machine.chooser()
    machine.train(chooser, 300)
    assert machine.switches / 2 < 10 + 300 / LONGEST


def test_a_machine_of_one_core_has_nothing_to_choose():
    machine = Machine(cores=1)
    chooser = machine.chooser()
    machine.busy = 1
    machine.train(chooser, 50)
    assert chooser.number == 1
    assert machine.switches == 0


def test_work_that_fails_is_not_measured():
    machine = Machine()
    chooser = machine.chooser()
    with pytest.raises(RuntimeError):
        with chooser.measured(1.0):
            raise RuntimeError
    machine.train(chooser, 10)
    assert chooser.number == 2


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
    monkeypatch.setattr(threads, "_processors", lambda: range(8))
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
    eight.setattr(threads, "available", lambda: expected)
    with use_threads("auto") as chosen:
        assert chosen.fixed == expected


def test_processors_used_by_programs_of_low_priority_count_as_idle(tmp_path, eight):
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu 9 9 9 9\ncpu0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0\ncpu9 0 0 0 0 0 0 0 0\n"
    )
    idle = IdleProcessors(stat)
    stat.write_text("cpu0 20 50 5 20 5 0 0 0 0\ncpu1 90 0 0 10 0 0 0 0\ncpu9 0 0 0 99 0 0 0 0\n")
    assert idle() == pytest.approx(0.75 + 0.1)
    assert idle() == 0  # no time has passed
    assert IdleProcessors(tmp_path / "missing")() == math.inf


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "", "99999", "²"])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ConfigurationError, match=f"'{value}' is neither auto nor a positive"):
        use_threads(value)


def test_the_number_is_set_inside_a_block_and_restored_after_it():
    assert threads.number() is None
    before = [controller.num_threads for controller in threads._controllers()]
    with xpcap.use_threads(1) as outer:
        assert threads.number() == threads.limit() == 1
        with xpcap.use_threads("2"):
            assert threads.limit() == 2
        assert threads.number() == 1
        with outer:
            assert threads.number() == 1
    assert threads.number() is None
    assert [controller.num_threads for controller in threads._controllers()] == before


@pytest.mark.parametrize("value", ["0", "many", "-2"])
def test_a_number_that_cannot_be_is_one_line(call, value):
    result = call("train", "--threads", value)
    assert result.exit_code == 2
    assert f"'{value}' is neither auto nor a positive number" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_history_of_a_command_has_the_number_of_threads(call, tmp_path):
    make_tiny(tmp_path / "tiny")
    for number in ("1", "2", "auto"):
        out = ["--data", "tiny", "--epochs", "1", "--out", f"run-{number}"]
        result = call("train", *SMALL, *out, "--device", "cpu", "--threads", number)
        assert result.exit_code == 0, result.output
        found = {json.loads(line)["threads"] for line in steps(tmp_path / f"run-{number}")}
        if number == "auto":
            assert all(1 <= n <= available() for n in found)
        else:
            assert found == {int(number)}
    assert threads.number() is None


def test_training_evaluation_decoding_and_pca_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "available", lambda: 2)
    options = RunOptions(hidden=8, wordvec=4, batch_size=10, schedule=Schedule(epochs=2))
    data = make_tiny(tmp_path / "tiny")
    with use_threads("auto") as auto:
        train_run(data, tmp_path / "run", options, CPU)
        run = open_run(tmp_path / "run", CPU)
        features = numpy.eye(7, dtype=numpy.float32)
        run.caption(features)
        run.score(features, numpy.ones((7, 3), numpy.int32))
        PCA.fit(numpy.random.default_rng(0).random((50, 7), numpy.float32), 3).transform(features)
        PCA.fit(features[:5], 3)
    expected = {"step", "evaluate", "decode", "score", "covariance", "transform", "gram"}
    assert auto._choosers.keys() == expected
    assert all(chooser._times or chooser._trial for chooser in auto._choosers.values())
    assert all(json.loads(line)["threads"] in (1, 2) for line in steps(tmp_path / "run"))


def steps(run):
    lines = (run / "history.jsonl").read_text().splitlines()
    return [line for line in lines if '"lr"' in line]


def test_other_threads_are_not_measured(monkeypatch):
    monkeypatch.setattr(threads, "available", lambda: 2)
    matrix = numpy.ones((4, 4), numpy.float32)
    with use_threads("auto") as auto:
        with ThreadPoolExecutor(1) as other:
            other.submit(lambda: threads.measured("work", 1, 4, matrix).__enter__()).result()
        assert not auto._choosers
        with threads.measured("work", 1, 4, matrix):
            pass
        assert auto._choosers


def test_busy_processes_end_with_their_context():
    with pytest.raises(RuntimeError):
        with busy_processes(2, nice=19) as processes:
            assert [process.poll() for process in processes] == [None, None]
            raise RuntimeError
    assert None not in [process.poll() for process in processes]


def test_busy_processes_end_when_their_parent_is_killed():
    code = (
        "import os, signal\nfrom xpcap.benchmark import busy_processes\n"
        "with busy_processes(1) as started:\n"
        "    print(started[0].pid, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.read().strip().isdigit()  # to its end: nobody has it open any more
    assert parent.returncode == -signal.SIGKILL
