"""Computing once what is needed several times."""

from __future__ import annotations

import numpy

from xpcap.backend import Array, Namespace, is_host


def distinct(xp: Namespace, indices: Array) -> tuple[Array, Array]:
    """Return indices each once, and which of them is at each place: `indices == some[which]`.

    On a GPU that would need them on the host; there all are returned as they are.
    """
    if is_host(xp):
        return numpy.unique(indices, return_inverse=True)
    return indices, xp.arange(len(indices))
