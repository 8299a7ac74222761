"""Backends: NumPy on the CPU or CuPy on a GPU, behind one array namespace `xp`.

Layers call `namespace(x, W, ...)` once and compute with the result; they never name a library.
`Backend` objects exist only at the edges, where data are transferred, parameters are created and
files are written. Random numbers are always drawn on the host, so that a seed has the same meaning
on every device.
"""

from __future__ import annotations

import contextlib
import numbers
import os
import sys
import warnings
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy

from xpcap.errors import BackendError

Array: TypeAlias = Any
"""A NumPy or CuPy array; no static type covers both."""

Namespace: TypeAlias = Any
"""The module `numpy` or `cupy`, or one that behaves like it."""


def _library(array: Array) -> Namespace | None:
    """Return the namespace of an array, or None for a scalar."""
    if isinstance(array, numpy.ndarray):
        return numpy
    if array is None or isinstance(array, (numbers.Number, numpy.generic)):
        return None
    cupy = sys.modules.get("cupy")  # without the import there are no arrays of it
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    raise BackendError(f"expected a NumPy or CuPy array, got {type(array).__name__}")


def namespace(*arrays: Array) -> Namespace:
    """Return the array namespace of `arrays`, `numpy` or `cupy`; scalars and None are ignored.

    Raises `BackendError` if two libraries are mixed, an argument is not an array, or all are
    scalars.
    """
    found: Namespace | None = None
    for array in arrays:
        xp = _library(array)
        if xp is None or xp is found:
            continue
        if found is not None:
            raise BackendError(
                f"arrays of {found.__name__} and {xp.__name__} in one call; move them to one"
                " device first (Backend.to_device, to_host, model.to)"
            )
        found = xp
    if found is None:
        raise BackendError("expected at least one NumPy or CuPy array, got only scalars")
    return found


def is_host(xp: Namespace) -> bool:
    """Whether arrays are in host memory, where reading values does not wait for a device."""
    return xp is numpy or getattr(xp, "xp", None) is numpy


def to_host(array: Array) -> Array:
    """Return `array` as a NumPy array; NumPy arrays and scalars are returned as they are."""
    xp = _library(array)
    return array if xp is None or is_host(xp) else xp.asnumpy(array)


@dataclass(frozen=True)
class Backend:
    """One device and the array namespace that computes on it.

    Its `name` is `"cpu"` or `"gpu:K"`, with the number K also in `device`, None on the CPU.
    `remark` says why `auto` chose the CPU. It is copied and pickled by name.
    """

    name: str
    xp: Namespace
    device: int | None = None
    remark: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return open_backend, (self.name,)

    def to_device(self, array: Array, dtype: Any = None) -> Array:
        """Return `array`, of any backend, as an array of this backend."""
        if _library(array) not in (None, self.xp):
            array = to_host(array)
        with self.activate():
            return self.xp.asarray(array, dtype=dtype)

    def to_host(self, array: Array) -> Array:
        """Return `array` as a NumPy array."""
        return to_host(array)

    def synchronize(self) -> None:
        """Wait for the device to finish."""
        if self.device is not None:
            self.xp.cuda.Device(self.device).synchronize()

    def free_memory(self) -> int:
        """Return the number of free bytes of GPU memory."""
        with self.activate():
            return int(self.xp.cuda.runtime.memGetInfo()[0])

    def collective(self, rank: int, size: int) -> Any:
        """Return the NCCL communicator of several processes, set up by MPI; None on the CPU."""
        if self.device is None:
            return None
        with warnings.catch_warnings(action="ignore"):  # of CuPy, if NCCL is missing
            from cupy.cuda import nccl
        if not nccl.available:
            raise BackendError(
                "several GPUs need NCCL, which cannot be loaded; install it with"
                " pip install 'xpcap[nccl]' (CUDA 12) or 'xpcap[nccl13]' (CUDA 13)"
            )
        try:
            from cupyx import distributed

            with self.activate():
                return distributed.init_process_group(size, rank, use_mpi=True)
        except Exception as error:  # CuPy's error classes cannot be imported here
            raise BackendError(
                f"NCCL cannot connect {self.name} to the other ranks' GPUs ({_first_line(error)});"
                " expected one of its own for each rank"
            ) from error

    def activate(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which this backend's device is the current one."""
        if self.device is None:
            return contextlib.nullcontext()
        return self.xp.cuda.Device(self.device)  # type: ignore[no-any-return]


CPU = Backend("cpu", numpy)


def _open_gpu(spec: str, number: int | None, process: int) -> Backend:
    try:
        import cupy
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "cupy"
        reason = "is not installed" if missing else f"cannot be imported ({_first_line(error)})"
        raise BackendError(
            f"device '{spec}' needs CuPy, which {reason}; install it with"
            " pip install 'xpcap[gpu]' (CUDA 12) or 'xpcap[gpu13]' (CUDA 13)"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy's error class
        raise BackendError(
            f"device '{spec}': CuPy is installed, but no NVIDIA driver or GPU answers"
            f" ({_first_line(error)})"
        ) from error
    if number is None:
        number = process % max(count, 1)
    if number >= count:
        raise BackendError(f"device '{spec}': this machine has {count} GPU(s), numbered from 0")
    backend = Backend(f"gpu:{number}", cupy, number)
    try:
        with backend.activate():
            ones = cupy.ones((2, 2), dtype=cupy.float32)
            float((ones @ ones).sum())
    except Exception as error:
        raise BackendError(
            f"device '{spec}': the GPU answers but cannot compute ({_first_line(error)});"
            " CuPy needs CUDA's libraries: a CUDA toolkit, or pip install 'cupy-cuda12x[ctk]'"
        ) from error
    return backend


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" \t=")]
    return lines[0] if lines else type(error).__name__


