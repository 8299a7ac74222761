"""The errors that xpcap raises on purpose: each says in one line what is wrong.

The command line prints the line and exits with 2. A library user catches `XpcapError`, or the
built-in exception that the kind also is.
"""


class XpcapError(Exception):
    """Anything xpcap refuses, whatever the kind."""


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
    """Training was asked to stop, by a signal, and has written down where it is."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class DivergedError(XpcapError, ArithmeticError):
    """Training went wrong: a loss is no longer a finite number."""
