"""Image features as a set of regions `(N, L, D)`: those of a grid, or objects found in the image.

Images may have fewer than L regions: a region whose D features are all zero is absent.
"""

from __future__ import annotations

from xpcap.backend import Array, Namespace, namespace
from xpcap.operations import operation


@operation
def present_regions(xp: Namespace, regions: Array, out: Array) -> None:
    """Write which of the `regions (N, L, D)` are present, booleans `(N, L)`."""
    out[...] = (regions != 0).any(axis=2)


@operation
def mean_of_present(xp: Namespace, regions: Array, present: Array, out: Array) -> None:
    """Write the mean of the present ones of `regions (N, L, D)`, `(N, D)`; 0 if there are none."""
    count = xp.maximum(present.sum(axis=1), 1).astype(out.dtype)
    out[...] = regions.sum(axis=1) / count[:, None]  # those that are absent add 0


def mean_of_present_backward(dout: Array, present: Array, dregions: Array) -> None:
    """Add the gradient of the regions `(N, L, D)`, from that of their mean `(N, D)`."""
    xp = namespace(dout, present, dregions)
    count = xp.maximum(present.sum(axis=1), 1).astype(dout.dtype)
    dregions += present[:, :, None] * (dout / count[:, None])[:, None, :]
