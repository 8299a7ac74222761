"""The processes that `mpirun` has started, as its environment variables tell, without joining."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

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
