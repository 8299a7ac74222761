"""Disks that are really full, and folders that really cannot be written, where root may mount."""

import contextlib
import os
import subprocess
import sys

import pytest

PAGE = 4096
MOUNT, UNMOUNT = "/bin/mount", "/bin/umount"


@contextlib.contextmanager
def mounted(folder, *words):
    """Mount something, where that is allowed; else skip the test."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("only root can mount a disk")
    folder.mkdir()
    done = subprocess.run([MOUNT, *words, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run([UNMOUNT, folder], check=True)


def fill(disk, free):
    """Take all but so many bytes of a disk, to the page."""
    status = os.statvfs(disk)
    taken = status.f_bavail * status.f_frsize - free // PAGE * PAGE
    (disk / "ballast").write_bytes(bytes(max(taken, 0)))
