"""CUDA without a GPU: the kernels' sources compiled by g++ with `shim.h`, on the guard's arrays.

`xp` is the guard under CuPy's name, with as much more of CuPy as launching needs. A launch checks
what CUDA would not: the number of arguments, each one's C type, and the limits of a grid.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
from guard import GuardArray, GuardNamespace

SHIM = Path(__file__).with_name("shim.h")
OUTCOMES = {
    1: "a thread waits at a barrier that others have passed by",
    2: "memory at an address that its type's size does not divide",
}
COMPILER = shutil.which("g++")


FLAGS = ["-std=c++17", "-O0", "-fPIC", "-fno-strict-aliasing", "-fsanitize=alignment"]
"""Kernels this small are compiled for longer than they run, so that none is optimized."""


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder with `shim.h` precompiled, which g++ takes before the header itself."""
    folder = tempfile.TemporaryDirectory(prefix="host_cuda_")
    _compile(*FLAGS, "-x", "c++-header", SHIM, "-o", Path(folder.name) / "shim.h.gch")
    return folder


def _compile(*words: str | Path) -> None:
    subprocess.run([COMPILER, *words], check=True, capture_output=True)


@functools.cache
def _library(code: str, options: tuple[str, ...]) -> ctypes.CDLL:
    """Compile a source with a launcher for each of its kernels."""
    synchronizes = str("_sync" in code or "__syncthreads" in code).lower()
    names = re.findall(r"__global__ void (\w+)\(", code)
    launchers = "".join(
        f"""
        extern "C" const char *signature_{name}() {{ return shim::signature({name}); }}
        extern "C" int launch_{name}(const int *grid, int threads, int reverse, void **values)
        {{ return shim::launch<{name}, {synchronizes}>({name}, grid, threads, reverse, values); }}
        """
        for name in names
    )
    stem = Path(_folder().name) / hashlib.sha256(repr((code, options)).encode()).hexdigest()[:16]
    made = {end: stem.with_suffix(end) for end in (".cpp", ".o", ".so")}
    made[".cpp"].write_text(f'#include "shim.h"\n{code}\n{launchers}')
    _compile(*FLAGS, *options, f"-I{SHIM.parent}", "-c", made[".cpp"], "-o", made[".o"])
    _compile("-shared", made[".o"], "-o", made[".so"])
    return ctypes.CDLL(str(made[".so"]))


class HostFunction:
    """A kernel, launched as CuPy's `RawKernel` is."""

    reverse = False
    launches = 0

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        signature = getattr(library, f"signature_{name}")
        signature.restype = ctypes.c_char_p
        self.parameters = signature().decode().split()
        self.launch = getattr(library, f"launch_{name}")

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        shared_mem: int = 0,
    ) -> None:
        width, height = (*grid, 1)[:2]
        (threads,) = block
        if not (0 < width < 2**31 and 0 < height < 2**16 and len(grid) <= 2):
            raise ValueError(f"no grid of CUDA: {grid}")
        if not (0 < threads <= 1024 and threads % 32 == 0):
            raise ValueError(f"no block of whole warps: {block}")
        if len(args) != len(self.parameters):
            raise TypeError(f"{len(args)} arguments for {len(self.parameters)} parameters")
        kept = [
            _storage(argument, code) for argument, code in zip(args, self.parameters, strict=True)
        ]
        values = (ctypes.c_void_p * len(kept))(*(storage.ctypes.data for storage in kept))
        outcome = self.launch(
            (ctypes.c_int * 2)(width, height), threads, HostFunction.reverse, values
        )
        HostFunction.launches += 1
        if outcome:
            raise RuntimeError(OUTCOMES[outcome])


def _storage(argument: Any, code: str) -> numpy.ndarray:
    """Return an array of one element: what a parameter is given, if it has the right type."""
    if isinstance(argument, GuardArray):
        dtype = argument.dtype
        same = dtype.str[1:] == code[1:] or (code[1] == "u" and dtype.itemsize == int(code[2:]))
        if code[0] != "*" or not same:
            raise TypeError(f"an array of {dtype} for a parameter {code}")
        return numpy.array([argument._values.ctypes.data], numpy.uint64)
    if code[0] == "*" and isinstance(argument, numpy.uint64) and not argument:  # a null pointer
        return numpy.array([argument])
    if not isinstance(argument, numpy.generic):
        raise TypeError(f"a {type(argument).__name__} has no C type; use a NumPy scalar")
    if argument.dtype.str[1:] != code:
        raise TypeError(f"a scalar {argument.dtype} for a parameter {code}")
    return numpy.array([argument])


class RawModule:
    """A source with its options, compiled when a kernel of it is asked for."""

    def __init__(
        self, *, code: str, options: tuple[str, ...], enable_cooperative_groups: bool = False
    ) -> None:
        self.code, self.options = code, options

    def get_function(self, name: str) -> HostFunction:
        return HostFunction(_library(self.code, self.options), name)


class HostCuda(GuardNamespace):
    """The guard's `xp` under CuPy's name."""

    __name__ = "cupy"
    RawModule = RawModule
    cuda = SimpleNamespace(runtime=SimpleNamespace(getDevice=lambda: 0))


xp = HostCuda()
