"""SIGINT and SIGTERM: they end training after a step, a command soon, an exiting process at once.

Signals that are ignored stay so, and outside the main thread nothing changes.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from xpcap.errors import Stopped

SIGNALLED = 128  # plus the signal's number: the exit status
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_REPEAT_SECONDS = 0.1


class Signalled(BaseException):
    """A signal of this number; not an `Exception`, so that nothing handles it as an error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _handlers() -> dict[int, Any]:
    """Return the handler of each signal that may be handled here and is not ignored."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    return {number: old for number, old in handlers.items() if old is not signal.SIG_IGN}


@contextlib.contextmanager
def noted_signals() -> Iterator[Sequence[int]]:
    """Note the signals that arrive inside the block; handle the second one as outside of it.

    Where that is no function of Python's, the second one raises `KeyboardInterrupt`.
    """
    received: list[int] = []
    outside = _handlers()

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            old = outside[number]
            (old if callable(old) else signal.default_int_handler)(number, frame)

    for number in outside:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, old in outside.items():
            signal.signal(number, old)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise `Signalled` inside the block when a signal arrives, so that files are removed.

    C modules that are being imported may drop the exception, so it is raised repeatedly until it is
    being handled. After the block, where the process has only to exit, a signal exits at once.
    """
    numbers = list(_handlers())
    received = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number if number in _SIGNALS else received
        if not _is_handled(Signalled, Stopped):
            raise Signalled(received)

    def interrupt_repeatedly(number: int, frame: FrameType | None) -> None:
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, _REPEAT_SECONDS, _REPEAT_SECONDS)
        interrupt(number, frame)

    for number in numbers:
        signal.signal(number, interrupt_repeatedly)
    try:
        yield
    finally:
        if numbers and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number in numbers:
            signal.signal(number, _exit)
            # Python restores the default handlers at exit, and a signal would then kill the process
            atexit.register(signal.signal, number, signal.SIG_IGN)


def _is_handled(*kinds: type[BaseException]) -> bool:
    """Whether the interrupted code handles such an exception, or one in whose context it is."""
    error = sys.exception()
    while error is not None and not isinstance(error, kinds):
        error = error.__context__
    return error is not None


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(SIGNALLED + number)
