"""Operations of which faster versions may run: the lines to read, and the choice between them.

An operation is a function `f(xp, ...)` in plain array mathematics. `xpcap.kernels` holds faster
versions of some, by library. Which one runs is the choice of the caller, by the namespace passed:
`numpy` or `cupy` run the lines of the operation itself, `kernels.fastest(numpy)` the fastest
version there is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from xpcap.backend import Namespace

P = ParamSpec("P")
R = TypeVar("R")


class Accelerated:
    """The library `xp`, under which faster versions of operations run.

    `versions` names them in order of preference; without any of them an operation's own lines run.
    """

    def __init__(self, xp: Namespace, versions: tuple[str, ...]) -> None:
        self.xp = xp
        self.versions = versions
        self.__name__ = xp.__name__

    def __getattr__(self, name: str) -> Any:
        return getattr(self.xp, name)


class Operation(Generic[P, R]):
    """A function `f(xp, ...)`, its `reference`, and `versions` of the same signature by name."""

    def __init__(self, reference: Callable[Concatenate[Namespace, P], R]) -> None:
        self.reference = reference
        self.versions: dict[str, Callable[Concatenate[Namespace, P], R]] = {}
        functools.update_wrapper(self, reference)

    def __call__(self, xp: Namespace, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the version that `xp` asks for."""
        return self.chosen(xp)(xp, *args, **kwargs)

    def __reduce__(self) -> Any:  # by name, as a function
        return getattr(self, "__qualname__", None) or super().__reduce__()

    def chosen(self, xp: Namespace) -> Callable[Concatenate[Namespace, P], R]:
        """Return the function that runs under a namespace."""
        for name in xp.versions if isinstance(xp, Accelerated) else ():
            if name in self.versions:
                return self.versions[name]
        return self.reference

    def version(
        self, name: str
    ) -> Callable[[Callable[Concatenate[Namespace, P], R]], Callable[Concatenate[Namespace, P], R]]:
        """Register the decorated function as a version."""

        def register(
            function: Callable[Concatenate[Namespace, P], R],
        ) -> Callable[Concatenate[Namespace, P], R]:
            self.versions[name] = function
            return function

        return register


OPERATIONS: dict[str, Operation[Any, Any]] = {}


def operation(reference: Callable[Concatenate[Namespace, P], R]) -> Operation[P, R]:
    """Make an operation of a function."""
    made = Operation(reference)
    OPERATIONS[reference.__name__] = made
    return made
