"""Several processes that train, evaluate or caption as one, started by MPI.

`mpirun -n 4 xpcap train` starts four processes, ranks 0 to 3. Each computes the gradient of its
share of every minibatch; one all-reduce sums them, by MPI on CPUs and by NCCL on GPUs. All ranks
have all parameters and optimizer state and apply the same update. A process that `mpirun` has not
started is alone, and its sums are its own numbers.

A rank that fails ends all of them (`end_all`), since the others may be waiting for it.
"""

from xpcap.distributed.launch import (
    end_all,
    launched,
    local_rank,
    local_size,
    rank,
    wait_for_first,
)
from xpcap.distributed.ranks import Alone, MPIRanks, Ranks, join
from xpcap.distributed.sharing import by_first, check_alike, in_turn, share_out

__all__ = [
    "Alone",
    "MPIRanks",
    "Ranks",
    "by_first",
    "check_alike",
    "end_all",
    "in_turn",
    "join",
    "launched",
    "local_rank",
    "local_size",
    "rank",
    "share_out",
    "wait_for_first",
]
