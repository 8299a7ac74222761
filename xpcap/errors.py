"""The errors that xpcap raises on purpose: each says in one line what is wrong.

The command line prints the line and exits with 2. A library user catches `XpcapError`, or the
built-in exception that the kind also is.
"""

from __future__ import annotations

import re
import sys

LONGEST = 2000  # characters of a message
_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # controls, the line feed and the tab among them
    "\u2028-\u202e\u2066-\u2069"  # ends of lines, and turns of the direction of writing
    "\ud800-\udfff]"  # halves of characters, which no encoding has
)


def printable(text: str) -> str:
    r"""Return a text as one line that a terminal shows and does not obey.

    What moves a cursor, changes colours or the direction of writing, or cannot be encoded is
    escaped as Python does it.

    Examples
    --------
    >>> print(printable("a cat\x1b[2J\n"))
    a cat\x1b[2J\n
    """
    return _OBEYED.sub(lambda found: repr(found[0])[1:-1], text)


class XpcapError(Exception):
    """Anything xpcap refuses, whatever the kind: its message is one line, and `printable`.

    Parameters
    ----------
    message
        What is wrong, and what was expected. It may quote files; of one that is very long, both
        ends are kept.
    """

    def __init__(self, message: str = "") -> None:
        if len(message) > LONGEST:
            message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
        super().__init__(printable(message))


class BackendError(XpcapError, TypeError):
    """Arrays of two libraries were mixed, or a device is not there."""


class ShapeError(XpcapError, ValueError):
    """Array shapes or index ranges do not fit together."""


class DataError(XpcapError, ValueError):
    """A file or a data set is missing, truncated or holds something else than it should."""


class CheckpointError(XpcapError, ValueError):
    """A run folder or a parameter file cannot be written, read or used."""


class ConfigurationError(XpcapError, ValueError):
    """An option has a value that xpcap does not know or cannot use."""


class Stopped(XpcapError):
    """Training was asked to stop, by a signal, and has written down where it is.

    Parameters
    ----------
    message
        What was done, and how to go on.
    signal
        Its number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class DivergedError(XpcapError, ArithmeticError):
    """Training went wrong: a loss is no longer a finite number."""


def is_handled(*kinds: type[BaseException]) -> bool:
    """Whether an exception of these kinds is on its way: in a `finally`, an `except`, or beneath.

    In a signal's handler this tells of the code that was interrupted.
    """
    error = sys.exception()
    while error is not None and not isinstance(error, kinds):
        error = error.__context__
    return error is not None
