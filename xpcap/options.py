"""Checks of options that are given by name."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Mapping
from typing import Any

from xpcap.errors import ConfigurationError

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
