"""The processor that times were measured on."""

from __future__ import annotations

import platform
from pathlib import Path

_WIDEST_FIRST = {
    "avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sse2": "SSE2", "sve": "SVE",
    "asimd": "NEON",
}  # fmt: skip
"""Vector instruction sets by their flags in Linux's /proc/cpuinfo."""


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name and, on Linux, its widest vector instruction set."""
    try:
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
    except OSError:
        lines = []
    found = {key.strip(): value.strip() for key, _, value in lines}
    name = found.get("model name") or platform.processor() or platform.machine()
    flags = (found.get("flags") or found.get("Features") or "").split()
    vectors = [title for flag, title in _WIDEST_FIRST.items() if flag in flags]
    return ", ".join([name, *vectors[:1]])
