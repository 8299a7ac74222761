"""Computing once what is needed several times."""

from __future__ import annotations

from collections.abc import Callable

import numpy

from xpcap.backend import Array, Namespace, is_host


def on_distinct(xp: Namespace, indices: Array, function: Callable[[Array], Array]) -> Array:
    """Return `function(indices)`, which has a row for each index and depends on that alone.

    On the host each distinct index is computed once; on a GPU that would need it on the host.
    """
    if not is_host(xp):
        return function(indices)
    distinct, places = numpy.unique(indices, return_inverse=True)
    return function(distinct)[places]
