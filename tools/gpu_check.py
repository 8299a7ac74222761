"""Prove xpcap on a GPU and time it there, in at most eight minutes and with nothing downloaded.

    python tools/gpu_check.py                    # on a machine with a GPU and CuPy
    python tools/gpu_check.py --device cpu       # a rehearsal without one, on smaller work

Five parts, each of which may fail by itself: fifty training steps on the CPU and on the GPU,
`xpcap selfcheck`, an epoch of COCO's size, the whole test suite with XPCAP_REQUIRE_GPU=1, and the
benchmark with its peers. What was found is in one JSON file, written anew after each part.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy

import xpcap
from xpcap.backend import Backend, open_backend
from xpcap.benchmark import Configuration, Workload, draw_captions
from xpcap.data.dataset import Split
from xpcap.data.minibatch import EpochBatches
from xpcap.models import CaptioningRNN
from xpcap.optim import Optimizer
from xpcap.train.resident import ResidentStep
from xpcap.train.step import TrainingStep

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
STEPS = 50


def run(command: list[str], seconds: float, **environment: str) -> dict[str, Any]:
    """Run a command and return how it ended, how long it took and the end of what it said."""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False,
            env={**os.environ, **environment},
        )  # fmt: skip
        status, said = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        status, said = None, (error.stdout or b"").decode()
    return {
        "exit": status,
        "seconds": round(time.perf_counter() - start, 1),
        "end": said.strip().splitlines()[-25:],
    }


def check_tests(backend: Backend, seconds: float) -> dict[str, Any]:
    """Run the whole test suite, and fail if a test that needs the GPU is skipped."""
    required = "0" if backend.device is None else "1"
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist"):
        command += ["--numprocesses=4", "--dist=loadscope"]
    return run(command, seconds, XPCAP_REQUIRE_GPU=required)


def check_self(backend: Backend, seconds: float) -> dict[str, Any]:
    """Run `xpcap selfcheck`."""
    return run([sys.executable, "-m", "xpcap", "selfcheck", "--device", backend.name], seconds)


def check_agreement(backend: Backend, seconds: float) -> dict[str, Any]:
    """Train fifty steps on the CPU and on the device, in both precisions of arrays."""
    found = {}
    size = Configuration(batch_size=32, hidden=64, features=80, vocabulary=300, wordvec=32)
    for cell in ("rnn", "lstm", "gru"):
        workload = Workload(size, cell)
        for dtype, limit in ((numpy.float64, 1e-9), (numpy.float32, 1e-3)):
            here = losses(workload, open_backend("cpu"), dtype, resident=False)
            there = losses(workload, backend, dtype, resident=True)
            apart = float(numpy.max(numpy.abs(there - here) / numpy.abs(here)))
            found[f"{cell} {numpy.dtype(dtype).name}"] = {"apart": apart, "passed": apart < limit}
    return found


def losses(workload: Workload, backend: Backend, dtype: type, resident: bool) -> numpy.ndarray:
    """Return the losses of fifty steps with dropout and clipping."""
    size = workload.configuration
    model = CaptioningRNN(
        workload.model("cpu").word_to_idx, size.features, size.wordvec, size.hidden, workload.cell,
        dtype, dropout=0.2, seed=0, backend=backend,
    )  # fmt: skip
    optimizer = Optimizer("adam")
    step: TrainingStep = (
        ResidentStep(model, optimizer, workload.split, size.batch_size, 5.0)
        if resident
        else TrainingStep(model, optimizer, 5.0)
    )
    found = []
    step.begin_epoch(workload, 0, 0, [1.0] * len(workload))
    for k in range(STEPS):
        step(workload.batch(k), k, 1.0)
        found.append(step.loss)
    return numpy.array([float(loss) for loss in found])


def time_epoch(backend: Backend, seconds: float) -> dict[str, Any]:
    """Time an epoch of COCO's size: 400,135 captions, 82,783 images with all of fc7."""
    captions, images, D, hidden = 400_135, 82_783, 4096, 512
    if backend.device is None:
        captions, images, D, hidden = 999, 99, 64, 32
    rng = numpy.random.default_rng(0)
    features = rng.standard_normal((images, D), dtype=numpy.float32)
    split = Split(
        draw_captions(captions, 1004, 16, rng), rng.integers(images, size=captions), features, []
    )
    words = ["<NULL>", "<START>", "<END>", "<UNK>", *(f"w{k}" for k in range(4, 1004))]
    found = {}
    for precision in ("float32", "tf32", "bf16") if backend.device is not None else ("float32",):
        model = CaptioningRNN(
            {word: k for k, word in enumerate(words)}, D, 256, hidden, "lstm", seed=0,
            backend=backend,
        )  # fmt: skip
        step = ResidentStep(model, Optimizer("adam"), split, 128, 5.0, precision)
        batches = EpochBatches(split, 128, 0, with_features=False)
        times = []
        for epoch in range(3):
            backend.synchronize()
            start = time.perf_counter()
            step.begin_epoch(batches, epoch, 0, [1.0] * len(batches))
            for batch in batches.epoch(epoch):
                step(batch, 0, 1.0)
            backend.synchronize()
            times.append(time.perf_counter() - start)
        found[precision] = {"epochs_s": times, "steps": len(batches), "loss": float(step.loss)}
    return found


