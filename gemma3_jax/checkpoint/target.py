"""Directories and files that appear whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator

_partials: set[pathlib.Path] = set()  # begun and not finished; what a stopped process still has to remove


def check_new(target: pathlib.Path, num_bytes: int) -> None:
    """Refuses a target that could not be written, before anything large is read.

    Raises: ValueError if it exists, has no parent directory, or needs more room than its disk has.
    """
    if os.path.lexists(target):  # a dangling link too
        raise ValueError(f"{target} exists; choose another --target, or remove it first")
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent} is not a directory; --target needs an existing parent")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{target.parent} may not be written to; choose another --target")
    free = shutil.disk_usage(target.parent).free
    if num_bytes > free:
        raise ValueError(
            f"{target} needs {num_bytes / 1024:.0f} KiB, but its disk has {free / 1024:.0f} KiB free; "
            "choose another --target"
        )


@contextlib.contextmanager
def new(*targets: pathlib.Path) -> Iterator[tuple[pathlib.Path, ...]]:
    """Paths to write directories or files at: they become `targets` if the block ends well, and are removed if not."""
    partials = tuple(target.with_name(f".{target.name}.partial-{os.getpid()}") for target in targets)
    _partials.update(partials)
    try:
        yield partials
        for target in targets:
            if os.path.lexists(target):
                raise ValueError(f"{target} was made by someone else meanwhile; nothing was written there")
        for partial, target in zip(partials, targets, strict=True):
            partial.rename(target)
    finally:
        remove_partials()


def replace(target: pathlib.Path, content: bytes) -> None:
    """Writes a file whole, over one that is there, or leaves that as it is.

    Raises: OSError.
    """
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    _partials.add(partial)
    try:
        partial.write_bytes(content)
        partial.replace(target)
    finally:
        remove_partials()


def remove_partials() -> None:
    """Removes whatever was begun and not finished. A signal that comes meanwhile may call it again."""
    for partial in tuple(_partials):
        # Orbax writes to a sibling of its own first, with a longer name; after an error its threads may write on for a
        # moment, so look until nothing has come back.
        num_clean_looks = 0
        for _ in range(100):
            siblings = partial.parent.iterdir() if partial.parent.is_dir() else ()
            leftovers = [path for path in siblings if f"{path.name}.".startswith(f"{partial.name}.")]
            for path in leftovers:
                _remove(path)
            num_clean_looks = 0 if leftovers else num_clean_looks + 1
            if num_clean_looks == 2:
                break
            time.sleep(0.05)
        _partials.discard(partial)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def uninterrupted(path: pathlib.Path) -> Iterator[None]:
    """Holds back SIGINT and SIGTERM until the block ends; a second one ends the process at once, leaving `path`.

    For writers with threads of their own, Orbax: stopped in the middle they go on writing what is being removed, and
    keep the process from ending for minutes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread alone
        return
    held: list[int] = []

    def hold(number: int, frame: object) -> None:
        if held:
            os._exit(128 + number)
        held.append(number)
        print(f"stopping once the write in hand ends; again stops now and leaves {path}*", file=sys.stderr, flush=True)

    handlers = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])
