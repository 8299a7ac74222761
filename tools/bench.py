"""Time xpcap against its own matrix products and against PyTorch, on the same batches.

    python tools/bench.py --config full --cell lstm --task train --json result.json
    python tools/bench.py --model attention --scoring additive --config grid-256 --cell lstm
    python tools/bench.py --model transformer --task train
    python tools/bench.py --model transformer --task beam
    python tools/bench.py --config seed --cell lstm --task self-critical

Starts from a bare checkout: the package need not be installed. Before anything is timed, losses,
gradients and parameters after one step are compared in double precision, and decoded captions word
by word; of beam search, also their log-probabilities, and of a self-critical step, rewards and
gradients of the same drawn captions. A peer that computes something else is not timed. A contender
that fails is left out with one line that says why, and the exit status is 1.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xpcap_self_critical import WithSelfCritical

import xpcap
from xpcap.backend import Backend, open_backend, to_host
from xpcap.benchmark.contenders import products
from xpcap.benchmark.machine import busy_processes, by_threads, processor
from xpcap.benchmark.timing import Result, interleave
from xpcap.benchmark.workload import CONFIGURATIONS, GRIDS, NULL, Configuration, Workload
from xpcap.data.vocabulary import tokenize
from xpcap.models import FAMILIES, AttentionRNN, Transformer
from xpcap.models.attention import SCORINGS
from xpcap.models.recurrent import CELLS

HAS_TORCH = importlib.util.find_spec("torch") is not None
TASKS = ("train", "loss", "decode", "beam", "self-critical")  # methods of programs
MEMORY_STEPS = 5
COMPARED = 16  # images of which ours and PyTorch are compared
PHOTOGRAPHS = {  # and the same reduced by PCA
    "grid": Configuration(128, 512, 1280, 2500, regions=49),
    "grid-256": Configuration(128, 512, 256, 2500, regions=49),
}
KNOWN = {**CONFIGURATIONS, **PHOTOGRAPHS, **GRIDS}
BY_MODEL = {AttentionRNN.family: PHOTOGRAPHS, Transformer.family: GRIDS}  # unless others are named
PROGRAMS = {  # of a task; all train
    "loss": {"xpcap", "numpy", "products", "torch"},
    "decode": {"xpcap", "numpy", "products", "torch", "torch masked"},
    "beam": {"xpcap", "numpy", "torch", "torch masked"},
    "self-critical": {"xpcap", "numpy", "torch", "torch masked"},
}
UNDER_LOAD = {"xpcap", "torch", "torch masked"}


@functools.cache
def coco_captions(folder: Path, size: Configuration) -> numpy.ndarray:
    """Encode COCO's captions of at most `steps - 1` words; the rarest words are `<UNK>`."""
    file = folder / "captions_val2017.json"
    if not file.is_file():
        raise click.UsageError(f"--captions {folder}: expected captions_val2017.json in it")
    annotations = json.loads(file.read_text())["annotations"]
    sentences = [tokenize(annotation["caption"]) for annotation in annotations]
    sentences = [words for words in sentences if len(words) < size.steps]
    counts: dict[str, int] = {}
    for word in (word for words in sentences for word in words):
        counts[word] = counts.get(word, 0) + 1
    common = sorted(counts, key=counts.__getitem__, reverse=True)[: size.vocabulary - 4]
    index = {word: 4 + k for k, word in enumerate(common)}
    captions = numpy.zeros((len(sentences), size.steps + 1), numpy.int32)
    for row, words in zip(captions, sentences, strict=True):
        row[: len(words) + 2] = [1, *(index.get(word, 3) for word in words), 2]
    return captions


class WithNumPyAlone:
    """What `WithSelfCritical` does with NumPy alone."""

    def __init__(self, workload: Workload, backend: Backend) -> None:
        self._ours = self._quietly(WithSelfCritical, workload, backend)

    def __getattr__(self, task: str) -> Any:
        return functools.partial(self._quietly, getattr(self._ours, task))

    def _quietly(self, function: Callable[..., Any], *args: Any) -> Any:
        before = os.environ.get("XPCAP_COMPILED", "1")
        os.environ["XPCAP_COMPILED"] = "0"
        try:
            return function(*args)
        finally:
            os.environ["XPCAP_COMPILED"] = before


