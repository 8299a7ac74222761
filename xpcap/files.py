"""Writing files and folders so that they are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from xpcap.errors import DataError


@contextlib.contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn an operating-system error inside the block into a `DataError` that names `path`.

    Parameters
    ----------
    path
        What was being read or written.
    doing
        The verb of the message: `"write"`, `"read"`.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        if error.errno == errno.ENOSPC or "No space left" in str(error):
            reason = "no space left on the device"
        raise DataError(f"cannot {doing} {path}: {reason}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    DataError
        If it cannot be read, or is not JSON.
    """
    with explained(path, "read"):
        content = path.read_bytes()
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it, in one step, when the block succeeds.

    Its bytes are on the disk before it does, and its name is after.

    Raises
    ------
    DataError
        If the folder cannot be written to or is full; `path` then stays as it was.
    """
    with explained(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            yield temporary
            synchronize(temporary)
            temporary.replace(path)
            synchronize(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def synchronize(path: Path) -> None:
    """Wait until a file, or a folder's names, are on the disk; Windows has no such wait."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `path` when the block succeeds.

    Raises
    ------
    DataError
        If `path` exists and is not an empty folder, or cannot be written; nothing is left behind.
    """
    with explained(path, "write"):
        path = path.absolute()
        check_new_folder(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            temporary.replace(path)
        except DataError as error:  # name the folder that was asked for
            raise DataError(str(error).replace(str(temporary), str(path))) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def lock(file: IO[bytes], path: Path) -> None:
    """Let no other process lock an open file, called `path`, until it is closed.

    On Windows, which has other locks, nothing is done.

    Raises
    ------
    DataError
        If another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(f"{path} is in use: another xpcap is at work on it") from error


def check_new_folder(path: Path) -> None:
    """Check that a folder can be made: that nothing is there but perhaps an empty one.

    Raises
    ------
    DataError
        If something is.
    """
    with explained(path, "write"):
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise DataError(f"{path} exists and is not an empty folder; expected a new name")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
