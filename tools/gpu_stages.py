"""The stages of `gpu_check.py`, each run as `python gpu_stages.py STAGE DEVICE`.

A result is a printed line that `gpu_check.py` recognizes; a stage exits with 1 if one is wrong. Off
the GPU, and where PyTorch is missing, what needs them is left out with a result that says so.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy
from gpu_check import MARK, ROOT

from xpcap.backend import Backend, open_backend, to_host
from xpcap.benchmark.workload import CONFIGURATIONS, Configuration, Workload, draw_captions
from xpcap.data.dataset import Split
from xpcap.data.minibatch import EpochBatches
from xpcap.kernels import fastest
from xpcap.kernels.cublas import PRECISIONS, open_cublas
from xpcap.kernels.products import multiplied_in
from xpcap.models import CaptioningRNN
from xpcap.operations import OPERATIONS
from xpcap.optim import Optimizer
from xpcap.training.resident import ResidentStep
from xpcap.training.step import TrainingStep

HAS_TORCH = importlib.util.find_spec("torch") is not None
STEPS = 50
failures = 0


def result(key: str, value: Any, passed: bool = True) -> None:
    """Print a result; one that has not passed fails the stage."""
    global failures
    if not passed:
        failures += 1
        value = {"FAILED": value}
    print(MARK + json.dumps({key: value}), flush=True)


def attempt(key: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function; an error is printed and is the result of that key."""
    try:
        return function(*arguments)
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        result(key, f"{type(error).__name__}: {lines[0] if lines else ''}", passed=False)
        return None


def output(*command: str) -> str:
    """Return what a command prints, or why it cannot."""
    if shutil.which(command[0]) is None:
        return "not installed"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip()


def seconds_per_call(backend: Backend, call: Callable[[], None], calls: int) -> float:
    """Return the seconds of a call of many in a row, without a wait between them."""
    call()
    backend.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    backend.synchronize()
    return (time.perf_counter() - start) / calls


def captured(xp: Any, function: Callable[[], None]) -> Any:
    """Return a CUDA graph of what a function launches."""
    stream = xp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            function()
        finally:
            graph = stream.end_capture()
    return graph


def versions(backend: Backend) -> None:
    """Device, versions, libraries."""
    result("commit", output("git", "rev-parse", "HEAD").splitlines()[-1])
    result("python", platform.python_version())
    result("cores", os.cpu_count())
    for name in ("numpy", "h5py", "torch", "cupy-cuda13x", "cupy-cuda12x", "numba", "mpi4py"):
        try:
            result(name, version(name))
        except PackageNotFoundError:
            result(name, "not installed")
    result("mpirun", output("mpirun", "--version").partition("\n")[0])
    result("git", output("git", "--version"))
    if backend.device is None:
        return
    xp = backend.xp
    query = "--query-gpu=name,memory.total,driver_version,clocks.sm,clocks.mem"
    result("nvidia-smi", output("nvidia-smi", query, "--format=csv,noheader"))
    properties = xp.cuda.runtime.getDeviceProperties(backend.device)
    result("gpu", properties["name"].decode())
    result("multiprocessors", properties["multiProcessorCount"])
    result("compute capability", f"{properties['major']}.{properties['minor']}")
    result("shared memory a block (opt in)", properties.get("sharedMemPerBlockOptin"))
    result("CUDA runtime", xp.cuda.runtime.runtimeGetVersion())
    result("CUDA driver", xp.cuda.runtime.driverGetVersion())
    _find_libraries()
    from cupy.cuda import nccl

    result("NCCL of CuPy", getattr(nccl, "available", False))
    result("free memory", backend.free_memory())


def _find_libraries() -> None:
    from cuda.pathfinder import load_nvidia_dynamic_lib

    for name in ("cublas", "nvrtc"):
        try:
            path = load_nvidia_dynamic_lib(name).abs_path
            result(name, Path(path).resolve().name if path else "found")
        except RuntimeError:
            result(name, "not found")


