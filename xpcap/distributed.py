"""Several processes that train, evaluate or caption as one, started by MPI.

`mpirun -n 4 xpcap train` starts four processes, ranks 0 to 3. Each computes the gradient of its
share of every minibatch; one all-reduce sums them, by MPI on CPUs and by NCCL on GPUs. All ranks
have all parameters and optimizer state and apply the same update.

A rank that fails ends all of them (`end_all`), since the others may be waiting for it.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy

from xpcap.backend import Array, Backend, is_host, namespace
from xpcap.errors import ConfigurationError

Value = TypeVar("Value")
_PIECE = 2**18  # elements summed at a time, while they are in the cache
_SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
_LOCAL_RANK = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
_LOCAL_SIZE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_TASKS_PER_NODE")
_PATIENCE = 1.0  # seconds in which rank 0 may report first an error that all ranks have


def size() -> int:
    """Return the number of processes that `mpirun` has started, 1 without it."""
    return _number(_SIZE, 1)


def launched() -> bool:
    """Whether `mpirun` has started this process among others."""
    return size() > 1


def rank() -> int:
    """Return the number of this process, without waiting for the others."""
    return _number(_RANK, 0) if launched() else 0


def local_rank() -> int:
    """Return the number of this process among those on its machine."""
    return _number(_LOCAL_RANK, 0) if launched() else 0


def local_size() -> int:
    """Return the number of processes on this machine."""
    return _number(_LOCAL_SIZE, 1) if launched() else 1


def _number(names: Sequence[str], default: int) -> int:
    found = (os.environ[name] for name in names if name in os.environ)
    first = (re.split("[(,]", value)[0] for value in found)
    return next(map(int, first), default)  # Slurm writes 2(x3),1 for machines of 2, 2, 2 and 1


def wait_for_first() -> None:
    """Let rank 0 report first an error that all ranks have, and end them all."""
    if rank():
        _world()
        time.sleep(_PATIENCE)


def end_all(status: int) -> None:
    """End all ranks, if there are any."""
    sys.stderr.flush()
    if launched() and (world := _world()) is not None:
        world.Abort(status)


def _world() -> Any:
    """Join the others, who may be waiting for that; return MPI's communicator, if there is one.

    When a rank ends without joining, Open MPI ends the others, but MPICH lets them wait forever.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):
        return None
    return MPI.COMM_WORLD


class Alone:
    """One process that works alone."""

    rank, size = 0, 1

    def sum(self, array: Array) -> None:
        """Leave the array as it is."""

    def any(self, value: bool) -> bool:
        """Return the value."""
        return value

    def gather(self, value: Value) -> list[Value]:
        """Return the value in a list."""
        return [value]


class MPIRanks:
    """The processes that `mpirun` has started; `rank` is the number of this one, of `size`.

    `mpi` is the module `mpi4py.MPI`; it must belong to that `mpirun`. Either all ranks have a GPU,
    which NCCL connects, or none has.
    """

    def __init__(self, mpi: Any, backend: Backend) -> None:
        self._mpi = mpi
        self._world = mpi.COMM_WORLD
        self.rank, self.size = self._world.rank, self._world.size
        if self.size != size():
            library = mpi.Get_library_version().splitlines()[0].split(",")[0]
            raise ConfigurationError(
                f"{size()} processes were started, but mpi4py counts {self.size}; expected"
                f" an mpirun of mpi4py's own MPI, which is {library}"
            )
        check_alike(self, {"devices": backend.name.partition(":")[0]})
        self._nccl = backend.collective(self.rank, self.size)

    def sum(self, array: Array) -> None:
        """Replace an array `(P,)` by its sum over all ranks, on the device it is on."""
        if is_host(namespace(array)):
            for first in range(0, array.size, _PIECE):
                self._world.Allreduce(self._mpi.IN_PLACE, array[first : first + _PIECE])
        else:
            self._nccl.all_reduce(array, array)

    def any(self, value: bool) -> bool:
        """Whether the value is true on any rank."""
        flag = numpy.array([value])
        self._world.Allreduce(self._mpi.IN_PLACE, flag, op=self._mpi.LOR)
        return bool(flag[0])

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks, in order, on every rank."""
        found: list[Value] = self._world.allgather(value)
        return found


Ranks: TypeAlias = Alone | MPIRanks


def join(backend: Backend) -> Ranks:
    """Join the other processes, if `mpirun` has started any."""
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


def share_out(count: int, most: int, ranks: Ranks, work: Callable[[slice], Value]) -> list[Value]:
    """Split `count` items into parts of at most `most`, on which the ranks work in turn.

    Returns the results of all parts in order, on every rank. The parts, and so the results' bits,
    do not depend on the number of ranks.
    """
    parts = [slice(first, min(first + most, count)) for first in range(0, count, most)]
    done = ranks.gather([work(part) for part in parts[ranks.rank :: ranks.size]])
    return [done[k % ranks.size][k // ranks.size] for k in range(len(parts))]


def by_first(ranks: Ranks, work: Callable[[], Value]) -> Value:
    """Let rank 0 do something while the others wait, and return its result to all."""
    found: Any = ranks.gather(None if ranks.rank else work())[0]
    return found  # type: ignore[no-any-return]


def in_turn(ranks: Ranks, work: Callable[[], Value]) -> Value:
    """Let the ranks do something one after the other."""
    for _ in range(ranks.rank):
        ranks.gather(None)
    found = work()
    for _ in range(ranks.rank, ranks.size):
        ranks.gather(None)
    return found


def check_alike(ranks: Ranks, found: Mapping[str, Any]) -> None:
    """Raise a `ConfigurationError` on every rank if their values of a name differ."""
    first, *others = ranks.gather(dict(found))
    for number, other in enumerate(others, start=1):
        for name in first | other:
            if first.get(name) != other.get(name):
                raise ConfigurationError(
                    f"ranks 0 and {number} were started with different {name}: {first.get(name)}"
                    f" and {other.get(name)}; expected the same"
                )
