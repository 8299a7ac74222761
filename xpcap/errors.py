"""The errors that xpcap raises on purpose, each with a one-line message.

The command line prints the message and exits with 2. A library user catches `XpcapError`, or the
built-in exception that the class also derives from.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

LONGEST = 2000  # characters of a message
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters, including line feed and tab
    "\u2028-\u202e\u2066-\u2069"  # line separators and bidirectional controls
    "\ud800-\udfff]"  # lone surrogates, which cannot be encoded
)


def printable(text: str) -> str:
    r"""Escape control characters, so that a terminal shows a text as one line.

    Bidirectional controls and lone surrogates are escaped too, in Python's notation.

    Examples
    --------
    >>> print(printable("a cat\x1b[2J\n"))
    a cat\x1b[2J\n
    """
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def first_line(error: Exception) -> str:
    """Return the first line of a library's message, or the type of its error."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class XpcapError(Exception):
    """Base class of all errors raised on purpose: what is wrong, and what was expected.

    The message is one line and `printable`; a long one is cut in the middle to 2,000 characters.
    """

    def __init__(self, message: str = "") -> None:
        if len(message) > LONGEST:
            message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
        super().__init__(printable(message))


class BackendError(XpcapError, TypeError):
    """Arrays of two libraries are mixed, or a device is not available."""


class ShapeError(XpcapError, ValueError):
    """Array shapes or index ranges do not match."""


class DataError(XpcapError, ValueError):
    """A file or a data set is missing, truncated or has unexpected contents."""


class CheckpointError(XpcapError, ValueError):
    """A run folder or a parameter file cannot be written, read or used."""


class ConfigurationError(XpcapError, ValueError):
    """An option has an unknown or unusable value."""


class Stopped(XpcapError):
    """Training was stopped by the signal of this number; the message says what was saved."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.signal)


class DivergedError(XpcapError, ArithmeticError):
    """Training diverged: a loss is not finite or explodes."""


def import_extra(module: str, need: str, extra: str) -> Any:
    """Import a module of an optional library; a `ConfigurationError` says how to install it.

    `need` begins the message, such as `"a report needs"`.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"{need} {module.partition('.')[0]}, which cannot be imported ({error}); install xpcap"
            f" with its extra '{extra}' (pip install 'xpcap[{extra}]')"
        ) from error
