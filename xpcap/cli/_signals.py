"""Handling of SIGINT and SIGTERM, while a command runs and while its process exits."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from xpcap.errors import Stopped, is_handled

SIGNALLED = 128  # plus the signal's number: the exit status
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_REPEAT_SECONDS = 0.1


class Signalled(BaseException):
    """A signal of this number; not an `Exception`, so that nothing handles it as an error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise `Signalled` inside the block when SIGINT or SIGTERM arrives, so that files are removed.

    C modules that are being imported may drop the exception, so it is raised repeatedly until it is
    being handled. After the block, where the process has only to exit, a signal exits at once.
    Signals that were ignored before, and other threads than the main one, are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    received = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number if number in _SIGNALS else received
        if is_handled(Signalled, Stopped):
            return
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
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number in numbers:
            signal.signal(number, _exit)
            # Python restores the default handlers at exit, and a signal would then kill the process
            atexit.register(signal.signal, number, signal.SIG_IGN)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(SIGNALLED + number)
