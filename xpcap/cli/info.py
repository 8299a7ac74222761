"""`xpcap info`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import click

from xpcap.cli._options import json_option, print_json, print_result

PACKAGES = ("xpcap", "numpy", "h5py", "click", "rich", "pillow", "threadpoolctl", "numba",
            "cupy-cuda12x", "cupy-cuda13x")  # fmt: skip


@click.command()
@json_option
def info(as_json: bool) -> None:
    """Show versions, devices, memory and the BLAS in use."""
    found = _gather()
    if as_json:
        print_json(found)
        return
    width = max(map(len, found))
    for name, value in found.items():
        print_result(f"{name:<{width}}  {value}")


def _gather() -> dict[str, Any]:
    import numpy

    from xpcap import threads

    found: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    blas = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    found["blas"] = f"{blas.get('name')} {blas.get('version')}"
    found["cpu"] = f"{os.cpu_count()} cores"
    found["threads"] = str(threads.number())
    found["memory"] = _memory()
    return found | _gpus()


def _memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE") / 2**30
        total, free = (page * os.sysconf(f"SC_{which}_PAGES") for which in ("PHYS", "AVPHYS"))
    except (AttributeError, ValueError, OSError):
        return "unknown"
    return f"{total:.1f} GiB, {free:.1f} free"


def _gpus() -> dict[str, str]:
    from xpcap.backend import open_backend
    from xpcap.errors import BackendError

    try:
        xp = open_backend("gpu").xp
    except BackendError as error:
        return {"gpu": f"none: {error}"}
    found = {}
    for number in range(xp.cuda.runtime.getDeviceCount()):
        properties = xp.cuda.runtime.getDeviceProperties(number)
        with xp.cuda.Device(number):
            free, total = (amount / 2**30 for amount in xp.cuda.runtime.memGetInfo())
        found[f"gpu:{number}"] = f"{properties['name'].decode()}, {total:.1f} GiB, {free:.1f} free"
    return found
