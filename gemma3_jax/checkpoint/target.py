"""Checks before a checkpoint is written, and signals held back meanwhile; `durable.atomic` makes it appear whole."""

import contextlib
import os
import pathlib
import shutil
import signal
import sys
import threading
from collections.abc import Iterator


def check_new(target: pathlib.Path, num_bytes: int) -> None:
    """Checks that a target can be written, before anything large is read.

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
def uninterrupted(path: pathlib.Path) -> Iterator[None]:
    """Delays SIGINT and SIGTERM until the block ends. A second one ends the process at once and leaves `path`.

    This is for Orbax, whose threads would continue to write what is being removed, and would keep the process from
    ending for minutes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread alone
        return
    held: list[int] = []

    def hold(number: int, frame: object) -> None:
        if held:
            os._exit(128 + number)
        held.append(number)
        print(
            f"stopping when this write ends; a second signal stops now and leaves {path}*", file=sys.stderr, flush=True
        )

    handlers = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])