def run_benchmark(backend: Backend, seconds: float) -> dict[str, Any]:
    """Run `tools/bench.py` with its peers."""
    file = RESULTS / "bench.tmp.json"
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), "--device", backend.name]
    command += ["--json", str(file), "--rounds", "5", "--calls", "10"]
    if backend.device is None:
        command += ["--config", "seed", "--cell", "rnn", "--rounds", "1", "--calls", "1"]
    else:
        command += ["--cell", "lstm"]
    ended = run(command, seconds)
    if file.exists():
        ended.update(json.loads(file.read_text()))
        file.unlink()
    return ended


PARTS: dict[str, tuple[Callable[[Backend, float], dict[str, Any]], float]] = {
    "agreement": (check_agreement, 40),
    "selfcheck": (check_self, 40),
    "epoch": (time_epoch, 50),
    "tests": (check_tests, 190),
    "benchmark": (run_benchmark, 150),
}


def about(backend: Backend) -> dict[str, Any]:
    """Return commit, device and versions."""
    commit = run(["git", "rev-parse", "HEAD"], 10)
    found = {
        "commit": commit["end"][-1] if commit["exit"] == 0 else "unknown",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": backend.name,
        "xpcap": xpcap.__version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "cores": os.cpu_count(),
    }
    if backend.device is not None:
        runtime = backend.xp.cuda.runtime
        found["gpu"] = runtime.getDeviceProperties(backend.device)["name"].decode()
        found["cupy"] = backend.xp.__version__
        found["cuda_runtime"], found["cuda_driver"] = (
            runtime.runtimeGetVersion(), runtime.driverGetVersion()
        )  # fmt: skip
    return found


@click.command()
@click.option("--device", default="gpu", help="gpu, gpu:K, or cpu for a rehearsal.")
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="Only these.")
def main(device: str, parts: tuple[str, ...]) -> None:
    """Check and time xpcap on a device; exits with 1 if a part failed."""
    backend = open_backend(device)
    RESULTS.mkdir(exist_ok=True)
    found = about(backend)
    name = f"{found['date']}-{found['commit'][:8]}-{backend.name.replace(':', '')}.json"
    failed = []
    for part in parts or PARTS:
        check, seconds = PARTS[part]
        start = time.perf_counter()
        try:
            with backend.activate():
                found[part] = check(backend, seconds)
        except Exception:
            found[part] = {"error": traceback.format_exc().splitlines()[-12:]}
        if broken(found[part]):
            failed.append(part)
        verdict = "FAILED" if part in failed else "passed"
        print(f"{part:<10} {verdict}  {time.perf_counter() - start:6.1f} s", flush=True)
        show(part, found[part], part in failed)
        (RESULTS / name).write_text(json.dumps(found, indent=1) + "\n")
    print(RESULTS / name)
    sys.exit(1 if failed else 0)


def broken(result: dict[str, Any]) -> bool:
    """Whether a part failed."""
    inner = [value for value in result.values() if isinstance(value, dict)]
    return (
        "error" in result
        or result.get("exit", 0) != 0
        or any(value.get("passed") is False for value in inner)
    )


def show(part: str, result: dict[str, Any], failed: bool) -> None:
    """Print the figures of a part, or, if it failed, what it said last."""
    if part == "benchmark":
        for entry in result.get("results", []):
            print(
                f"  {entry['config']:<9}{entry['cell']:<5}{entry['task']:<7}{entry['program']:<20}"
                f"{entry['ms']:9.3f} ms  x {entry['times_xpcap']:.2f}"
            )
    elif part in ("agreement", "epoch"):
        for key, value in result.items():
            print(f"  {key}: {value}")
    if failed or part in ("tests", "selfcheck"):
        for line in result.get("error", result.get("end", []))[-(20 if failed else 1) :]:
            print(f"  {line}")


if __name__ == "__main__":
    main()
