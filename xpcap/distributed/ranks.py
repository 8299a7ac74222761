"""Ranks: one process alone, or several that communicate by MPI and NCCL."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import numpy

from xpcap.backend import Array, Backend, is_host, namespace
from xpcap.distributed import launch
from xpcap.distributed.sharing import check_alike
from xpcap.errors import ConfigurationError

Value = TypeVar("Value")
_PIECE = 2**18  # elements summed at a time, while they are in the cache


class Ranks(Protocol):
    """Processes that work together; `rank` is the number of this one, of `size`."""

    rank: int
    size: int

    def sum(self, array: Array) -> None:
        """Replace an array `(P,)`, on the host or the device, by its sum over all ranks."""

    def any(self, value: bool) -> bool:
        """Whether the value is true on any rank."""

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks, in order, on every rank."""


class Alone:
    """One process."""

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
    """The processes that `mpirun` has started.

    Parameters
    ----------
    mpi
        The module `mpi4py.MPI`.
    backend
        The device of arrays that are summed; on GPUs each rank of a machine has its own.

    Raises
    ------
    ConfigurationError
        If mpi4py belongs to another MPI than `mpirun`, or only some ranks have GPUs.
    BackendError
        If NCCL cannot connect the GPUs.
    """

    def __init__(self, mpi: Any, backend: Backend) -> None:
        self._mpi = mpi
        self._world = mpi.COMM_WORLD
        self.rank, self.size = self._world.rank, self._world.size
        if self.size != launch.size():
            library = mpi.Get_library_version().splitlines()[0].split(",")[0]
            raise ConfigurationError(
                f"{launch.size()} processes were started, but mpi4py counts {self.size}; expected"
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


def join(backend: Backend) -> Ranks:
    """Join the other processes, if `mpirun` has started any.

    Raises
    ------
    ConfigurationError, BackendError
        If mpi4py is missing, or as `MPIRanks` does.
    """
    if not launch.launched():
        return Alone()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # the latter where there is no MPI
        raise ConfigurationError(
            f"more than one process needs mpi4py, which cannot be imported ({error}); expected pip"
            " install 'xpcap[mpi]', and an MPI"
        ) from error
    return MPIRanks(MPI, backend)
