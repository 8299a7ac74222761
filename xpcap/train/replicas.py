"""Parameters and gradients on several ranks: each has its own, or all the same parameters.

In a training step gradients are summed up first, each rank's part of them, and then parameters told
to all, of which each rank has updated its part. Ranks of one machine see each other's gradients,
and one memory holds the parameters of all; others send each other what they need.
"""

from __future__ import annotations

import numpy

from xpcap.backend import Array, is_host, namespace
from xpcap.parallel import Ranks, part_of
from xpcap.shared_memory import share_memory


class Separate:
    """Each rank has parameters of its own; they send each other gradients and parameters.

    Parameters
    ----------
    ranks
        Who; one alone sends nothing.
    parameters
        `(P,)`, the same in all ranks; P is a multiple of how many they are.

    Attributes
    ----------
    parameters, gradients
        `(P,)`.
    """

    def __init__(self, ranks: Ranks, parameters: Array) -> None:
        self._ranks = ranks
        self.parameters = parameters
        self.gradients = namespace(parameters).zeros_like(parameters)

    def sum_gradients(self) -> None:
        """Replace this rank's part of the gradients by its sum over all ranks."""
        self._ranks.reduce_scatter(self.gradients)

    def tell_parameters(self) -> None:
        """Replace all parts of the parameters but this rank's own by those of the others."""
        self._ranks.all_gather(self.parameters)


class InCommon:
    """All ranks have the same parameters in memory, and each sees the others' gradients.

    Gradients may be written again when parameters have been told.

    Parameters
    ----------
    ranks
        Who.
    arrays
        Each rank's gradients `(P,)`; the first one's are followed by the parameters of all.

    Attributes
    ----------
    parameters, gradients
        As of `Separate`.
    """

    def __init__(self, ranks: Ranks, arrays: list[numpy.ndarray]) -> None:
        self._ranks = ranks
        size = arrays[0].size // 2
        own = part_of(ranks, size)
        self.parameters = arrays[0][size:]
        self.gradients = arrays[ranks.rank][:size]
        self._sum, *self._others = (
            array[own] for array in (*arrays[ranks.rank :], *arrays[: ranks.rank])
        )

    def sum_gradients(self) -> None:
        """Replace this rank's part of the gradients by its sum over all ranks."""
        self._ranks.wait()
        for other in self._others:
            self._sum += other

    def tell_parameters(self) -> None:
        """Wait until all ranks have written theirs."""
        self._ranks.wait()


def replicate(ranks: Ranks, parameters: Array) -> Separate | InCommon:
    """Lay out the parameters `(P,)` of all ranks, which have to ask for it together."""
    if ranks.size > 1 and is_host(namespace(parameters)):
        size = parameters.size if ranks.rank else 2 * parameters.size
        arrays = share_memory(ranks, size, parameters.dtype)
        if arrays is not None:
            common, own = InCommon(ranks, arrays), part_of(ranks, parameters.size)
            common.parameters[own] = parameters[own]
            ranks.wait()
            return common
    return Separate(ranks, parameters)
