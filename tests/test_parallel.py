"""Ranks: those that mpirun starts, and what is decided before it has."""

import json
import os
import re
import signal
import sys
import time
from types import SimpleNamespace

import click
import h5py
import numpy
import pytest
from guard import open_guard
from mpi import commands, missing, needs_mpi, start, together
from own import own
from tiny import make_tiny

from xpcap import distributed
from xpcap.backend import CPU
from xpcap.cli import main
from xpcap.cli import train as cli_train
from xpcap.distributed import Alone, MPIRanks, by_first, check_alike, in_turn, share_out
from xpcap.errors import ConfigurationError
from xpcap.runs.checkpoint import read_checkpoint

NAMES = [
    "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK",
    "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID",
    "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID",
]  # fmt: skip
SMALL = ["--hidden", "16", "--batch-size", "10", "--epochs", "10"]  # 50 steps


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Let tests that run on ranks themselves forget it."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "launched", "rank", "local"),
    [
        ({}, False, 0, 0),
        (dict(zip(NAMES[:3], "431", strict=True)), True, 3, 1),
        (dict(zip(NAMES[3:6], "420", strict=True)), True, 2, 0),
        (dict(zip(NAMES[6:], "852", strict=True)), True, 5, 2),
        (dict(zip(NAMES[6:] + NAMES[:3], "210" + "421", strict=True)), True, 2, 1),  # mpirun's own
        (dict(zip(NAMES[:3], "100", strict=True)), False, 0, 0),
    ],
)
def test_ranks_know_their_numbers_from_the_start(monkeypatch, environment, launched, rank, local):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (distributed.launched(), distributed.rank()) == (launched, rank)
    assert distributed.local_rank() == local


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 40])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_parts_are_shared_out_and_put_in_order(count, ranks):
    done = []

    def work(part):
        done.append(part)
        return list(range(count))[part]

    found = together(ranks, lambda own: share_out(count, 3, own, work))
    expected = [list(range(count))[k : k + 3] for k in range(0, count, 3)]
    assert found == [expected] * ranks
    assert len(done) == len(expected), "nobody does what another one does"


def test_one_after_the_other():
    """Later processes find what the first has left."""
    left = []

    def work(own):
        def mine():
            time.sleep(0.01 * (3 - own.rank))
            left.append(own.rank)
            return list(left)

        return in_turn(own, mine)

    assert together(4, work) == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]


def test_the_first_does_it_for_all():
    done = []
    found = together(3, lambda own: by_first(own, lambda: done.append(own.rank) or "it"))
    assert found == ["it"] * 3
    assert done == [0]


