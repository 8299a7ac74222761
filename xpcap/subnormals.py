"""Keeping results free of subnormal numbers, which slow down everything that reads them.

Below the smallest normal number (1.2e-38 in single precision) floating-point numbers lose their
digits one by one. Intel processors handle each of them by microcode: Adam is up to forty times as
slow where its moments are subnormal, and matrix products several times. Two rules, the same
in every implementation, keep them out.

* e^x of a score less the largest of its row is 0 if it is below 2^-80 (2^-918 in double
  precision). Such a word changes no sum, and its gradient stays normal in the products after it.
* Of everything else that is computed element by element, what is subnormal becomes 0.

Copies, sums of rows and matrix products are what arithmetic makes of their factors.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy

from xpcap.backend import Array, Namespace, is_host


def lowest(dtype: numpy.dtype) -> float:
    """Return the x below which e^x counts as 0: log(smallest normal number / epsilon^2)."""
    about = numpy.finfo(dtype)
    exponent = about.minexp + 2 * about.nmant
    return (exponent if exponent < 0 else about.minexp) * math.log(2)  # half precision has few


def power(xp: Namespace, x: Array) -> Array:
    """Return e^x, and 0 where x is below `lowest`."""
    return xp.where(x < lowest(x.dtype), x.dtype.type(0), xp.exp(x))


@contextlib.contextmanager
def flushed(xp: Namespace, *arrays: Array) -> Iterator[None]:
    """Set what is subnormal in `arrays` to 0 at the end of the block that computes them.

    NumPy looks at the processor's underflow flag after each operation anyway. So on the CPU there
    is a pass over the arrays only if an operation in the block has underflowed.
    """
    underflowed = not is_host(xp)  # without a flag to look at

    def notice(kind: str, flags: int) -> None:
        nonlocal underflowed
        underflowed = True

    with numpy.errstate(under="call", call=notice):
        yield
    for array in arrays if underflowed else ():
        tiny = float(numpy.finfo(array.dtype).tiny)
        array[...] = xp.where(abs(array) < tiny, array.dtype.type(0), array)
