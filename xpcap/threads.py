"""The number of BLAS threads: fixed, or chosen by measuring (`auto`).

BLAS splits each product among its threads, which wait for each other by spinning. On an idle
machine that is fast. Where another program takes a core, every product waits for the thread that
is not running, and one thread is several times as fast as two. `auto` therefore times a product
with each number of threads before the first piece of work, and afterwards times the work itself:

* if it becomes clearly slower, fewer threads are tried for a few steps;
* from time to time more threads are tried if processors are idle, or else fewer;
* a trial that is not clearly faster ends, after a few steps at most, with the previous number.

The time that trials lose is kept below 2% of the total. `Chooser` makes these decisions, without
access to BLAS or the clock.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import math
import os
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy

from xpcap import parallel
from xpcap.backend import Array
from xpcap.errors import ConfigurationError

LIMITS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
COST = 0.02  # share of the time that trials may lose
SLOWER, FASTER = 1.3, 0.93  # ratios of times that count as clearly slower and faster
FEW, MANY = 3, 16  # steps of a trial, and steps that are remembered
SHORTEST, LONGEST = 2.0, 30.0  # seconds between two trials
WINDOW, WINDOWS = 0.005, 6  # a product is timed in at most 6 windows of 5 ms with each number
_PRODUCT = 5e8  # floating-point operations of a timed product, about; 2 to 10 ms on one core


def available(root: Path = Path("/")) -> int:
    """Return how many threads this process can use.

    This is the number of processors in its affinity mask, limited by cgroup quotas and divided by
    the number of processes that MPI started on this machine, and by the environment (`LIMITS`).

    Parameters
    ----------
    root
        Root of the file system in which cgroups are looked up.
    """
    mine = _quota(root) // parallel.local_size()
    limits = [int(value) for name in LIMITS if (value := os.environ.get(name, "")).isdecimal()]
    return max(1, min([mine, *limits]))


def _processors() -> Sequence[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)


def _quota(root: Path) -> int:
    """Return how many whole processors cgroups, version 1 or 2, grant this process.

    A group is limited by all groups above it. In a container the path may be that on the host;
    then only the mounted root is there, which is the container's own group.
    """
    found = [float(len(_processors()))]
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
    return math.floor(min(found))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


class IdleProcessors:
    """Counts the processors that were idle, or ran niced processes only, since the last call.

    Parameters
    ----------
    stat
        Linux's processor statistics; without them all processors count as idle.
    """

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._before = self._times()

    def __call__(self) -> float:
        """Return the number, not necessarily an integer; infinity if it is unknown."""
        before, self._before = self._before, self._times()
        spans = [
            (now[0] - then[0], now[1] - then[1])
            for now, then in zip(self._before, before, strict=False)
        ]
        return sum(free / total for free, total in spans if total > 0) if spans else math.inf

    def _times(self) -> list[tuple[int, int]]:
        """Return the free and the total time of each processor, in ticks."""
        mine, found = {f"cpu{number}" for number in _processors()}, []
        for name, *fields in map(str.split, _read(self._stat).splitlines()):
            if name in mine:
                ticks = list(map(int, fields[:8]))  # user, nice, system, idle, iowait, ...
                found.append((ticks[1] + ticks[3] + ticks[4], sum(ticks)))
        return found


class Chooser:
    """Chooses the number of threads for repeated work.

    Parameters
    ----------
    candidates
        Numbers of threads, ascending.
    number
        Initial number.
    apply
        Called with a number before it is used.
    idle
        Returns how many processors were idle since its previous call.
    tell
        Called with a message when another number is chosen.
    clock
        Returns the time in seconds.

    Attributes
    ----------
    number
        The number in use.
    spent
        Seconds that trials have lost.
    probed
        Seconds per call of the function given to `probe`, by number of threads.
    """

    def __init__(
        self,
        candidates: Sequence[int],
        number: int,
        apply: Callable[[int], None],
        idle: Callable[[], float] = lambda: math.inf,
        tell: Callable[[str], None] = lambda message: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.number = number
        self.spent = 0.0
        self.probed: dict[int, float] = {}
        self._candidates = candidates
        self._apply = apply
        self._idle = idle
        self._tell = tell
        self._clock = clock
        self._begun = clock()
        self._times: collections.deque[float] = collections.deque(maxlen=MANY)  # s per unit
        self._trial: list[tuple[float, float]] = []  # seconds and work
        self._chosen = number  # to which a trial that fails goes back
        self._usual = 0.0  # s per unit of work, to which a trial is compared
        self._upwards = True
        self._slow = False  # whether the trial is because the work became slower
        self._wait = SHORTEST
        self._due = self._begun + self._wait

    def probe(self, work: Callable[[], object]) -> None:
        """Time a short function with each number, and choose the fastest.

        Timing a number stops early if it takes more than twice as long as the best so far. More
        threads are chosen only if they are clearly faster.
        """
        found = self.probed
        for number in self._candidates:
            self._apply(number)
            work()
            calls, start, best = 0, self._clock(), min(found.values(), default=math.inf)
            for window in range(1, WINDOWS + 1):
                while self._clock() - start < window * WINDOW:
                    work()
                    calls += 1
                found[number] = (self._clock() - start) / calls
                if found[number] > 2 * best:
                    break
            if found[number] < FASTER * best:
                self.number = self._chosen = number

    @contextlib.contextmanager
    def measured(self, work: float) -> Iterator[None]:
        """Return a context that times a piece of work, whose size is in any consistent unit."""
        self._apply(self.number)
        start = self._clock()
        yield
        now = self._clock()
        if self.number != self._chosen:
            self._try(now, now - start, work)
        else:
            self._times.append((now - start) / work)
            self._look(now)

    def _look(self, now: float) -> None:
        """Begin a trial if the work has become slower, or if one is due."""
        times, spent, elapsed = list(self._times), self.spent, now - self._begun
        if len(times) < FEW:
            return
        latest = statistics.median(times[-FEW:])
        usual = statistics.median(times[:-FEW]) if len(times) >= 2 * FEW else math.inf
        if latest > SLOWER * usual and spent < COST * elapsed:
            self._usual, self._slow = latest, True
            self._begin(now, self._chosen, upwards=False)
        elif now >= self._due and spent < COST / 2 * elapsed:
            self._usual, self._slow = statistics.median(times), False
            if not self._begin(now, self._chosen, self._upwards):
                self._begin(now, self._chosen, not self._upwards)

    def _begin(self, now: float, number: int, upwards: bool) -> bool:
        """Begin a trial of the number after or before another one; return whether there is one."""
        self._due = now + SHORTEST / 2  # if none begins
        index = self._candidates.index(number) + (1 if upwards else -1)
        if not 0 <= index < len(self._candidates):
            return False
        more = self._candidates[index] - self._chosen
        if self._idle() < 0.75 * more:  # threads without a processor would be waited for
            return False
        self.number, self._upwards, self._trial = self._candidates[index], upwards, []
        return True

    def _try(self, now: float, seconds: float, work: float) -> None:
        """Take a step of a trial into account; decide as soon as possible."""
        self._trial.append((seconds, work))
        worse = seconds > SLOWER * self._usual * work
        if not worse and len(self._trial) < FEW:
            return
        times = [seconds / work for seconds, work in self._trial]
        latest = list(self._times)[-FEW:]
        if not worse and statistics.median(times) < FASTER * self._usual:
            change = self._usual / statistics.median(times)
            self._tell(f"threads: {self.number}, {change:.2f} times as fast as {self._chosen}")
            self._chosen, self._wait, self._due = self.number, SHORTEST, now
            self._times.clear()
            self._times.extend(times)
            return
        lost = sum(seconds - self._usual * work for seconds, work in self._trial)
        self.spent += max(lost, 0.0)
        if self._slow and self._begin(now, self.number, upwards=False):
            return
        self._times.clear()
        self.number = self._chosen
        self._times.extend(latest)
        self._upwards = not self._upwards
        self._wait = min(2 * self._wait, LONGEST)
        self._due = now + self._wait


@functools.cache
def _controllers() -> list[Any]:
    """Return threadpoolctl's controllers of the BLAS libraries loaded; cached, as it takes ms."""
    import threadpoolctl

    controller = threadpoolctl.ThreadpoolController().select(user_api="blas")
    return list(controller.lib_controllers)


