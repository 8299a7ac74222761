"""The libraries of the extra `report`, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from xpcap.errors import ConfigurationError


def load(name: str) -> Any:
    """Import a module of the extra; a `ConfigurationError` says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            f"a report needs {name.partition('.')[0]}, which cannot be imported ({error}); expected"
            " pip install 'xpcap[report]'"
        ) from error


def check() -> None:
    """Check that all libraries are installed, before any work that would be lost."""
    load("jinja2")
    load("matplotlib")
