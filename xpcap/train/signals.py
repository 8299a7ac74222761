"""SIGINT and SIGTERM while training: the first one is noted, and ends training after a step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Received:
    """The signal that came, or None."""

    signal: int | None = None


@contextlib.contextmanager
def noted_signals() -> Iterator[Received]:
    """Note the first SIGINT or SIGTERM inside the block; handle a second one as outside of it.

    Where that is no function of Python's, the second one raises `KeyboardInterrupt`. Signals that
    are ignored stay so. Outside the main thread, which alone can handle signals, nothing changes.
    """
    received = Received()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}

    def handle(number: int, frame: FrameType | None) -> None:
        first, received.signal = received.signal is None, number
        if not first:
            outside = before[number]
            (outside if callable(outside) else signal.default_int_handler)(number, frame)

    handled = [number for number in _SIGNALS if before[number] is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, handle)
    try:
        yield received
    finally:
        for number in handled:
            signal.signal(number, before[number])
