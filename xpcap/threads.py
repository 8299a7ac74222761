"""CPU threads: how many there are, and work shared among them.

NumPy's BLAS splits each product among threads that wait for each other by spinning. Where another
program takes a core, every product waits for the thread that is not running, and two threads are
several times as slow as one. Here each thread takes a large share of the work instead, such as half
of a batch's captions, with a one-threaded BLAS. Threads wait for each other, without spinning, a
few times per training step.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from xpcap import distributed
from xpcap.errors import ConfigurationError

T = TypeVar("T")
LIMITS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
LEAST = 16  # captions or images that are worth a thread


def available(root: Path = Path("/")) -> int:
    """Return how many threads this process can use, according to the file system in `root`.

    This is the number of processors in its affinity mask, limited by its share of the machine's
    processors and cgroup quotas, of which each process that MPI started there has one, and by the
    environment (`LIMITS`).
    """
    machine = min(os.cpu_count() or 1, _quota(root))
    limits = [int(value) for name in LIMITS if (value := os.environ.get(name, "")).isdecimal()]
    return max(1, min([_processors(), math.floor(machine / distributed.local_size()), *limits]))


def _processors() -> int:
    """Return the number of processors in this process's affinity mask."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(root: Path) -> float:
    """Return how many processors cgroups, version 1 or 2, grant this process; infinity for all.

    A group is limited by all groups above it. In a container the path may be that on the host;
    then only the mounted root is there, which is the container's own group.
    """
    found = [math.inf]
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        group = PurePosixPath(*(part for part in path.split("/") if part not in ("", "..")))
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in (f"sys/fs/cgroup/{controllers}", "sys/fs/cgroup/cpu"):
            for folder in (group, *group.parents):
                place = root / mount / folder
                quota = _read(place / "cpu.max").split() or [
                    *_read(place / "cpu.cfs_quota_us").split(),
                    *_read(place / "cpu.cfs_period_us").split(),
                ]
                if len(quota) == 2 and quota[0] != "max" and int(quota[0]) > 0:
                    found.append(int(quota[0]) / int(quota[1]))
    return min(found)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


class use_threads:
    """Set the number of CPU threads of this process, from now on or inside a `with` block.

    It is a positive number, also as text, or `"auto"`: as many as the process can use. The
    attributes `number` and `automatic` say how many they are, and whether it was `"auto"`.

    Examples
    --------
    >>> import xpcap
    >>> with xpcap.use_threads(1):
    ...     model = xpcap.CaptioningRNN({"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3})
    """

    def __init__(self, threads: int | str = "auto") -> None:
        self.automatic = str(threads) == "auto"
        self.number = _number(str(threads))
        self._active = False
        self.__enter__()

    def __enter__(self) -> use_threads:
        global _process
        if not self._active:
            self._active = True
            self._outside, _process = _process, (self.number, self.automatic)
            self._before = _change_blas([self.number] * len(_controllers()))
        return self

    def __exit__(self, *error: object) -> None:
        global _process
        self._active, _process = False, self._outside
        _change_blas(self._before)


_process: tuple[int, bool] | None = None  # number of threads, and whether it was "auto"
_context: contextvars.ContextVar[tuple[int, bool] | None]
_context = contextvars.ContextVar("threads", default=None)


@contextlib.contextmanager
def shared_among(threads: int) -> Iterator[None]:
    """Share work among this number of threads in this context of the calling thread alone."""
    outside = _context.get()
    _context.set((threads, False))
    try:
        yield
    finally:
        _context.set(outside)


def _number(text: str) -> int:
    if not re.fullmatch("auto|[1-9][0-9]{0,3}", text):
        raise ConfigurationError(f"threads '{text}' is neither auto nor a positive number")
    return available() if text == "auto" else int(text)


_default = functools.cache(_number)


def number() -> int:
    """Return the number of threads: of `use_threads`, or of `XPCAP_THREADS`, by default `auto`."""
    return _setting()[0]


def automatic() -> bool:
    """Return whether the number of threads was left to xpcap."""
    return _setting()[1]


def _setting() -> tuple[int, bool]:
    if setting := _context.get() or _process:
        return setting
    default = os.environ.get("XPCAP_THREADS", "auto")
    return _default(default), default == "auto"


def spans(count: int, least: int = LEAST) -> list[slice]:
    """Return a span of `count` items for each thread, or fewer spans, none shorter than `least`."""
    parts = max(1, min(number(), count // least))
    bounds = [count * part // parts for part in range(parts + 1)]
    return [slice(*pair) for pair in itertools.pairwise(bounds)]


def run(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Run functions side by side, each in a thread with a one-threaded BLAS.

    The first runs in the calling thread. All have ended when this returns, or raises what one of
    them raised. Inside such a function, others run one after another.
    """
    if getattr(_this, "shares", False):
        return [task() for task in tasks]
    with _one_threaded_blas():
        futures: list[Future[T]] = []
        try:
            for task in tasks[1:]:
                context = contextvars.copy_context()
                futures.append(_pool().submit(context.run, _work, task))
            results = [_work(tasks[0])]
        finally:
            _wait(futures)
    return results + [future.result() for future in futures]


def _wait(futures: Sequence[Future[Any]]) -> None:
    """Wait until all have ended; an interrupt is raised only then, as they write into memory."""
    interrupt: BaseException | None = None
    while not all(future.done() for future in futures):
        try:
            wait(futures)
        except BaseException as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


_this = threading.local()


def _work(task: Callable[[], T]) -> T:
    _this.shares = True
    try:
        return task()
    finally:
        _this.shares = False


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Return a pool that makes a thread when none is idle.

    BLAS libraries that use OpenMP have a limit for each thread.
    """
    return ThreadPoolExecutor(1000, "xpcap", lambda: _limit_blas([1] * len(_controllers())))


_lock = threading.Lock()
_running = 0  # calls of `run` at this moment
_numbers: list[int] = []  # of BLAS threads, outside of them


@contextlib.contextmanager
def _one_threaded_blas() -> Iterator[None]:
    global _running, _numbers
    with _lock:
        if not _running:
            _numbers = [controller.num_threads for controller in _controllers()]
            _limit_blas([1] * len(_numbers))
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if not _running:
                _limit_blas(_numbers)


def _change_blas(numbers: list[int]) -> list[int]:
    """Set the numbers of BLAS threads outside of shares; return those before."""
    global _numbers
    with _lock:
        if _running:
            before, _numbers = _numbers, numbers
        else:
            before = [controller.num_threads for controller in _controllers()]
            _limit_blas(numbers)
    return before


def _begin_child() -> None:
    """Forget the threads of the parent process, which a forked one does not have."""
    global _lock, _running
    _pool.cache_clear()
    if _running:
        _running, numbers = 0, _numbers
        _limit_blas(numbers)
    _lock, _this.shares = threading.Lock(), False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)


@functools.cache
def _controllers() -> list[Any]:
    """Return threadpoolctl's controllers of the BLAS libraries loaded; cached, as it takes ms."""
    import threadpoolctl

    controller = threadpoolctl.ThreadpoolController().select(user_api="blas")
    return list(controller.lib_controllers)


def _limit_blas(numbers: Sequence[int]) -> None:
    for controller, number in zip(_controllers(), numbers, strict=True):
        if hasattr(controller, "clear_controlling_thread"):  # else only one thread may set limits
            controller.clear_controlling_thread(force=True)
        controller.set_num_threads(number)
