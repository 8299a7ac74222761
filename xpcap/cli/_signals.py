"""SIGINT and SIGTERM, while a command runs and while its process ends."""

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

SIGNALLED = 128  # what is added to a signal's number in an exit status
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN = 0.1  # seconds


class Signalled(BaseException):
    """A signal came; nothing on the way takes that for an error of its own.

    Parameters
    ----------
    number
        The signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM end what is inside the block, half-written files removed.

    The exception can be lost: modules in C that are being imported drop errors. So it is raised
    again until it is on its way out. After the block, where the process has only to exit, a signal
    exits at once. A signal that was ignored before stays so.

    Raises
    ------
    Signalled
        If one came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    came = 0

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = number if number in _SIGNALS else came
        if is_handled(Signalled, Stopped):
            return
        raise Signalled(came)

    def end_for_sure(number: int, frame: FrameType | None) -> None:
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, end)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN, _AGAIN)
        end(number, frame)

    for number in numbers:
        signal.signal(number, end_for_sure)
    try:
        yield
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number in numbers:
            signal.signal(number, _exit)
            # Python takes its handlers away at last, and a signal then would kill the process
            atexit.register(signal.signal, number, signal.SIG_IGN)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(SIGNALLED + number)
