"""The folder of a training run.

best.safetensors    checkpoint of the best epoch
last.safetensors    most recent checkpoint, from which training resumes
history.jsonl       one object per step, and one per epoch with the validation losses
pca.h5              where features are reduced: the transform, for new images
step-N.safetensors  earlier checkpoints, if they are kept
average.safetensors their mean, see `average_checkpoints`
diverged.json       diagnosis of the step at which training diverged, if it stopped there
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

from xpcap.data.pca import PCA
from xpcap.errors import CheckpointError
from xpcap.files import explained, lock, new_folder, not_through_links, remove_parts
from xpcap.runs.checkpoint import Checkpoint, write_checkpoint

BEST, LAST, EARLIER = "best.safetensors", "last.safetensors", "step-*.safetensors"
AVERAGE = "average.safetensors"
HISTORY, TRANSFORM, REPORT = "history.jsonl", "pca.h5", "diverged.json"
_LOCK = ".lock"
_ATTEMPTS = 100


def create_run(
    folder: Path, checkpoints: Mapping[str, Checkpoint], transform: PCA | None = None
) -> None:
    """Create a run folder with checkpoints by file name, and the transform that reduced features.

    The folder must not hold anything.
    """
    check_new_run(folder)
    with new_folder(folder) as temporary:
        for name, checkpoint in checkpoints.items():
            write_checkpoint(temporary / name, checkpoint)
        if transform is not None:
            transform.write(temporary / TRANSFORM)


@contextlib.contextmanager
def reserved_run(parent: Path, name: str) -> Iterator[Path]:
    """Create the first of the folders `NAME-1`, `NAME-2`, ... that does not exist, and yield it.

    Whatever is still empty at the end is removed.
    """
    with explained(parent, "write"):
        for number in itertools.count(1):
            with contextlib.suppress(FileExistsError):
                _make(folder := parent / f"{name}-{number}")
                break
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
            parent.rmdir()


def _make(folder: Path) -> None:
    """Create a folder and its parent, which others that end may remove in between."""
    for attempt in range(_ATTEMPTS):
        try:
            folder.mkdir(parents=True)
            return
        except FileNotFoundError:
            if attempt == _ATTEMPTS - 1:
                raise


def check_new_run(folder: Path) -> None:
    """Raise `CheckpointError` if a folder holds a run."""
    if is_run(folder):
        raise CheckpointError(f"{folder} holds another run; expected a new name")


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    with explained(folder, "read"):
        return any((folder / name).exists() for name in (BEST, LAST))


def checkpoint_of(path: Path) -> Path:
    """Return a run's last checkpoint, or its best one if there is no last; a file as it is."""
    with explained(path, "read"):
        if not path.is_dir():
            return path
        for name in (LAST, BEST):
            if (path / name).exists():
                return path / name
    raise not_a_run(path)


def not_a_run(path: Path) -> CheckpointError:
    """Return the error for a path that is no run; it names the folder of a file in one."""
    hint = f", such as {path.parent}" if path.is_file() and is_run(path.parent) else ""
    return CheckpointError(f"{path} is not a run; expected a folder made by xpcap train{hint}")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run folder against training by another process.

    Partly written files that killed processes have left there are removed.
    """
    with explained(folder, "write"):
        file = open(folder / _LOCK, "ab", opener=not_through_links)  # noqa: SIM115 - closed below
    with file:
        lock(file, folder)
        for name in (BEST, LAST, EARLIER, REPORT):
            remove_parts(folder, name)
        yield
