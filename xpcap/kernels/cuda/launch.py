"""Compiling a CUDA source for the arrays at hand, and launching what it holds."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from xpcap.backend import Array, Namespace
from xpcap.operations import Operation

_FOLDER = Path(__file__).parent
_COPIED = {
    "unsigned char": "bool int8 uint8",
    "unsigned short": "int16 uint16 float16",
    "unsigned int": "int32 uint32 float32",
    "unsigned long long": "int64 uint64 float64",
}  # by width

_TYPES: dict[str, dict[Any, str]] = {
    "REAL": {numpy.dtype("float32"): "float", numpy.dtype("float64"): "double"},
    "INDEX": {numpy.dtype("int32"): "int", numpy.dtype("int64"): "long long"},
    "ELEMENT": {
        numpy.dtype(dtype): element for element, same in _COPIED.items() for dtype in same.split()
    },
    "STREAM": {int: "unsigned long long", numpy.dtype("uint64"): "const unsigned long long *"},
}
"""What a macro of the sources may stand for, by dtype, or by Python type."""

_NULL = numpy.uint64(0)
_INCLUDED = re.compile(r'^#include "(.*)"$', re.MULTILINE)


@dataclass(frozen=True, eq=False)
class Source:
    """One CUDA source, compiled under `xp` with the compiler's `options` for its macros.

    If it is `cooperative`, all blocks of a launch are resident at once and may wait for each other.
    """

    xp: Namespace
    name: str
    options: tuple[str, ...]
    cooperative: bool = False

    def launch(
        self, name: str, blocks: tuple[int, ...], threads: int, *arguments: Any, shared: int = 0
    ) -> None:
        """Launch the kernel `name` on a grid, unless that is empty.

        Arguments are arrays, None for a null pointer, and NumPy scalars, which have the C types of
        the kernel's parameters; `shared` is the bytes of shared memory whose size the source leaves
        open.
        """
        if all(blocks):
            function = _function(self, self.xp.cuda.runtime.getDevice(), name, shared)
            given = tuple(_NULL if argument is None else argument for argument in arguments)
            function(blocks, (threads,), given, shared_mem=shared)


@functools.cache
def open_source(
    xp: Namespace, name: str, options: tuple[str, ...], cooperative: bool = False
) -> Source:
    """Return the `Source` of that name with these macros, always the same one."""
    return Source(xp, name, options, cooperative)


def read_source(name: str) -> str:
    """Return the text of a source, beginning with what all have in common, with what it includes.

    CuPy keeps compiled kernels by their text, so that this has to be the whole of it.
    """

    def text(file: str) -> str:
        return (_FOLDER / file).read_text("utf-8")

    return text("common.h") + _INCLUDED.sub(lambda found: text(found[1]), text(f"{name}.cu"))


@functools.cache
def _module(source: Source, device: int) -> Any:
    return source.xp.RawModule(
        code=read_source(source.name),
        options=("-std=c++17", *source.options),
        enable_cooperative_groups=source.cooperative,
    )


@functools.cache
def _function(source: Source, device: int, name: str, shared: int) -> Any:
    function = _module(source, device).get_function(name)
    if shared:
        function.max_dynamic_shared_size_bytes = shared
    return function


def cuda_version(
    made: Operation[Any, None], padded: str = "", **types: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let the decorated function launch a kernel on CuPy wherever its source knows the arrays.

    The source is the file of the operation's name. `types` names all arrays of the kernel: for a
    macro of the source, or a dtype's name, the parameters that share this type, which is what the
    macro stands for; one that is None has any type. Rows of the matrices `padded` may lie further
    apart than they are long. Where a dtype is not one that the macro knows, or another array is not
    contiguous, the reference runs.
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
            if kind is type(None):
                continue
            known = kind in _TYPES[macro] if macro in _TYPES else kind == numpy.dtype(macro)
            if not known or meanings.setdefault(macro, kind) != kind:
                return None
        options = []
        for macro in types:
            if macro in _TYPES:
                kind = meanings.get(macro, next(iter(_TYPES[macro])))
                options.append(f"-D{macro}={_TYPES[macro][kind]}")
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
