"""Small file systems of a test's own, and how they fill up."""

import contextlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def small(disk: pathlib.Path, *, kib: int, is_busy: bool = False) -> Iterator[pathlib.Path]:
    """A real file system of so many KiB at `disk`, which it makes; skips where this user may not mount one.

    It goes at the end, which fails if a file on it is still open, unless that is to be expected (`is_busy`).
    """
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", *["--lazy"] * is_busy, str(disk)], check=True)


def remount(disk: pathlib.Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


def fill(disk: pathlib.Path, *, leave: int = 0) -> pathlib.Path:
    """A file that takes all room there is, but so many bytes and what the last pages of other files have."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(filler, max(0, filler.stat().st_size - leave))
    return filler
