"""Ctrl-C and SIGTERM, heard at the end of a step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from xpcap.errors import Stopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Heard:
    """The last signal that came, or None."""

    signal: int | None = None


@contextlib.contextmanager
def heard() -> Iterator[Heard]:
    """Let the first SIGINT or SIGTERM inside the block be noted only; the second ends it at once.

    Outside the main thread, where Python hears no signals, nothing is changed.

    Raises
    ------
    Stopped
        At the second.
    """
    note = Heard()
    if threading.current_thread() is not threading.main_thread():
        yield note
        return

    def hear(number: int, frame: FrameType | None) -> None:
        again = note.signal is not None
        note.signal = number
        if again:
            raise KeyboardInterrupt  # which nothing on the way takes for an error of its own

    before = {number: signal.signal(number, hear) for number in _SIGNALS}
    try:
        yield note
    except KeyboardInterrupt as error:
        if note.signal is None:
            raise
        raise Stopped(
            "stopped at once; --resume goes on from the last checkpoint", note.signal
        ) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
