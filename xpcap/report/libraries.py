"""The libraries that draw: of the extra `report`, loaded when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from xpcap.errors import ConfigurationError


def load(name: str) -> Any:
    """Import a module of the extra.

    Raises
    ------
    ConfigurationError
        If it is missing.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            f"a report needs {name.partition('.')[0]}, which cannot be imported ({error}); expected"
            " pip install 'xpcap[report]'"
        ) from error


def check() -> None:
    """Check that all are there, before there is any work that would be lost.

    Raises
    ------
    ConfigurationError
        If one is missing.
    """
    for name in ("jinja2", "matplotlib"):
        load(name)
