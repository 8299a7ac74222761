"""Loaders that do what no loader may, each in a way that the child has to see."""

import os
import sys
import time
import warnings

import numpy

from xpcap.errors import DataError


def refuses(path):
    raise DataError(f"{path} is none that may be loaded")


def raises(path):
    raise KeyError("a name that nobody looked for")


def is_not_one_line(path):
    raise type("Careless", (DataError,), {"__str__": lambda error: "first\nsecond"})()


def says_nothing(path):
    raise DataError("")


def warns(path):
    warnings.warn("of something", RuntimeWarning, stacklevel=1)


def prints(path):
    os.write(1, b"from a library in C")


def prints_errors(path):
    print("something went wrong", file=sys.stderr, flush=True)


def takes_long(path):
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass


def hangs(path):
    time.sleep(60)


def crashes(path):
    os.abort()


def leaves(path):
    os._exit(0)


def fills_memory(path):
    numpy.ones(600 * 10**6, numpy.uint8)


def asks_for_memory(path):
    numpy.empty(600 * 10**6, numpy.uint8)


def asks_for_too_much(path):
    try:
        numpy.empty(10**15, numpy.uint8)
    except MemoryError as error:
        raise DataError("no room for it") from error


FAULTS = {
    refuses: None,
    raises: "KeyError",
    is_not_one_line: "not one plain line",
    says_nothing: "not one plain line",
    warns: "warns: of something",
    prints: "prints: b'from a library in C'",
    prints_errors: "prints: b'something went wrong",
    takes_long: "takes 0.",
    hangs: "hangs",
    crashes: "ends the process (-6)",
    leaves: "ends the process (0)",
    fills_memory: "takes 6",
    asks_for_memory: "MB more of address space",
    asks_for_too_much: "memory was asked for before sizes were checked",
}
"""What each of them is told, or a part of it; the first one does what it may."""