def kernels(backend: Backend) -> None:
    """Every CUDA kernel against its reference, products, captures."""
    from cuda_cases import CASES

    xp = fastest(backend.xp)
    passed = 0
    for number, (name, arguments) in enumerate(CASES):
        for dtype in (numpy.float32, numpy.float64):
            key = f"{name} {number} {numpy.dtype(dtype).name}"
            found = attempt(key, _kernel_is_right, backend, xp, name, arguments, dtype)
            passed += found is True
            if found is False:
                result(key, "differs from the reference", passed=False)
    result("kernel cases passed", f"{passed} of {2 * len(CASES)}")
    _check_recurrences(backend)
    _check_products(backend)
    if backend.device is not None:
        _try_captures(backend)


def _kernel_is_right(
    backend: Backend, xp: Any, name: str, arguments: dict[str, Any], dtype: type
) -> bool:
    def cast(kind: type) -> dict[str, Any]:
        return {
            key: value.astype(kind if value.dtype.kind == "f" else value.dtype)
            if isinstance(value, numpy.ndarray)
            else value
            for key, value in arguments.items()
        }

    true, near, ours = cast(numpy.float64), cast(dtype), cast(dtype)
    with numpy.errstate(all="ignore"):
        OPERATIONS[name].reference(numpy, **true)
        OPERATIONS[name].reference(numpy, **near)
    arrays = {
        key: backend.to_device(value) if isinstance(value, numpy.ndarray) else value
        for key, value in ours.items()
    }
    OPERATIONS[name](xp, **arrays)
    for key, value in near.items():
        if not isinstance(value, numpy.ndarray) or not value.size:
            continue
        found = to_host(arrays[key])
        if value.dtype.kind != "f":
            if not numpy.array_equal(found, value):
                return False
            continue
        if not numpy.array_equal(numpy.isnan(found), numpy.isnan(value)):
            return False
        floor = 1e-7 if dtype == numpy.float32 else 5e-15
        size = max(1.0, float(numpy.nanmax(abs(true[key]))))
        limit = 2 * float(numpy.nanmax(abs(value - true[key]))) + floor * size
        if not numpy.nanmax(abs(found - true[key])) <= limit:
            return False
    return True


def _check_recurrences(backend: Backend) -> None:
    """Sequences in one launch against the CPU, where several blocks run at once and where not."""
    from kernels.test_recurrence import LARGE, SMALL, computed, drawn, even, on_device

    sizes = SMALL + (LARGE if backend.device is not None else [])

    def worst(cell: str, precision: str) -> float:
        errors = []
        for N, T, H in sizes:
            packing = even(N, T)
            given = drawn(cell, packing, H)
            true = computed(cell, numpy, given, packing)
            with multiplied_in(precision):
                there = on_device(backend, given, "float32")
                ours = computed(cell, fastest(backend.xp), there, packing)
            for name, exact in true.items():
                errors.append(abs(ours[name] - exact).max() / max(1.0, abs(exact).max()))
        return float(numpy.max(errors))  # of which one may be NaN

    for cell in ("lstm", "gru", "rnn"):
        for precision, limit in (("float32", 1e-5), ("tf32", 3e-3)):
            key = f"recurrences {cell} {precision}"
            error = attempt(key, worst, cell, precision)
            if error is not None:
                result(key, error, passed=error < limit)


SHAPES = {  # of the products of a step at N=128, T=16, H=512, W=256: M, K, N
    "x Wx": (2048, 256, 2048),
    "h Wh (one step)": (128, 512, 2048),
    "da Wh' (one step)": (128, 2048, 512),
    "h W_vocab, 1,004 words": (2048, 512, 1004),
    "h W_vocab, 10,000 words": (2048, 512, 10_000),
    "h' dscores, 1,004 words": (512, 2048, 1004),
    "features W_proj": (128, 4096, 512),
}
LIMITS = {"float64": 1e-14, "float32": 3e-6, "tf32": 2e-3, "bf16": 1.5e-2}


