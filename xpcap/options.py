"""Checks of options: their names, types and ranges."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Mapping
from typing import Any

from xpcap.errors import ConfigurationError

LARGEST = 2**31 - 1  # count

_TAKEN = {bool: bool, int: numbers.Integral, float: numbers.Real, str: str}
_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}


def check_options(given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` for a name that is not `known`, or a value of another type.

    `known` are the defaults by name, whose types count; those that are None take anything.
    """
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1) or sorted(known)
            raise ConfigurationError(f"option '{name}' is unknown; expected {', '.join(close)}")
        kind = type(known[name])
        if kind in _KINDS and (
            not isinstance(value, _TAKEN[kind]) or (kind is not bool and isinstance(value, bool))
        ):
            raise ConfigurationError(f"{name} is {value!r:.40}; expected {_KINDS[kind]}")


def check_counts(least: float = 1, most: float = LARGEST, /, **counts: Any) -> None:
    """Raise `ConfigurationError` unless counts are integers in a range."""
    for name, count in counts.items():
        whole = isinstance(count, numbers.Integral) and not isinstance(count, bool)
        if whole and count > most:
            raise ConfigurationError(f"{name} must be at most {most}, got {count}")
        if not (whole and count >= least):
            raise ConfigurationError(
                f"{name} must be at least {least}, a whole number, got {count!r:.40}"
            )


def given(**values: Any) -> dict[str, Any]:
    """Return the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def check_number(name: str, value: Any, interval: str) -> None:
    """Raise `ConfigurationError` unless a value is a finite number in an interval, as `"[0, 1)"`.

    NumPy's scalars are numbers; `True` and arrays are not.
    """
    low, high = map(float, interval[1:-1].split(","))
    try:
        real = float(value) if isinstance(value, numbers.Real) else math.nan
    except OverflowError:  # an integer
        real = math.inf
    above = low < real or (low == real and interval[0] == "[")
    below = real < high or (real == high and interval[-1] == "]")
    if not (above and below) or isinstance(value, bool):
        raise ConfigurationError(f"{name} must be a number in {interval}, got {value!r:.40}")
