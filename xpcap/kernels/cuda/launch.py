"""Compiling a CUDA source for the arrays at hand, and launching what it holds."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy

from xpcap.backend import Array, Namespace
from xpcap.operations import Operation

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
    cooperative
        Whether all blocks of a launch are resident at once, so that they may wait for each other.
    """

    def __init__(
        self, xp: Namespace, name: str, options: tuple[str, ...], cooperative: bool = False
    ) -> None:
        self.xp = xp
        self.options = options
        self._name = name
        self._cooperative = cooperative
        self._functions: dict[tuple[int, str], Any] = {}

    def launch(
        self, name: str, blocks: tuple[int, ...], threads: int, *arguments: Any, shared: int = 0
    ) -> None:
        """Launch the kernel `name` on a grid, unless that is empty.

        Arguments are arrays and NumPy scalars, which have the C types of the kernel's parameters;
        `shared` is the bytes of shared memory whose size the source leaves open.
        """
        if all(blocks):
            key = self.xp.cuda.runtime.getDevice(), name
            function = self._functions.get(key)
            if function is None:
                module = _module(self.xp, key[0], self._name, self.options, self._cooperative)
                function = self._functions[key] = module.get_function(name)
                if shared:
                    function.max_dynamic_shared_size_bytes = shared
            function(blocks, (threads,), arguments, shared_mem=shared)


def read_source(name: str) -> str:
    """Return the text of a source, beginning with what all have in common."""
    return "".join((_FOLDER / file).read_text("utf-8") for file in ("common.h", f"{name}.cu"))


@functools.cache
def _module(
    xp: Namespace, device: int, source: str, options: tuple[str, ...], cooperative: bool
) -> Any:
    return xp.RawModule(
        code=read_source(source), options=("-std=c++17", *options),
        enable_cooperative_groups=cooperative,
    )  # fmt: skip


@functools.cache
def open_source(
    xp: Namespace, name: str, options: tuple[str, ...], cooperative: bool = False
) -> Source:
    """Return the `Source` of that name with these macros, always the same one."""
    return Source(xp, name, options, cooperative)


def cuda_version(
    made: Operation[Any, None], padded: str = "", **types: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let the decorated function launch a kernel on CuPy wherever its source knows the arrays.

    The source is the file of the operation's name. Where a parameter's dtype is not one that the
    macro knows, or an array is not contiguous, the reference runs.

    Parameters
    ----------
    made
        The operation.
    padded
        Parameters that are matrices whose rows may lie further apart than they are long; all other
        arrays are contiguous.
    **types
        For a macro, or a dtype's name, the parameters that share this type, which is what the
        macro stands for. All arrays of the kernel are named.
    """
    file, signature = made.reference.__name__, inspect.signature(made.reference)
    names = list(signature.parameters)[1:]
    typed = [(macro, name) for macro, shared in types.items() for name in shared.split()]
    places = [(names.index(name), name in padded.split()) for _, name in typed]

    @functools.cache
    def source(xp: Namespace, kinds: tuple[Any, ...]) -> Source | None:
        """Return the source for arguments of these types, or None where it cannot take them."""
        meanings: dict[str, Any] = {}
        for (macro, _), kind in zip(typed, kinds, strict=True):
            known = kind in _TYPES[macro] if macro in _TYPES else kind == numpy.dtype(macro)
            if not known or meanings.setdefault(macro, kind) != kind:
                return None
        options = [
            f"-D{macro}={_TYPES[macro][kind]}"
            for macro, kind in meanings.items()
            if macro in _TYPES
        ]
        return open_source(xp, file, tuple(options))

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(made.reference)
        def run(xp: Namespace, *args: Any, **kwargs: Any) -> None:
            arguments = signature.bind(xp, *args, **kwargs).args[1:] if kwargs else args
            kinds = [_type(xp, arguments[place], padded) for place, padded in places]
            found = source(xp, tuple(kinds))
            if found is None:
                made.reference(xp, *arguments)
            else:
                function(found, xp, *arguments)

        return made.version("cupy")(run)

    return register


def _type(xp: Namespace, argument: Array, padded: bool) -> Any:
    """Return a contiguous array's dtype, None for another array, or the type of what is none.

    Only the elements of a row need to be contiguous if `padded`.
    """
    if not isinstance(argument, xp.ndarray):
        return type(argument)
    if argument.flags.c_contiguous or (padded and has_rows(argument)):
        return argument.dtype
    return None


def has_rows(matrix: Array) -> bool:
    """Whether the elements of each row of a matrix are contiguous; rows may be padded."""
    (_, columns), (across, along) = matrix.shape, matrix.strides
    return bool(along == matrix.itemsize and across >= columns * along)


def row_stride(matrix: Array) -> numpy.int64:
    """Return how many elements after a row the next one begins."""
    return numpy.int64(matrix.strides[0] // matrix.itemsize)