def _apply(number: int) -> None:
    for controller in _controllers():
        controller.set_num_threads(number)


def candidates(most: int) -> list[int]:
    """Return the numbers that `auto` chooses from: powers of 2 below `most`, and `most`."""
    return [*(2**k for k in range((most - 1).bit_length())), most]


def _product(rows: int, matrices: Sequence[numpy.ndarray]) -> Callable[[], None]:
    """Return a function that multiplies matrices `(m, k) (k, n)`, m being `rows` or fewer."""
    products = []
    for matrix in matrices:
        few = max(1, min(rows, max(64, int(_PRODUCT / (2 * matrix.size)))))
        left = numpy.ones((few, len(matrix)), matrix.dtype)
        products.append((left, matrix, numpy.empty((few, matrix.shape[1]), matrix.dtype)))

    def work() -> None:
        for left, right, out in products:
            numpy.matmul(left, right, out=out)

    return work


class use_threads:
    """Set the number of BLAS threads of this process, from now on or inside a `with` block.

    `"auto"` measures the work of the thread that called it. Under MPI it fixes the number at this
    process's share of the processors: ranks wait for each other, so none could measure its own.

    Parameters
    ----------
    threads
        A positive number, also as text, or `"auto"`.
    tell
        Called with a message whenever `"auto"` chooses another number.

    Attributes
    ----------
    fixed
        The number, or None if it is chosen by measuring.
    limit
        The largest number used.

    Raises
    ------
    ConfigurationError
        If `threads` is anything else.

    Examples
    --------
    >>> import xpcap
    >>> with xpcap.use_threads(1):
    ...     model = xpcap.CaptioningRNN({"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3})
    """

    def __init__(
        self, threads: int | str = "auto", tell: Callable[[str], None] = lambda message: None
    ) -> None:
        text = str(threads)
        if not re.fullmatch("auto|[1-9][0-9]{0,3}", text):
            raise ConfigurationError(f"threads '{text}' is neither auto nor a positive number")
        self.limit = available() if text == "auto" else int(text)
        measured = text == "auto" and self.limit > 1 and not parallel.launched()
        self.fixed = None if measured and _controllers() else self.limit
        self._tell = tell
        self._owner = threading.get_ident()
        self._choosers: dict[str, Chooser] = {}
        self._latest = 1
        self._active = False
        self.__enter__()

    def __enter__(self) -> use_threads:
        if not self._active:
            global _current
            self._previous, _current = _current, self
            self._before = [controller.num_threads for controller in _controllers()]
            self._active = True
            _apply(self.limit)
        return self

    def __exit__(self, *error: object) -> None:
        global _current
        self._active, _current = False, self._previous
        for controller, number in zip(_controllers(), self._before, strict=True):
            controller.set_num_threads(number)

    def chooser(self, kind: str, rows: int, matrices: Sequence[numpy.ndarray]) -> Chooser | None:
        """Return the chooser for a kind of work, or None if the number is fixed."""
        if self.fixed is not None or threading.get_ident() != self._owner:
            return None
        if kind not in self._choosers:
            chooser = Chooser(
                candidates(self.limit), self._latest, _apply, IdleProcessors(), self._tell
            )
            if not self._choosers:
                chooser.probe(_product(rows, matrices))
            self._choosers[kind] = chooser
        self._latest = self._choosers[kind].number
        return self._choosers[kind]


_current: use_threads | None = None


def measured(kind: str, work: float, rows: int, *matrices: Array) -> AbstractContextManager[None]:
    """Return a context around a piece of work that `auto` measures, unless it is on a GPU.

    Parameters
    ----------
    kind
        Kind of work; each has its own number of threads.
    work
        Amount of work, such as a number of words.
    rows, matrices
        Typical products are `(rows, k) (k, n)` with these matrices `(k, n)`.
    """
    if _current is None or not (work and isinstance(matrices[0], numpy.ndarray)):
        return contextlib.nullcontext()
    chooser = _current.chooser(kind, rows, matrices)
    return contextlib.nullcontext() if chooser is None else chooser.measured(work)


def number() -> int | None:
    """Return the number of BLAS threads; None without `use_threads`, or if BLAS is unknown."""
    if _current is None or not _controllers():
        return None
    return int(_controllers()[0].num_threads)


def limit() -> int:
    """Return how many threads other libraries may use: the limit of `use_threads`, if any."""
    return available() if _current is None else _current.limit