def _check_products(backend: Backend) -> None:
    """Every layout in every precision, relative to the product of the absolute values."""
    xp, rng = fastest(backend.xp), numpy.random.default_rng(0)
    on_gpu = backend.device is not None
    for precision in ("float64", *(PRECISIONS if on_gpu else PRECISIONS[:1])):
        dtype = "float64" if precision == "float64" else "float32"
        errors = []
        for M, K, N in [(1, 1, 1), (128, 512, 2048), (33, 70, 1004), (5, 129, 3), (64, 1004, 40)]:
            for layout in range(4):
                a = rng.standard_normal((K, M) if layout % 2 else (M, K)).astype(dtype)
                b = rng.standard_normal((N, K) if layout > 1 else (K, N)).astype(dtype)
                left, right = (a.T if layout % 2 else a), (b.T if layout > 1 else b)
                true = left.astype("float64") @ right.astype("float64")
                size = abs(left).astype("float64") @ abs(right).astype("float64")
                there, other = backend.to_device(a), backend.to_device(b)
                out = xp.full((M, N), numpy.nan, dtype=dtype)
                _multiply(
                    backend, there.T if layout % 2 else there, other.T if layout > 1 else other,
                    out, "float32" if precision == "float64" else precision,
                )  # fmt: skip
                errors.append((abs(to_host(out) - true) / size).max())
        worst = float(numpy.max(errors))  # of which one may be NaN
        result(f"products in {precision}", worst, passed=worst < LIMITS[precision])


def _multiply(backend: Backend, a: Any, b: Any, out: Any, precision: str) -> None:
    if backend.device is None:
        numpy.matmul(a, b, out=out)
        return
    cublas = open_cublas(fastest(backend.xp), backend.device)
    if cublas is None:
        raise RuntimeError("cuBLAS cannot be found")
    cublas.product(a, b, out, precision)


BARRIERS = r"""
extern "C" __global__ void barriers(unsigned int *counters, int group, int rounds)
{
    volatile unsigned int *counter = counters + 32 * (blockIdx.x / group);
    for (int r = 1; r <= rounds; ++r) {
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd((unsigned int *)counter, 1u);
            while (*counter < (unsigned int)(group * r))
                ;
            __threadfence();
        }
        __syncthreads();
    }
}
"""


def _try_captures(backend: Backend) -> None:
    """What can be captured: sums by CuPy and by CUB, which this package avoids; barriers."""
    from cupy._core import _accelerator

    xp, before = backend.xp, _accelerator.get_reduction_accelerators()
    values, total = xp.ones(4096, dtype=numpy.float32), xp.zeros((), dtype=numpy.float32)
    for name, accelerators in (("CuPy", []), ("CUB", ["cub"])):
        _accelerator.set_reduction_accelerators(accelerators)
        try:
            values.sum(out=total)
            graph = captured(xp, lambda: values.sum(out=total))
            total.fill(0)
            graph.launch()
            found = "right" if float(total) == 4096 else "wrong"
        except Exception as error:
            found = type(error).__name__
        finally:
            _accelerator.set_reduction_accelerators(before)
        result(f"captured sum by {name}", found)
    if xp.cuda.runtime.getDeviceProperties(backend.device)["cooperativeLaunch"]:
        attempt("barriers", _time_barriers, backend)
    else:
        result("barriers", "not tried: the device runs one block after another")


def _time_barriers(backend: Backend) -> None:
    """Time barriers of blocks among each other, launched cooperatively, captured or not."""
    xp, rounds = backend.xp, 1000
    count = xp.cuda.runtime.getDeviceProperties(backend.device)["multiProcessorCount"] // 32 * 32
    counters = xp.zeros(32 * 1024, dtype=numpy.uint32)
    kernel = xp.RawKernel(BARRIERS, "barriers", enable_cooperative_groups=True)

    def launch(group: int) -> None:
        counters.fill(0)
        kernel((count,), (256,), (counters, numpy.int32(group), numpy.int32(rounds)))

    for group in (count, 32, 16, 8):
        seconds = seconds_per_call(backend, lambda group=group: launch(group), 5)
        result(f"barrier of {count} blocks in groups of {group}", {"us": 1e6 * seconds / rounds})
    graph = captured(xp, lambda: launch(32))
    seconds = seconds_per_call(backend, graph.launch, 5)
    result("the same captured, groups of 32", {"us": 1e6 * seconds / rounds})