def open_backend(spec: str = "auto", process: int = 0) -> Backend:
    """Open a device by name.

    Parameters
    ----------
    spec
        `"cpu"`, `"gpu"` (the first), `"gpu:K"` or `"auto"` (a GPU if there is one, else the CPU,
        with the reason in `Backend.remark`).
    process
        Index of this process on this machine: `"gpu"` and `"auto"` distribute processes over the
        GPUs.

    Raises
    ------
    BackendError
        If the name is unknown, or the GPU is unavailable; only `"auto"` falls back to the CPU.
    """
    kind, _, number = spec.partition(":")
    if spec == "cpu":
        return CPU
    if spec == "gpu" or (kind == "gpu" and number.isdecimal()):
        return _open_gpu(spec, int(number) if number else None, process)
    if spec == "auto":
        try:
            return _open_gpu("gpu", None, process)
        except BackendError as error:
            return Backend("cpu", numpy, remark=str(error))
    raise BackendError(f"device '{spec}' is unknown; expected auto, cpu, gpu or gpu:K")


_default: Backend | None = None


def default_backend() -> Backend:
    """Return the backend of `use_backend`, else that of `XPCAP_DEVICE`, else the CPU."""
    global _default
    if _default is None:
        _default = open_backend(os.environ.get("XPCAP_DEVICE") or "cpu")
    return _default


def as_backend(backend: Backend | str | None) -> Backend:
    """Return a `Backend`, given one, a device name, or None for the default one."""
    if backend is None:
        return default_backend()
    return open_backend(backend) if isinstance(backend, str) else backend


class use_backend:
    """Set the backend of new models and data, from now on or inside a `with` block.

    `backend` is a device name as `open_backend` takes it, or a `Backend`. It is set for the
    process, not per thread.

    >>> import xpcap
    >>> with xpcap.use_backend("cpu") as backend:
    ...     print(backend.name)
    cpu
    """

    def __init__(self, backend: Backend | str) -> None:
        global _default
        self._previous = _default
        self.backend = _default = as_backend(backend)
        self._device = self.backend.activate()
        self._device.__enter__()

    def __enter__(self) -> Backend:
        return self.backend

    def __exit__(self, *error: Any) -> None:
        global _default
        _default = self._previous
        self._device.__exit__(*error)