def compare(workload: Workload, backend: Backend, masked: bool = False) -> float:
    """Return how far ours and PyTorch are apart in double precision, relative to the largest.

    Compared are decoded words, the loss, its gradients, and the parameters after a step of Adam;
    of these only where the gradient is not rounding alone, for Adam divides by its size.
    """
    import torch
    from torch_peer import TorchPeer

    ours = WithSelfCritical(workload, backend, numpy.float64)
    peer = TorchPeer(workload, torch_device(backend), torch.float64, masked)
    found = [(to_host(ours.decode(0)), peer.decode(0).cpu().numpy())]
    searched = zip(ours.beam(0), peer.search(workload.configuration.batch_size), strict=True)
    found += [(to_host(one), other.cpu().numpy()) for one, other in searched]
    found.append((to_host(ours.loss(0)), peer.loss(0).item()))
    gradients = peer.module.unload(gradients=True)
    found += [(to_host(ours.gradients[name]), value) for name, value in gradients.items()]
    ours.train(0)
    peer.train(0)
    for name, value in peer.module.unload().items():
        sure = abs(gradients[name]) > 1e-9
        found.append((to_host(ours.model.params[name])[sure], value[sure]))
    return _apart(found)


def compare_self_critical(workload: Workload, backend: Backend, masked: bool = False) -> float:
    """Return the same for a self-critical step.

    Compared are how many words the captions have that both draw, and of those that ours draws,
    their rewards, their advantages, and the loss without them and the gradients with them.
    """
    import torch
    from torch_peer import TorchPeer

    ours = WithSelfCritical(workload, backend, numpy.float64)
    ours.self_critical(0)
    assert ours.drawn is not None
    words, rewards = ours.drawn
    peer = TorchPeer(workload, torch_device(backend), torch.float64, masked).critical
    torch.manual_seed(0)
    found = [((words != NULL).sum(axis=1), (peer.draw() != NULL).sum(dim=1).cpu().numpy())]
    captions = torch.from_numpy(words[:, words.any(axis=0)]).long().to(torch_device(backend))
    again = peer.rewards(captions)
    advantages = peer.advantages(again)
    found.append((rewards, again.flatten().cpu().numpy()))
    found.append((ours.critical.measured["advantage"], advantages.abs().mean().item()))
    found.append((to_host(ours.critical.loss), peer.loss(captions, 1 + 0 * advantages).item()))
    peer.loss(captions, advantages)
    gradients = peer.module.unload(gradients=True).items()
    found += [(to_host(ours.critical.gradients[name]), value) for name, value in gradients]
    return _apart(found)


def _apart(found: list[tuple[Any, Any]]) -> float:
    """Return the largest difference of two values, relative to the largest of their elements."""
    return max(
        float(abs(one - other).max() / max(abs(other).max(), 1e-8))
        for one, other in ((numpy.asarray(a), numpy.asarray(b)) for a, b in found)
        if one.size
    )


def check_first_loss(workload: Workload, backend: Backend) -> None:
    """Check that the model to train is an ordinary one, whose first loss is near ln V per word."""
    loss, expected = float(WithSelfCritical(workload, backend).loss(0)), workload.uniform_loss(0)
    if not abs(loss - expected) < 0.1 * expected:
        raise SystemExit(f"the first loss is {loss:.2f} nats per caption, not about {expected:.2f}")


def torch_device(backend: Backend) -> str:
    """Return PyTorch's name of a device."""
    return "cpu" if backend.device is None else f"cuda:{backend.device}"


def make(name: str, workload: Workload, backend: Backend, threads: int) -> Any:
    """Build a contender by name."""
    if name == "numpy":
        return WithNumPyAlone(workload, backend)
    if name == "products":
        return products(workload, backend.xp)
    if name in ("torch", "torch masked", "torch compiled"):
        import torch
        from torch_peer import TorchPeer

        torch.set_num_threads(threads)
        device, compiled = torch_device(backend), name == "torch compiled"
        return TorchPeer(workload, device, masked=name != "torch", compiled=compiled)
    if name.startswith("torch graph"):
        from torch_peer import TorchGraphPeer

        return TorchGraphPeer(workload, torch_device(backend), name.split()[-1])
    return WithSelfCritical(workload, backend, precision=name.partition(" ")[2] or "float32")


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Give PyTorch this number of threads inside the context."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


