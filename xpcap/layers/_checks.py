"""Checks that every public layer makes once, before it computes."""

from __future__ import annotations

from xpcap.backend import Array, Namespace, is_host, namespace
from xpcap.errors import ShapeError


def check_arguments(
    function: str, **arrays: tuple[Array | None, str]
) -> tuple[Namespace, dict[str, int]]:
    """Check the arguments of a layer; return their namespace, and the size of each letter.

    Layouts are those of `check_shapes`, for floating numbers, or with a final `?`, as `"N L ?"`,
    for booleans. Arguments that are None are left out.
    """
    given = {name: (a, layout) for name, (a, layout) in arrays.items() if a is not None}
    xp = namespace(*(array for array, _ in given.values()))
    plain = {name: (array, layout.removesuffix(" ?")) for name, (array, layout) in given.items()}
    sizes = check_shapes(function, **plain)
    for name, (array, layout) in given.items():
        if layout[-1] != "?":
            check_floating(function, **{name: array})
        elif array.dtype.kind != "b":
            raise ShapeError(f"{function}: expected booleans in {name}, got {array.dtype}")
    return xp, sizes


def check_shapes(function: str, **arrays: tuple[Array, str]) -> dict[str, int]:
    """Check arrays against shapes written in letters, and return the size of each letter.

    A layout has words: `"N T D"`; a size may be 1, and a multiple or a sum, `"4H"` or `"n_a+n_x"`,
    if the plain letters stand in earlier ones. Only N, the batch, may be 0. The `ShapeError` names
    every array with the shape expected and the shape given.
    """
    sizes = {"": 1}  # of a plain number
    for array, layout in arrays.values():
        letters, shape = layout.split(), _shape(array)
        fits = len(letters) == len(shape)
        for letter, size in zip(letters, shape, strict=False):
            expected = 0
            for part in letter.split("+"):
                symbol = part.lstrip("0123456789")
                factor = int(part.removesuffix(symbol) or 1)
                expected += factor * sizes.setdefault(symbol, size)
            fits = fits and size == expected
        if not fits:
            wanted = ", ".join(f"{name} ({_commas(shape)})" for name, (_, shape) in arrays.items())
            given = ", ".join(f"{name} {_shape(a)}" for name, (a, _) in arrays.items())
            raise ShapeError(f"{function}: expected {wanted}; got {given}")
    del sizes[""]
    empty = [letter for letter, size in sizes.items() if not size and letter != "N"]
    if empty:
        given = ", ".join(f"{name} {_shape(a)}" for name, (a, _) in arrays.items())
        raise ShapeError(f"{function}: expected {empty[0]} of at least 1, got {given}")
    return sizes


def _shape(array: Array) -> tuple[int, ...]:
    return tuple(getattr(array, "shape", ()))  # plain numbers have none


def _commas(layout: str) -> str:
    return ", ".join(layout.split()) + ("," if len(layout.split()) == 1 else "")


def check_floating(function: str, **arrays: Array) -> None:
    """Raise `ShapeError` unless the elements of arrays are floating numbers."""
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            raise ShapeError(
                f"{function}: expected floating numbers in {name}, got {array.dtype}; convert it"
                " with .astype(float)"
            )


def check_gradients(function: str, **gradients: tuple[Array, tuple[int, ...]]) -> None:
    """Raise `ShapeError` unless gradients from above are floating, of the shapes of the outputs."""
    for name, (gradient, shape) in gradients.items():
        if _shape(gradient) != tuple(shape):
            raise ShapeError(
                f"{function}: expected {name} {tuple(shape)}, as the forward pass returned; got"
                f" {_shape(gradient)}"
            )
        check_floating(function, **{name: gradient})


def check_numbers(function: str, **arrays: Array) -> None:
    """Raise `ShapeError` unless the elements of arrays are real numbers or booleans."""
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise ShapeError(f"{function}: expected numbers in {name}, got {array.dtype}")


def check_indices(xp: Namespace, function: str, indices: Array, size: int) -> None:
    """Raise `ShapeError` unless indices are integers, and on the host in 0..size-1.

    On a GPU the values are not looked at, for that would stop it; data sets are checked on the host
    when they are opened.
    """
    if indices.dtype.kind not in "iu":
        raise ShapeError(f"{function}: expected integer indices, got {indices.dtype}")
    if is_host(xp) and indices.size:
        low, high = indices.min(), indices.max()
        if low < 0 or high >= size:
            raise ShapeError(f"{function}: indices {low} to {high} do not all lie in 0..{size - 1}")
