"""Files and folders: written atomically, read within limits."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import json
import os
import shutil
import stat
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from xpcap.errors import DataError

LARGE, SMALL = 2**30, 2**26  # largest text files that are read, in bytes
UNSUSPICIOUS, SWELLING = 2**26, 100  # bytes of memory; bytes of memory per byte of a file


@contextlib.contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn an `OSError` inside the block into a `DataError`: cannot `doing` (a verb) `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        if error.errno == errno.ENOSPC or "No space left" in str(error):
            reason = "no space left on the device"
        raise DataError(f"cannot {doing} {path}: {reason}") from error


def check_plain(path: Path) -> None:
    """Raise a `DataError` unless `path` can be opened and is a regular file.

    A device or pipe may never end.
    """
    with explained(path, "read"):
        try:
            mode = path.stat().st_mode
        except ValueError as error:
            raise DataError(f"{path} is not a valid file name") from error
        if not stat.S_ISREG(mode):
            what = " but a folder" if stat.S_ISDIR(mode) else ""
            raise DataError(f"{path} is not a plain file{what}")
        open(path, "rb").close()


def read_bytes(path: Path, most: int = LARGE) -> bytes:
    """Read a regular file, or raise a `DataError` if it has more than `most` bytes."""
    check_plain(path)
    with explained(path, "read"), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise DataError(f"{path} is {size} bytes; expected at most {most}")
        return file.read(size)


def read_json(path: Path, most: int = LARGE) -> Any:
    """Read a JSON file, or raise a `DataError` if it is invalid or has more than `most` bytes."""
    content = read_bytes(path, most)
    if not content:
        raise DataError(f"{path} is empty; expected JSON")
    return parse_json(content, str(path))


def parse_json(content: str | bytes, where: str) -> Any:
    """Parse JSON, called `where` in messages, or raise a `DataError` if it is invalid."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from error


def read_text(path: Path, most: int = LARGE) -> str:
    """Read a text file in UTF-8, also one compressed with gzip.

    A `DataError` is raised if it is in another encoding, has more than `most` bytes, or expands
    more than `check_swelling` allows.
    """
    content = read_bytes(path, most)
    if content.startswith(b"\x1f\x8b"):
        allowed = max(UNSUSPICIOUS, SWELLING * len(content))
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                text = file.read(allowed + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is damaged or truncated: gzip says {error}") from error
        check_swelling(str(path), len(text), len(content))
        content = text
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line} is not text in UTF-8: {error.reason}") from error


def check_swelling(what: str, size: int, stored: int) -> None:
    """Raise a `DataError` if data take more than 64 MiB and 100 times their `stored` bytes.

    Otherwise a small file could fill the memory.
    """
    if size > max(UNSUSPICIOUS, SWELLING * stored):
        raise DataError(
            f"{what} would take {size} bytes of memory, and has {stored} in the file; expected at"
            f" most {SWELLING} times as many"
        )


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that atomically replaces `path` when the block succeeds.

    File and folder are synchronized to disk. An `OSError`, also in the block, becomes a `DataError`
    and leaves `path` unchanged.
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


def append(path: Path, content: bytes, length: int | None = None) -> None:
    """Append to a file, created if missing, and synchronize it to disk, or leave it unchanged.

    The file is truncated to `length` bytes first, if it is given.
    """
    rest = memoryview(content)
    with explained(path, "write"), open(path, "ab", buffering=0, opener=not_through_links) as file:
        end = file.tell()
        length = end if length is None else length
        try:
            if end > length:
                file.truncate(length)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, length)
            raise


def not_through_links(path: str, flags: int) -> int:
    """Open a file without following a symbolic link, as the `opener` of `open`."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def remove_parts(folder: Path, name: str) -> None:
    """Remove temporary files of `new_file` that killed processes have left in a folder.

    No other process may write files of that name, or glob pattern, there.
    """
    with explained(folder, "write"):
        for part in folder.glob(f".{name}.*.part"):
            part.unlink()


def synchronize(path: Path) -> None:
    """Wait until a file, or a folder's entries, are on disk, where the system supports that."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `path` when the block succeeds.

    Otherwise nothing is left behind. A `path` that exists must be an empty folder.
    """
    with explained(path, "write"):
        path = path.absolute()
        check_new_folder(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            temporary.mkdir()
            yield temporary
            temporary.replace(path)
            synchronize(path.parent)
        except DataError as error:  # name the folder that was asked for
            raise DataError(str(error).replace(str(temporary), str(path))) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def lock(file: IO[bytes], path: Path) -> None:
    """Lock an open file, called `path`, against other processes until it is closed.

    Does nothing on Windows and on file systems without locks.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(f"{path} is in use: another xpcap is at work on it") from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise


def check_new_folder(path: Path) -> None:
    """Raise a `DataError` unless `path` is missing or an empty folder."""
    with explained(path, "write"):
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise DataError(f"{path} exists and is not an empty folder; expected a new name")


def check_writable(folder: Path) -> None:
    """Raise a `DataError` unless files can be created in a folder, which may be missing yet."""
    with explained(folder, "write"):
        path = folder.absolute()
        above = next(part for part in (path, *path.parents) if part.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise DataError(f"cannot write {folder}: {above} is not a folder that can be written to")