def sanitizer(backend: Backend) -> None:
    """Run compute-sanitizer's tools on a few eager steps of a tiny model."""
    tool = shutil.which("compute-sanitizer")
    if backend.device is None or tool is None:
        result("compute-sanitizer", "not run: needs a GPU and the tool")
        return
    limit = float(os.environ.get("STAGE_SECONDS", "75")) / 3 - 1
    for name in ("memcheck", "racecheck", "synccheck"):
        command = [tool, "--tool", name, "--print-limit", "5", "--error-exitcode", "9"]
        command += [sys.executable, __file__, "tiny_steps", backend.name]
        start = time.perf_counter()
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=limit,
                env={**os.environ, "XPCAP_GRAPHS": "0"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            result(name, f"not finished after {limit:.0f} s", passed=False)
            continue
        text = (done.stdout + done.stderr).strip().splitlines()
        end = next((line for line in reversed(text) if "SUMMARY" in line), "no summary")
        print("\n".join(text[-40:]))
        seconds = time.perf_counter() - start
        result(name, f"{end} ({seconds:.0f} s)", passed=done.returncode == 0)


TINY = Configuration(batch_size=8, hidden=32, features=16, vocabulary=60, wordvec=16, steps=6)


def tiny_steps(backend: Backend) -> None:
    """Two eager steps of each cell, for the sanitizer."""
    for cell in ("lstm", "gru", "rnn"):
        workload = Workload(TINY, cell)
        model = workload.model(backend)
        model.dropout = 0.2
        step = TrainingStep(model, Optimizer("adam"), 5.0)
        for k in range(2):
            step(workload.batch(k), k, 1.0)
        resident = ResidentStep(model, Optimizer("adam"), workload.split, TINY.batch_size, 5.0)
        next(resident.epoch(workload, 0, 0, 0, [1.0] * len(workload)))
        features = backend.to_device(workload.split.features[:3])
        print(float(step.loss), float(resident.loss), to_host(model.sample(features, 4)).tolist())


def agreement(backend: Backend) -> None:
    """Fifty training steps on the CPU and on the device, in each dtype and precision."""
    size = Configuration(batch_size=32, hidden=64, features=80, vocabulary=300, wordvec=32)
    exact = [("float64", "float32", 1e-9), ("float32", "float32", 1e-3)]
    rounded = [("float32", "tf32", 2e-2), ("float32", "bf16", 1e-1)]
    for cell in ("lstm", "gru", "rnn"):
        workload = Workload(size, cell)
        here: dict[str, numpy.ndarray] = {}
        for dtype, precision, limit in exact + (rounded if backend.device is not None else []):
            key = f"{cell} {dtype if precision == 'float32' else precision}"
            if dtype not in here:
                here[dtype] = losses(workload, open_backend("cpu"), dtype, "float32", False)
            there = attempt(key, losses, workload, backend, dtype, precision, True)
            if there is not None:
                apart = float(numpy.max(abs(there - here[dtype]) / abs(here[dtype])))
                result(key, apart, passed=apart < limit)


def losses(
    workload: Workload, backend: Backend, dtype: str, precision: str, resident: bool
) -> numpy.ndarray:
    """Return the losses of fifty steps with dropout and clipping."""
    size = workload.configuration
    model = CaptioningRNN(
        workload.model("cpu").word_to_idx, size.features, size.wordvec, size.hidden, workload.cell,
        dtype, dropout=0.2, seed=0, backend=backend,
    )  # fmt: skip
    optimizer = Optimizer("adam")
    found = []
    if resident:
        step = ResidentStep(model, optimizer, workload.split, size.batch_size, 5.0, precision)
        taken = step.epoch(workload, 0, 0, 0, [1.0] * len(workload))
        found = [step.loss for _ in itertools.islice(taken, STEPS)]
    else:
        eager = TrainingStep(model, optimizer, 5.0, precision)
        for k in range(STEPS):
            eager(workload.batch(k), k, 1.0)
            found.append(eager.loss)
    return numpy.array([float(loss) for loss in found])


def selfcheck(backend: Backend) -> None:
    """`xpcap selfcheck`."""
    from xpcap.selfcheck import run

    checks = run(backend)
    for check in checks:
        if not check.passed:
            result(check.name, f"{check.error:.2e}, limit {check.limit:.2e}", passed=False)
    result("checks passed", f"{sum(check.passed for check in checks)} of {len(checks)}")


def profile(backend: Backend) -> None:
    """Kernels of a captured step, ours and PyTorch's."""
    if backend.device is None or not HAS_TORCH:
        result("profile", "not run: needs a GPU and PyTorch")
        return
    from bench import make

    for config in ("full", "bigvocab"):
        workload = Workload(CONFIGURATIONS[config], "lstm")
        for name in (
            "xpcap",
            "xpcap tf32",
            "xpcap bf16",
            "torch",
            "torch graph tf32",
            "torch graph float16",
        ):
            attempt(f"{config} {name}", _profile, backend, config, name, make, workload)


def _profile(backend: Backend, config: str, name: str, make: Any, workload: Workload) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as traced

    contender, count = make(name, workload, backend, 1), 10
    for k in range(4):
        contender.train(k)
    backend.synchronize()
    seconds = seconds_per_call(backend, lambda: contender.train(0), 50)
    with traced(activities=[ProfilerActivity.CUDA]) as trace:
        for k in range(count):
            contender.train(k)
        backend.synchronize()
    rows = []
    for event in trace.key_averages():
        total = getattr(event, "self_device_time_total", 0)
        if total > 0:
            rows.append((total / count, event.count / count, event.key))
    rows.sort(reverse=True)
    busy, nodes = sum(row[0] for row in rows), sum(row[1] for row in rows)
    result(
        f"{config} {name}",
        {"ms a step": 1e3 * seconds, "ms in kernels": busy / 1e3, "launches": nodes},
    )
    for total, calls, key in rows[:40]:
        print(f"{config:<9}{name:<20}{total:9.1f} us {calls:6.1f} x  {key[:110]}")
    for total, calls, key in rows[:10]:
        result(f"{config} {name} {key[:52]}", {"us": total, "calls": calls})


def products(backend: Backend) -> None:
    """Time products of a step's shapes, captured twenty in a row."""
    if backend.device is None:
        result("products", "not run: needs a GPU")
        return
    for name, shape in SHAPES.items():
        found = {
            operands: _time_product(backend, shape, operands)
            for operands in (*PRECISIONS, "bf16 operands", "bf16 operands and result")
        }
        result(f"us {name} {shape}", found)


def _time_product(backend: Backend, shape: tuple[int, int, int], operands: str) -> float:
    """Return the microseconds of a product (M, K) times (K, N), of twenty captured in a row."""
    xp, (M, K, N), count = backend.xp, shape, 20
    rng = numpy.random.default_rng(0)
    pad = -(-N // 8) * 8
    a = xp.asarray(rng.standard_normal((M, K), dtype=numpy.float32))
    b = xp.asarray(rng.standard_normal((K, pad), dtype=numpy.float32))[:, :N]
    out = xp.empty((M, pad), dtype=numpy.float32)[:, :N]

    def multiply() -> None:
        for _ in range(count):
            if operands in PRECISIONS:
                _multiply(backend, a, b, out, operands)
            else:
                _multiply_bf16(backend, a, b, out, narrow=operands.endswith("result"))

    multiply()
    graph = captured(xp, multiply)
    return 1e6 * seconds_per_call(backend, graph.launch, 20) / count


def _multiply_bf16(backend: Backend, a: Any, b: Any, out: Any, narrow: bool) -> None:
    """Multiply as many numbers of bfloat16, whatever their bits are; rows of b are padded to 8."""
    (M, K), N = a.shape, b.shape[1]
    cublas = open_cublas(fastest(backend.xp), backend.device or 0)
    assert cublas is not None
    cublas._use_current_stream()
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    pad, bf16, single, compute = -(-N // 8) * 8, 14, 0, 68
    status = cublas._library.cublasGemmEx(
        cublas._handle, 0, 0, N, M, K, ctypes.byref(one),
        ctypes.c_void_p(b.data.ptr), bf16, pad, ctypes.c_void_p(a.data.ptr), bf16, K,
        ctypes.byref(zero), ctypes.c_void_p(out.data.ptr), bf16 if narrow else single, pad,
        compute, -1,
    )  # fmt: skip
    if status:
        raise RuntimeError(f"cublasGemmEx of bfloat16 failed with status {status}")


def _bench(backend: Backend, config: str, cells: tuple[str, ...], tasks: tuple[str, ...]) -> None:
    file = Path(tempfile.gettempdir()) / f"bench-{os.getpid()}.json"
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), "--device", backend.name]
    command += ["--json", str(file), "--config", config]
    command += [word for cell in cells for word in ("--cell", cell)]
    command += [word for task in tasks for word in ("--task", task)]
    command += ["--rounds", "7", "--calls", "20"] if backend.device is not None else [
        "--rounds", "1", "--calls", "1"]  # fmt: skip
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if file.exists():
        for entry in json.loads(file.read_text())["results"]:
            result(
                f"{entry['config']} {entry['cell']} {entry['task']} {entry['program']}",
                {"ms": entry["ms"], "times": entry["times_xpcap"]},
            )
        file.unlink()
    result("bench.py", f"exit status {code}", passed=code == 0)


def bench_full(backend: Backend) -> None:
    """The benchmark with its peers."""
    _bench(backend, "full", ("lstm",), ("train", "decode"))


def bench_bigvocab(backend: Backend) -> None:
    """The benchmark with 10,000 words."""
    _bench(backend, "bigvocab", ("lstm",), ("train", "decode"))


def bench_seed(backend: Backend) -> None:
    """The benchmark at CS231n's size."""
    _bench(backend, "seed", ("lstm",), ("train", "decode"))


def bench_cells(backend: Backend) -> None:
    """The benchmark of the other cells."""
    _bench(backend, "full", ("gru", "rnn"), ("train",))


def epoch(backend: Backend) -> None:
    """Time epochs of COCO's size: 400,135 captions, 82,783 images with all of fc7."""
    captions, images, D, hidden = 400_135, 82_783, 4096, 512
    if backend.device is None:
        captions, images, D, hidden = 999, 99, 64, 32
    rng = numpy.random.default_rng(0)
    features = rng.standard_normal((images, D), dtype=numpy.float32)
    split = Split(
        draw_captions(captions, 1004, 16, rng), rng.integers(images, size=captions), features, []
    )
    words = ["<NULL>", "<START>", "<END>", "<UNK>", *(f"w{k}" for k in range(4, 1004))]
    for precision in ("tf32", "bf16", "float32") if backend.device is not None else ("float32",):
        attempt(f"epoch {precision}", _time_epoch, backend, split, words, D, hidden, precision)


def _time_epoch(
    backend: Backend, split: Split, words: list[str], D: int, hidden: int, precision: str
) -> None:
    model = CaptioningRNN(
        {word: k for k, word in enumerate(words)}, D, 256, hidden, "lstm", seed=0, backend=backend
    )
    start = time.perf_counter()
    step = ResidentStep(model, Optimizer("adam"), split, 128, 5.0, precision)
    backend.synchronize()
    copied = time.perf_counter() - start
    batches = EpochBatches(split, 128, 0, with_features=False)
    times = []
    for number in range(2):
        backend.synchronize()
        start = time.perf_counter()
        for _ in step.epoch(batches, number, 0, 0, [1.0] * len(batches)):
            pass
        backend.synchronize()
        times.append(time.perf_counter() - start)
    value = {"s": min(times), "steps": len(batches), "copy_s": copied, "loss": float(step.loss)}
    result(f"epoch {precision}", value, passed=bool(numpy.isfinite(value["loss"])))


def tests(backend: Backend) -> None:
    """The tests named cupy or gpu."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-o",
        "addopts=",
        "-q",
        "-rs",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-x"] if backend.device is None else ["--maxfail=40"]
    if importlib.util.find_spec("xdist"):
        command += ["--numprocesses=4", "--dist=loadscope"]
    command += ["-p", "no:benchmark", "-k", "cupy or gpu"]
    required = "0" if backend.device is None else "1"
    done = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "XPCAP_REQUIRE_GPU": required}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.stdout is not None
    last = ""
    for line in done.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    result("pytest", last, passed=done.wait() == 0)


STAGES: dict[str, Callable[[Backend], None]] = {
    function.__name__: function
    for function in (
        versions, kernels, sanitizer, tiny_steps, agreement, selfcheck, profile, products,
        bench_full, bench_bigvocab, bench_seed, bench_cells, epoch, tests,
    )
}  # fmt: skip


def main() -> int:
    """Run a stage; the exit status is 1 if a result is wrong."""
    stage, device = sys.argv[1:]
    backend = open_backend(device)
    with backend.activate():
        STAGES[stage](backend)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
