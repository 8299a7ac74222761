"""Several processes that work as one: MPI starts them and carries what they tell each other.

`mpirun -n 4 xpcap train` starts four processes, ranks 0 to 3, of which each does its share; sums
over all of them make every rank compute what one alone would. Of a long array each rank gets the
sum of a part only, and when it has done with that part what is to be done, gives it to the others.
On GPUs NCCL does both. Where `mpirun` has not started a process, it is alone, and no sum is
anything but the number itself.

A rank that fails ends them all (`end_all`), as the others may be waiting for what it was to say.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy

from xpcap.backend import Array, Backend, is_host, namespace
from xpcap.errors import ConfigurationError
from xpcap.workspace import passing

Value = TypeVar("Value")
_SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
_LOCAL_RANK = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
_LOCAL_SIZE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_TASKS_PER_NODE")
_PIECE = 2**19  # bytes that are added up at a time: in the cache, where they have just come to
_PATIENCE = 1.0  # seconds in which rank 0 may say first what all want to say


class Ranks(Protocol):
    """The processes that work together; `rank` is this one's number, of `size`."""

    rank: int
    size: int

    def sum(self, array: Array) -> None:
        """Replace a short array, on the host or the device, by its sum over all ranks."""

    def reduce_scatter(self, array: Array) -> None:
        """Replace `part_of(self, size)` of an array `(size,)` by its sum over all ranks."""

    def all_gather(self, array: Array) -> None:
        """Replace each part of an array `(size,)` by that of the rank whose it is."""

    def wait(self) -> None:
        """Wait until all ranks are here."""

    def any(self, value: bool) -> bool:
        """Whether any rank says so."""

    def gather(self, value: Value) -> list[Value]:
        """Return every rank's value, in their order, to all of them."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def sum(self, array: Array) -> None:
        """Leave the array as it is."""

    def reduce_scatter(self, array: Array) -> None:
        """Leave the array as it is."""

    def all_gather(self, array: Array) -> None:
        """Leave the array as it is."""

    def wait(self) -> None:
        """Wait for nobody."""

    def any(self, value: bool) -> bool:
        """Return the value."""
        return value

    def gather(self, value: Value) -> list[Value]:
        """Return the value alone."""
        return [value]


class MPIRanks:
    """The processes that `mpirun` has started.

    Parameters
    ----------
    mpi
        The module `mpi4py.MPI`.
    backend
        Where arrays are that are summed; on GPUs each rank of a machine has its own.

    Raises
    ------
    ConfigurationError
        If mpi4py belongs to another MPI than `mpirun`, or some ranks have GPUs and some have not.
    BackendError
        If NCCL cannot connect the GPUs.
    """

    def __init__(self, mpi: Any, backend: Backend) -> None:
        self._mpi = mpi
        self._world = mpi.COMM_WORLD
        self._flag: numpy.ndarray = numpy.zeros(1, bool)
        self.rank, self.size = self._world.rank, self._world.size
        if self.size != _started():
            library = mpi.Get_library_version().splitlines()[0].split(",")[0]
            raise ConfigurationError(
                f"{_started()} processes were started, but mpi4py counts {self.size}; expected an"
                f" mpirun of mpi4py's own MPI, which is {library}"
            )
        check_alike(self, {"devices": backend.name.partition(":")[0]})
        self._nccl = backend.collective(self.rank, self.size)

    def sum(self, array: Array) -> None:
        """Replace a short array by its sum over all ranks, on the device it is on."""
        if is_host(namespace(array)):
            self._world.Allreduce(self._mpi.IN_PLACE, array)
        else:
            self._nccl.all_reduce(array, array)

    def reduce_scatter(self, array: Array) -> None:
        """Replace this rank's part of an array `(size,)` by its sum over all ranks.

        On the CPU by pairwise exchange: as often as there are others, each rank gives one of them
        its part and gets its own from another (Thakur, Rabenseifner and Gropp, "Optimization of
        collective communication operations in MPICH", 2005).
        """
        parts, piece = array.reshape(self.size, -1), _PIECE // array.itemsize
        mine = parts[self.rank]
        if not is_host(namespace(array)):
            self._nccl.reduce_scatter(array, mine, mine.size)
            return
        received = passing(numpy, array.dtype).empty("received", piece)
        for distance in range(1, self.size):
            to, source = (self.rank + distance) % self.size, (self.rank - distance) % self.size
            for first in range(0, mine.size, piece):
                given, own = parts[to, first : first + piece], mine[first : first + piece]
                self._world.Sendrecv(given, to, recvbuf=received[: own.size], source=source)
                own += received[: own.size]

    def all_gather(self, array: Array) -> None:
        """Replace each part of an array `(size,)` by that of the rank whose it is."""
        if is_host(namespace(array)):
            self._world.Allgather(self._mpi.IN_PLACE, array)
        else:
            mine = array[part_of(self, array.size)]
            self._nccl.all_gather(mine, array, mine.size)

    def wait(self) -> None:
        """Wait until all ranks are here."""
        self._world.Barrier()

    def any(self, value: bool) -> bool:
        """Whether any rank says so."""
        self._flag[0] = value
        self._world.Allreduce(self._mpi.IN_PLACE, self._flag, op=self._mpi.LOR)
        return bool(self._flag[0])

    def gather(self, value: Value) -> list[Value]:
        """Return every rank's value, in their order, to all of them."""
        found: list[Value] = self._world.allgather(value)
        return found


def launched() -> bool:
    """Whether `mpirun` has started this process among others."""
    return _started() > 1


def rank() -> int:
    """Return this process' number as `mpirun` has told it, without waiting for the others."""
    return _number(_RANK, 0) if launched() else 0


def local_rank() -> int:
    """Return this process' number among those on its machine, likewise."""
    return _number(_LOCAL_RANK, 0) if launched() else 0


def local_size() -> int:
    """Return how many processes `mpirun` has started on this machine; 1 without it."""
    return _number(_LOCAL_SIZE, 1) if launched() else 1


def _started() -> int:
    return _number(_SIZE, 1)


def _number(names: Sequence[str], default: int) -> int:
    found = (os.environ[name] for name in names if name in os.environ)
    first = (re.split("[(,]", value)[0] for value in found)
    return next(map(int, first), default)  # Slurm writes 2(x3),1 for machines of 2, 2, 2 and 1


def join(backend: Backend) -> Ranks:
    """Join the other processes, if `mpirun` has started any.

    Raises
    ------
    ConfigurationError, BackendError
        If it has, and mpi4py is missing, or as `MPIRanks` says.
    """
    if not launched():
        return Alone()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # the latter where there is no MPI
        raise ConfigurationError(
            f"more than one process needs mpi4py, which cannot be imported ({error}); expected pip"
            " install 'xpcap[mpi]', and an MPI"
        ) from error
    return MPIRanks(MPI, backend)


def part_of(ranks: Ranks, size: int) -> slice:
    """Return which of `size` numbers, as many for each rank, are this one's."""
    each = size // ranks.size
    return slice(ranks.rank * each, (ranks.rank + 1) * each)


def check_alike(ranks: Ranks, found: Mapping[str, Any]) -> None:
    """Check that all ranks have found the same; all of them raise if not.

    Parameters
    ----------
    ranks
        Who.
    found
        By name, what.

    Raises
    ------
    ConfigurationError
        It says what differs.
    """
    first, *others = ranks.gather(dict(found))
    for number, other in enumerate(others, start=1):
        for name in first | other:
            if first.get(name) != other.get(name):
                raise ConfigurationError(
                    f"ranks 0 and {number} were started with different {name}: {first.get(name)}"
                    f" and {other.get(name)}; expected the same"
                )


def by_first(ranks: Ranks, work: Callable[[], Value]) -> Value:
    """Let the first rank do something while the others wait; return to all what came of it."""
    found: Any = ranks.gather(None if ranks.rank else work())[0]
    return found  # type: ignore[no-any-return]


def in_turn(ranks: Ranks, work: Callable[[], Value]) -> Value:
    """Let the ranks do something one after the other, as the first may leave it for them."""
    for _ in range(ranks.rank):
        ranks.gather(None)
    found = work()
    for _ in range(ranks.rank, ranks.size):
        ranks.gather(None)
    return found


def share_out(count: int, size: int, ranks: Ranks, work: Callable[[slice], Value]) -> list[Value]:
    """Let the ranks do parts of `count` things in a row.

    Parameters
    ----------
    count
        How many things.
    size
        Of a part, at most: the parts are the same for any number of ranks, and so is what is made
        of them, to the last bit.
    ranks
        To whom they are dealt like cards.
    work
        Called with a part.

    Returns
    -------
    list
        What it made of all of them, in their order.
    """
    parts = [slice(first, min(first + size, count)) for first in range(0, count, size)]
    done = ranks.gather([work(part) for part in parts[ranks.rank :: ranks.size]])
    return [done[k % ranks.size][k // ranks.size] for k in range(len(parts))]


def wait_for_first() -> None:
    """Let rank 0 say first what all have to say, and end them all."""
    if rank():
        _world()
        time.sleep(_PATIENCE)


def end_all(status: int) -> None:
    """End all processes that work together, if there are any."""
    sys.stderr.flush()
    if launched() and (world := _world()) is not None:
        world.Abort(status)


def _world() -> Any:
    """Join the others, who may be waiting to be joined; return MPI's communicator, if there is one.

    Where one ends without that, Open MPI ends them all, but MPICH lets them wait for ever.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):
        return None
    return MPI.COMM_WORLD
