"""Several processes that work as one: MPI starts them and carries what they tell each other.

`mpirun -n 4 xpcap train` starts four processes, ranks 0 to 3, of which each does its share; sums
over all of them make every rank compute what one alone would. On GPUs the sums are NCCL's. Where
`mpirun` has not started a process, it is alone, and no sum is anything but the number itself.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy

from xpcap.backend import Array, Backend, is_host, namespace
from xpcap.errors import ConfigurationError

Value = TypeVar("Value")
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE", "MPI_LOCALNRANKS")
_PATIENCE = 1.0  # seconds in which rank 0 may say first what all want to say


class Ranks(Protocol):
    """The processes that work together; `rank` is this one's number, of `size`."""

    rank: int
    size: int

    def sum(self, array: Array) -> None:
        """Replace an array, on the host or the device, by its sum over all ranks."""

    def any(self, value: bool) -> bool:
        """Whether any rank says so."""

    def gather(self, value: Value) -> list[Value]:
        """Return every rank's value, in their order, to all of them."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def sum(self, array: Array) -> None:
        """Leave the array as it is."""

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
    """

    def __init__(self, mpi: Any, backend: Backend) -> None:
        self._mpi = mpi
        self._world = mpi.COMM_WORLD
        self.rank, self.size = self._world.rank, self._world.size
        self._nccl = backend.collective(self.rank, self.size)

    def sum(self, array: Array) -> None:
        """Replace an array by its sum over all ranks, on the device it is on."""
        if is_host(namespace(array)):
            self._world.Allreduce(self._mpi.IN_PLACE, array)
        else:
            assert self._nccl is not None
            self._nccl.all_reduce(array, array)

    def any(self, value: bool) -> bool:
        """Whether any rank says so."""
        return bool(self._world.allreduce(value, op=self._mpi.LOR))

    def gather(self, value: Value) -> list[Value]:
        """Return every rank's value, in their order, to all of them."""
        found: list[Value] = self._world.allgather(value)
        return found


def launched() -> bool:
    """Whether `mpirun` has started this process among others."""
    return any(os.environ.get(name, "1") != "1" for name in _SIZES)


def rank() -> int:
    """Return this process' number as `mpirun` has told it, without waiting for the others."""
    return _number(("OMPI_COMM_WORLD_RANK", "PMI_RANK")) if launched() else 0


def local_rank() -> int:
    """Return this process' number among those on its machine."""
    return _number(("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"))


def _number(names: Sequence[str]) -> int:
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def join(backend: Backend) -> Ranks:
    """Join the other processes, if `mpirun` has started any.

    Raises
    ------
    ConfigurationError
        If it has, and mpi4py is missing.
    """
    if not launched():
        return Alone()
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise ConfigurationError(
            f"more than one process needs mpi4py, which cannot be imported ({error}); expected pip"
            " install 'xpcap[mpi]'"
        ) from error
    return MPIRanks(MPI, backend)


def wait_for_first() -> None:
    """Let rank 0 say first what all have to say, and end them all."""
    if rank():
        time.sleep(_PATIENCE)


def end_all(status: int) -> None:
    """End all processes that work together, if there are any."""
    sys.stderr.flush()
    if launched() and "mpi4py.MPI" in sys.modules:
        sys.modules["mpi4py.MPI"].COMM_WORLD.Abort(status)


def share(count: int, ranks: Ranks) -> slice:
    """Return which of `count` things in a row a rank does: as many as the others, or one more."""
    ends = numpy.linspace(0, count, ranks.size + 1).round().astype(int)
    return slice(int(ends[ranks.rank]), int(ends[ranks.rank + 1]))