def test_the_built_in_scenes_are_drawn_once(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("xpcap.data.scenes.build.cache_folder", lambda: tmp_path)

    def draw(folder, output, progress):
        assert output is None
        folder.mkdir(parents=True)
        drawn.append(folder)

    monkeypatch.setattr("xpcap.data.scenes.make_scenes", draw)
    folders = together(3, lambda own: cli_train._data_folder("scenes", own))
    assert len(drawn) == 1
    assert folders == drawn * 3


@pytest.mark.parametrize("other", [{"a": 1, "b": 3}, {"a": 1}, {"a": 1, "b": 2, "c": 0}])
def test_what_differs_is_named(other):
    found = {"a": 1, "b": 2}
    check_alike(Alone(), found)
    assert together(3, lambda own: check_alike(own, found)) == [None] * 3
    with pytest.raises(
        ConfigurationError, match=r"ranks 0 and 2 were started with different [bc]:"
    ):
        together(3, lambda own: check_alike(own, other if own.rank == 2 else found))


class World:
    """MPI's communicator, of ranks that are threads; a lonely one may take itself for several."""

    def __init__(self, ranks, size):
        self.rank, self.size, self._ranks = ranks.rank, size, ranks

    def allgather(self, value):
        return self._ranks.gather(value)

    def Allreduce(self, send, array):
        assert send == "in place"
        self._ranks.sum(array)


def fake_mpi(ranks, size=None):
    library = "Some MPI v5, from somewhere\nbuilt long ago"
    world = World(ranks, size or ranks.size)
    return SimpleNamespace(
        COMM_WORLD=world, Get_library_version=lambda: library, IN_PLACE="in place"
    )


def test_mpirun_of_another_mpi_is_named(monkeypatch):
    """Each process takes itself for the only one then, and would write where the others do."""
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(ConfigurationError, match=r"2 processes .* counts 1; .* is Some MPI v5$"):
        MPIRanks(fake_mpi(Alone()), CPU)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_arrays_are_summed_piece_by_piece(monkeypatch, count, size):
    monkeypatch.setenv("PMI_SIZE", str(count))
    monkeypatch.setattr("xpcap.distributed._PIECE", 16)
    given = numpy.random.default_rng(0).standard_normal((count, size))

    def work(own):
        array = given[own.rank].copy()
        MPIRanks(fake_mpi(own), CPU).sum(array)
        return array

    for array in together(count, work):
        numpy.testing.assert_allclose(array, given.sum(axis=0), 1e-12, 1e-14)


def test_on_a_device_nccl_sums_in_place(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    calls = []
    nccl = SimpleNamespace(all_reduce=lambda *args: calls.append(args))
    monkeypatch.setattr("xpcap.backend.Backend.collective", lambda self, rank, size: nccl)
    backend = open_guard()
    array = backend.to_device(numpy.arange(6.0))
    MPIRanks(fake_mpi(Alone(), size=2), backend).sum(array)
    ((given, into),) = calls
    assert given is into is array


def test_without_mpi4py_it_is_said(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ConfigurationError, match=r"needs mpi4py.* pip install 'xpcap\[mpi\]'"):
        distributed.join(CPU)


def leaves(command, *words):
    """All commands below one, as words."""
    if not isinstance(command, click.Group):
        return [words]
    return [found for name, other in command.commands.items()
            for found in leaves(other, *words, name)]  # fmt: skip


def test_commands_that_share_nothing_out_refuse_ranks(monkeypatch):
    """Two would write the same file at once; and end apart, for which MPICH's would wait."""
    shared = {("train",), ("caption",), ("evaluate",), ("data", "prepare")}
    monkeypatch.setenv("PMI_SIZE", "2")
    for words in leaves(main):
        if words in shared:
            assert main([*words, "--help"], standalone_mode=False) == 0
        else:
            with pytest.raises(ConfigurationError, match=f"{words[-1]}' runs in one process"):
                main(list(words), standalone_mode=False)


@pytest.mark.skipif(os.environ.get("XPCAP_REQUIRE_MPI") != "1", reason="MPI may be missing")
def test_mpi_is_there():
    """So that what must not be skipped is not."""
    assert not missing()


# What follows starts mpirun.


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "tiny")


def history(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def assert_same_history(run, other, tolerance):
    lines, others = history(run), history(other)
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    for line, same in zip(lines, others, strict=True):
        for name in line.keys() & {"loss", "train_loss", "val_loss"}:
            assert abs(same[name] - line[name]) < tolerance, (name, line, same)


RUNS = {
    "lstm": (1e-9, "--dtype float64 --dropout 0.3"),
    "gru": (1e-9, "--dtype float64 --cell gru --lazy --rule sgd --scheduled-sampling 0.5"),
    "rnn": (1e-4, "--cell rnn --dropout 0.3"),
    "single": (1e-4, ""),
    "few": (1e-9, "--dtype float64 --batch-size 3 --epochs 4 --max-train 40"),
    "attention": (1e-9, "--data regions --dtype float64 --model attention --dropout 0.3"),
    "transformer": (
        1e-9,
        "--data regions --dtype float64 --model transformer --layers 1 --heads 2 --dropout 0.3",
    ),
    "self-critical": (1e-9, "--stage self-critical --from alone-lstm --samples 3 --epochs 20"),
}


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_compute_what_one_computes(tiny, tmp_path, call, ranks):
    """Over 50 steps and more; of the last minibatches some ranks have less, or nothing."""
    make_tiny(tmp_path / "regions", regions=True)
    words = [["train", "--data", tiny, *SMALL, *options.split()] for _, options in RUNS.values()]
    for name, command in zip(RUNS, words, strict=True):
        assert call(*command, "--out", f"alone-{name}").exit_code == 0
    ended = commands(
        ranks,
        *([*command, "--out", name] for name, command in zip(RUNS, words, strict=True)),
        ["train", "--data", tiny, *SMALL, "--epochs", 1],
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("validation loss") == len(RUNS) + 1, "the first rank alone speaks"
    assert os.listdir(tmp_path / "runs") == ["tiny-lstm-1"], "of one name"
    for name, (tolerance, _) in RUNS.items():
        assert len(history(tmp_path / name)) > 50
        assert_same_history(tmp_path / f"alone-{name}", tmp_path / name, tolerance)


WATCHED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from xpcap.cli import main
from xpcap.training import run

def watch(trainer):
    trainer.on("step", act)

def act(trainer):
    rank = next((os.environ[n] for n in ("OMPI_COMM_WORLD_RANK", "PMI_RANK") if n in os.environ))
    if trainer.step == STEP and rank in RANKS:
        os.kill(os.getpid(), SIGNAL)

def watched(*args, context, **more):
    return begin(*args, context=replace(context, watch=watch), **more)

begin, run.train_run = run.train_run, watched
main(sys.argv[1:])
"""


def watched(step, ranks, number):
    """A program that trains, and sends itself a signal after a step."""
    return WATCHED.replace("STEP", str(step)).replace("RANKS", repr(ranks)).replace(
        "SIGNAL", str(int(number))
    )  # fmt: skip


DOUBLE = [*SMALL, "--dtype", "float64", "--dropout", "0.3"]


@needs_mpi
def test_two_ranks_that_are_killed_go_on_as_one(tiny, tmp_path, call):
    words = ["train", "--data", tiny, *DOUBLE, "--save-every", "4"]
    assert call(*words, "--out", "whole").exit_code == 0
    began = time.monotonic()
    program = watched(23, "1", signal.SIGKILL)
    ended = start((2, ["-c", program, *words, "--out", "run"]), cwd=tmp_path)
    assert ended.returncode != 0
    assert "validation loss" not in ended.stdout
    assert time.monotonic() - began < 30  # it is 10 s, and what a busy machine takes to begin
    assert read_checkpoint(tmp_path / "run" / "last.safetensors").state.progress.step == 20
    assert call("train", "--resume", "run").exit_code == 0
    assert_same_history(tmp_path / "whole", tmp_path / "run", 1e-9)


@needs_mpi
def test_ranks_that_are_asked_to_stop_go_on_in_another_number(tiny, tmp_path, call):
    """SIGTERM to one is enough, and comes to all as to one; then one of its own, then two."""
    words = ["train", "--data", tiny, *DOUBLE]
    assert call(*words, "--out", "whole").exit_code == 0
    program = watched(23, "1", signal.SIGTERM)
    ended = start((2, ["-c", program, *words, "--out", "run"]), cwd=tmp_path)
    said = [line for line in ended.stderr.splitlines() if "xpcap:" in line]
    assert said == [
        "xpcap: rank 0: stopped after step 24; the run can be resumed: xpcap train --resume run"
    ]
    assert read_checkpoint(tmp_path / "run" / "last.safetensors").state.progress.step == 24
    ended = start((1, ["-c", watched(31, "0", signal.SIGTERM).replace("train_run", "resume_run"),
                       "train", "--resume", "run"]), cwd=tmp_path)  # fmt: skip
    assert "xpcap: stopped after step 32" in ended.stderr
    ended = commands(2, ["train", "--resume", "run"], cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert_same_history(tmp_path / "whole", tmp_path / "run", 1e-9)


@needs_mpi
def test_a_rank_that_finds_a_spoiled_file_ends_them_all(tmp_path):
    """One number in a row that nobody looks at before its turn."""
    data = make_tiny(tmp_path / "tiny", train=2400)
    rows = numpy.unique(numpy.linspace(0, 4799, 1000).astype(int) // 2)
    row = next(row for row in range(1200, 2400) if row not in rows)
    with h5py.File(data / "train2014_vgg16_fc7.h5", "r+") as file:
        file["features"][row, 0] = numpy.nan
    words = ["-m", "xpcap", "train", "--data", data, "--save-every", 2, *SMALL, "--out", "run"]
    began = time.monotonic()
    ended = start((2, words), cwd=tmp_path)
    assert time.monotonic() - began < 30
    assert ended.returncode == 2
    assert re.search(r"xpcap: rank [01]: .*'features' holds NaN or infinite", ended.stderr)
    assert read_checkpoint(tmp_path / "run" / "last.safetensors").state.progress.step % 2 == 0
    assert not list((tmp_path / "run").glob("*.part"))


@needs_mpi
@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ([], ["--lr", "0.5"], r"rank 0: ranks 0 and 1 .* different --lr: 0\.001 and 0\.5"),
        (["--cell", "none"], [], r"rank 0: --cell 'none' is unknown"),
        ([], ["--nonsense"], r"rank 1: No such option '?--nonsense"),
    ],
)
def test_ranks_of_other_options_refuse(tiny, tmp_path, one, other, message):
    words = ["-m", "xpcap", "train", "--data", tiny, "--out", "run"]
    began = time.monotonic()
    ended = start((1, [*words, *one]), (1, [*words, *other]), cwd=tmp_path)
    assert time.monotonic() - began < 30
    assert ended.returncode == 2
    assert re.search(f"xpcap: {message}", ended.stderr), ended.stderr
    assert ended.stderr.count("xpcap: ") == 1, "it is said once"
    assert not (tmp_path / "run").exists()


@needs_mpi
def test_captions_metrics_and_features_are_those_of_one(tmp_path, call):
    """To the byte, and in the same order; what is to be captioned is more than one part."""
    data = make_tiny(tmp_path / "tiny", val=600)
    assert call("train", "--data", data, *SMALL, "--out", "run").exit_code == 0
    file, _ = own(tmp_path, count=75)
    (tmp_path / "photos" / "40.png").write_bytes(b"no picture")
    prepare = ["data", "prepare", file, "--extractor", "filter-bank", "--skip-broken", "--out"]
    words = [
        ["caption", "run", "--count", 600, "--beam", 2, "--n-best", 2, "--json"],
        ["caption", "run", "--count", 600, "--sample"],
        ["evaluate", "run", "--json"],
    ]
    files = ["--images", "images.jsonl", "--results", "results.json"]
    alone = [call(*command) for command in (*words, ["evaluate", "run", *files], [*prepare, "a"])]
    assert [result.exit_code for result in alone] == [0] * 5
    written = [(tmp_path / name).read_bytes() for name in files[1::2]]
    for name in files[1::2]:
        (tmp_path / name).unlink()
    ended = commands(
        3, *words, ["evaluate", "run", *files], [*prepare, "b"],
        ["train", "--data", "b", *SMALL, "--epochs", 1, "--out", "pictures"],
        ["caption", "pictures", "photos", "--skip-broken"],
        ["caption", "pictures", "photos", "--skip-broken", "--out", "ranks.html"],
        cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("left out: photos/40.png") == 2
    ended.stdout = ended.stdout.removesuffix("ranks.html\n")
    pictures = call("caption", "pictures", "photos", "--skip-broken")
    call("caption", "pictures", "photos", "--skip-broken", "--out", "alone.html")
    assert (tmp_path / "ranks.html").read_bytes() == (tmp_path / "alone.html").read_bytes()
    trained = ended.stdout.split("b\n", 1)[1].removesuffix(pictures.stdout)
    assert trained.count("validation loss") == 1
    expected = "".join(result.stdout for result in alone[:4]) + "b\n" + trained + pictures.stdout
    assert ended.stdout == expected
    assert [(tmp_path / name).read_bytes() for name in files[1::2]] == written
    for path in sorted((tmp_path / "a").iterdir()):
        same = (tmp_path / "b" / path.name).read_bytes()
        if path.suffix == ".h5":
            with h5py.File(path) as one, h5py.File(tmp_path / "b" / path.name) as other:
                assert one.keys() == other.keys()
                for key in one:
                    numpy.testing.assert_array_equal(one[key][...], other[key][...])
        elif path.name != "dataset.json":  # which has the name of the folder
            assert same == path.read_bytes(), path.name
    assert not list(tmp_path.glob(".*.features"))
