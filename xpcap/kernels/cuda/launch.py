"""Compiling a CUDA source for the arrays at hand, and launching what it holds."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from xpcap.backend import Array, Namespace
from xpcap.kernels import Kernel

_FOLDER = Path(__file__).parent
_COPIED = [
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "float16",
    "int32",
    "uint32",
    "float32",
    "int64",
    "uint64",
    "float64",
]
_UNSIGNED = {1: "char", 2: "short", 4: "int", 8: "long long"}

_TYPES: dict[str, dict[Any, str]] = {
    "REAL": {numpy.dtype("float32"): "float", numpy.dtype("float64"): "double"},
    "INDEX": {numpy.dtype("int32"): "int", numpy.dtype("int64"): "long long"},
    "ELEMENT": {
        dtype: f"unsigned {_UNSIGNED[dtype.itemsize]}" for dtype in map(numpy.dtype, _COPIED)
    },
    "STREAM": {int: "unsigned long long", numpy.dtype("uint64"): "const unsigned long long *"},
}
"""What a macro of the sources may stand for, by dtype, or by Python type."""


@dataclass(frozen=True)
class Source:
    """One CUDA source with its macros, and where it runs.

    Parameters
    ----------
    xp
        The namespace that compiles it.
    name
        Of the file, without its ending.
    options
        For the compiler: what the macros stand for.
    """

    xp: Namespace
    name: str
    options: tuple[str, ...]

    def launch(self, name: str, blocks: tuple[int, ...], threads: int, *arguments: Any) -> None:
        """Launch the kernel `name` on a grid, unless that is empty.

        Arguments are arrays and NumPy scalars, which have the C types of the kernel's parameters.
        """
        if all(blocks):
            device = self.xp.cuda.runtime.getDevice()
            function = _function(self.xp, device, self.name, self.options, name)
            function(blocks, (threads,), arguments)


@functools.cache
def _module(xp: Namespace, device: int, source: str, options: tuple[str, ...]) -> Any:
    code = (_FOLDER / f"{source}.cu").read_text("utf-8")
    return xp.RawModule(code=code, options=("-std=c++17", *options))


@functools.cache
def _function(
    xp: Namespace, device: int, source: str, options: tuple[str, ...], name: str
) -> Callable[..., None]:
    function: Callable[..., None] = _module(xp, device, source, options).get_function(name)
    return function


def cuda_version(
    made: Kernel[Any, None], padded: str = "", **types: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let the decorated function run a kernel on CuPy wherever its source knows the arrays.

    The source is the file of the kernel's name. Where a parameter's dtype is not one that the
    macro knows, or an array is not contiguous, the reference runs.

    Parameters
    ----------
    made
        The kernel.
    padded
        Parameters that are matrices whose rows may lie further apart than they are long; all other
        arrays are contiguous.
    **types
        For a macro, or a dtype's name, the parameters that share this type, which is what the
        macro stands for. All arrays of the kernel are named.
    """
    file, signature = made.reference.__name__, inspect.signature(made.reference)
    places = {name: place - 1 for place, name in enumerate(signature.parameters)}
    shared = [(macro, [places[name] for name in names.split()]) for macro, names in types.items()]
    apart = {places[name] for name in padded.split()}

    def options(xp: Namespace, arguments: tuple[Any, ...]) -> tuple[str, ...] | None:
        """Return what the macros stand for, or None where the source cannot take an argument."""
        found = []
        for macro, which in shared:
            kind, *others = {_type(xp, arguments[place], place in apart) for place in which}
            if others:
                return None
            if macro in _TYPES:
                if kind not in _TYPES[macro]:
                    return None
                found.append(f"-D{macro}={_TYPES[macro][kind]}")
            elif kind != numpy.dtype(macro):
                return None
        return tuple(found)

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(made.reference)
        def run(xp: Namespace, *args: Any, **kwargs: Any) -> None:
            arguments = signature.bind(xp, *args, **kwargs).args[1:] if kwargs else args
            macros = options(xp, arguments)
            if macros is None:
                made.reference(xp, *arguments)
            else:
                function(Source(xp, file, macros), xp, *arguments)

        return made.override("cupy")(run)

    return register


def _type(xp: Namespace, argument: Array, padded: bool) -> Any:
    """Return a contiguous array's dtype, None for another array, or the type of what is none.

    Only the elements of a row need to be contiguous if `padded`.
    """
    if not isinstance(argument, xp.ndarray):
        return type(argument)
    if argument.flags.c_contiguous or (padded and _has_rows(argument)):
        return argument.dtype
    return None


def _has_rows(matrix: Array) -> bool:
    (_, columns), (across, along) = matrix.shape, matrix.strides
    return bool(along == matrix.itemsize and across >= columns * along)


def row_stride(matrix: Array) -> numpy.int64:
    """Return how many elements after a row the next one begins."""
    return numpy.int64(matrix.strides[0] // matrix.itemsize)