def contenders_on(backend: Backend, workload: Workload) -> list[str]:
    """Return who takes part."""
    names = ["xpcap"] + (["products"] if workload.scoring is None else [])
    names += ["torch", "torch masked"] if HAS_TORCH else []
    names += ["torch compiled"] if HAS_TORCH and workload.cell == Transformer.family else []
    if backend.device is None:
        return [*names, "numpy"]
    graphs = ["torch graph tf32", "torch graph float16"] if HAS_TORCH else []
    return [*names, "xpcap tf32", "xpcap bf16", *graphs]


def peak_memory(name: str, options: list[str]) -> int:
    """Return the bytes that a process needs at most which does nothing but train (on Linux)."""
    command = [sys.executable, __file__, *options, "--memory-of", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return int(done.stdout)


def peak_of_training(contender: Any) -> int:
    """Train a few steps, and return the bytes that this process has needed at most."""
    for k in range(MEMORY_STEPS):
        contender.train(k)
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


class Attempts:
    """Calls functions whose errors shall not end the benchmark; `failed` if there was one."""

    def __init__(self) -> None:
        self.failed = False

    def __call__(self, what: str, function: Callable[..., Any], *args: Any) -> Any:
        """Return what the function returns, or None after a line with its error."""
        try:
            return function(*args)
        except Exception as error:
            self.failed = True
            reason = (str(error).strip().splitlines() or [""])[0]
            print(f"{what}: {type(error).__name__}: {reason}", flush=True)
        return None


def same_as_torch(workload: Workload, backend: Backend, tasks: Sequence[str]) -> bool:
    """Whether PyTorch computes what we compute.

    Raises
    ------
    ArithmeticError
        If it computes something else.
    """
    size = workload.configuration
    fewer = replace(size, batch_size=min(size.batch_size, COMPARED))
    some = Workload(fewer, workload.cell, workload.split.captions, workload.scoring)
    apart = max(compare(some, backend, masked) for masked in (False, True))
    if "self-critical" in tasks:
        others = [compare_self_critical(some, backend, masked) for masked in (False, True)]
        apart = max(apart, *others)
    print(f"PyTorch differs by at most {apart:.1e} in float64, relative to the largest value")
    if not apart < 1e-8:
        raise ArithmeticError(f"PyTorch computes something else ({apart:.1e})")
    return True


def start(name: str, task: str, *where: Any) -> Callable[[int], Any]:
    """Build a contender, and return what does its task, having done so once."""
    work: Callable[[int], Any] = getattr(make(name, *where), task.replace("-", "_"))
    work(0)
    return work


def versions() -> dict[str, str]:
    """Return the versions of what takes part."""
    found = {"xpcap": xpcap.__version__, "python": platform.python_version()}
    for name in ("numpy", "numba", "torch", "cupy"):
        if name in sys.modules:
            found[name] = sys.modules[name].__version__
    return found


@click.command()
@click.option("--config", "configs", multiple=True, type=click.Choice(list(KNOWN)))
@click.option("--model", default="recurrent", type=click.Choice(list(FAMILIES)))
@click.option("--scoring", "scorings", multiple=True, type=click.Choice(SCORINGS))
@click.option("--cell", "cells", multiple=True, type=click.Choice(list(CELLS)))
@click.option("--task", "tasks", multiple=True, type=click.Choice(TASKS))
@click.option("--device", default="cpu", help="cpu, gpu or gpu:K.")
@click.option("--rounds", default=12, help="Turns that each contender has.")
@click.option("--calls", default=7, help="Calls a turn.")
@click.option("--threads", default=os.cpu_count(), help="Of PyTorch on the CPU.")
@click.option(
    "--load",
    type=click.IntRange(min=0),
    help="Keep this many processes busy; on the CPU, compare numbers of threads.",
)
@click.option(
    "--nice", type=click.IntRange(0, 19), default=0, help="Niceness of the busy processes."
)
@click.option("--captions", type=click.Path(path_type=Path, exists=True), help="COCO's folder.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures.")
@click.option("--memory-of", hidden=True)
def main(
    configs: tuple[str, ...],
    model: str,
    scorings: tuple[str, ...],
    cells: tuple[str, ...],
    tasks: tuple[str, ...],
    device: str,
    rounds: int,
    calls: int,
    threads: int,
    load: int | None,
    nice: int,
    captions: Path | None,
    json_file: Path | None,
    memory_of: str | None,
) -> None:
    """Print times, ratios to xpcap's, and peak memory; higher ratios are slower."""
    backend = open_backend(device)
    backend.activate().__enter__()  # to the end of the process
    looking = model == AttentionRNN.family
    sizes = {config: KNOWN[config] for config in configs or BY_MODEL.get(model, CONFIGURATIONS)}
    kinds = [model] if model == Transformer.family else cells or CELLS
    workloads = [
        (config, Workload(size, cell, captions and coco_captions(captions, size), scoring))
        for config, size in sizes.items()
        for cell in kinds
        for scoring in (scorings or SCORINGS if looking else [None])
    ]
    if memory_of:
        print(peak_of_training(make(memory_of, workloads[0][1], backend, threads)))
        return
    about = {
        "device": device,
        "processor": processor(),
        "threads": threads,
        "load": load,
        "nice": nice,
        "captions": "COCO" if captions else "drawn",
    }
    print(f"{about['processor']}; device {device}; PyTorch's threads: {threads}")
    compare_threads = load is not None and backend.device is None
    attempt, results = Attempts(), []
    for config, workload in workloads:
        cell, where = workload.cell, (workload, backend, threads)
        check_first_loss(workload, backend)
        kind = cell if workload.scoring is None else f"attention-{cell}-{workload.scoring}"
        names = contenders_on(backend, workload)
        if HAS_TORCH and not attempt(
            f"{config} {kind}: no torch", same_as_torch, workload, backend, tasks or TASKS
        ):
            names = [name for name in names if not name.startswith("torch")]
        if compare_threads:
            names = [name for name in names if name in UNDER_LOAD]
        options = ["--config", config, "--device", device, "--model", model]
        options += ["--cell", cell] if cell in CELLS else []
        options += ["--scoring", workload.scoring] if workload.scoring else []
        options += ["--captions", str(captions)] if captions else []
        alone = backend.device is None and load is None and "train" in (tasks or TASKS)
        measured = [n for n in names if n != "products"] if alone else []
        memory = {
            name: attempt(f"{config} {kind}: no peak memory of {name}", peak_memory, name, options)
            for name in measured
        }
        for task in tasks or TASKS:
            title = f"{config} {kind} {task}"
            takes_part = [n for n in names if n in PROGRAMS.get(task, names)]
            with (
                busy_processes(load or 0, nice),
                xpcap.use_threads("auto") if compare_threads else contextlib.nullcontext(),
            ):
                # anew for each task, for training changes the parameters
                tried = {
                    n: attempt(f"{title}: {n} left out", start, n, task, *where) for n in takes_part
                }
                calls_of = {name: work for name, work in tried.items() if work}
                if "xpcap" not in calls_of:
                    continue
                if compare_threads:
                    calls_of |= by_threads("xpcap", calls_of["xpcap"])
                    for name in [n for n in calls_of if n.startswith("torch")]:
                        calls_of |= by_threads(name, calls_of[name], torch_threads)
                figures = interleave(calls_of, rounds, calls, backend.synchronize)
            print(title)
            for name, times in figures.items():
                N = workload.configuration.batch_size
                result = Result(config, kind, task, name, N, times, figures["xpcap"])
                used = memory.get(name) if task == "train" else None
                print(result.line() + (f"  {used / 2**20:.0f} MiB" if used else ""))
                results.append({**result.as_dict(), "peak_memory_bytes": used})
            if json_file:
                json_file.write_text(
                    json.dumps({"versions": versions(), **about, "results": results}, indent=1)
                )
    sys.exit(attempt.failed)


if __name__ == "__main__":
    main()
