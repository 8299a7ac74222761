"""Default location of the built-in data set."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def scenes_folder() -> Path:
    """Return `datasets/scenes` in a checkout of xpcap, else a folder in the user's cache."""
    if Path("xpcap/data/locations.py").is_file() and Path("datasets").is_dir():
        return Path("datasets") / "scenes"
    return cache_folder() / "scenes"


def cache_folder() -> Path:
    """Return xpcap's folder in the user's cache of the platform; it need not exist."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "xpcap"
