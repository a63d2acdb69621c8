"""Files and directories that appear whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import time
from collections.abc import Iterator

PARTIAL = ".partial-"  # a name with it is not whole yet: .NAME.partial-PID
OLD_PARTIAL = ".writing-"  # before December 2026: .writing-XXXX
# Globs of what a killed process leaves; it is never read, and the next process removes it.
LEFTOVERS = (f".*{PARTIAL}*", f"{OLD_PARTIAL}*")

_partials: set[pathlib.Path] = set()  # begun and not finished; what a stopped process has to remove


def _partial(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(f".{target.name}{PARTIAL}{os.getpid()}")


@contextlib.contextmanager
def new(*targets: pathlib.Path) -> Iterator[tuple[pathlib.Path, ...]]:
    """Yields paths to write files or directories at, which become `targets` if the block ends well.

    Otherwise they are removed. Raises: ValueError if a target has come to exist meanwhile.
    """
    partials = tuple(map(_partial, targets))
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


def replace(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole, over one that is there, or leaves that one as it is. Raises: OSError."""
    partial = _partial(path)
    _partials.add(partial)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        _partials.discard(partial)


def remove_partials() -> None:
    """Removes everything that is begun and not finished. A signal handler may call it while it runs."""
    for partial in tuple(_partials):
        # Orbax writes to a sibling with a longer name first, and after an error its threads may write on for a moment:
        # look until nothing has come back twice.
        num_clean_looks = 0
        for _ in range(100):
            siblings = partial.parent.iterdir() if partial.parent.is_dir() else ()
            leftovers = [path for path in siblings if f"{path.name}.".startswith(f"{partial.name}.")]
            for path in leftovers:
                remove(path)
            num_clean_looks = 0 if leftovers else num_clean_looks + 1
            if num_clean_looks == 2:
                break
            time.sleep(0.05)
        _partials.discard(partial)


def remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
