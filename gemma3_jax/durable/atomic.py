"""Files and directories that appear whole or not at all."""

import contextlib
import glob
import os
import pathlib
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator

from gemma3_jax.durable import os_errors

PARTIAL = ".partial-"  # a name with it is not whole yet: .NAME.partial-HOST-PID
OLD_PARTIAL = ".writing-"  # before December 2026: .writing-XXXX
# Globs of what a killed process leaves; it is never read, and the next process removes it.
LEFTOVERS = (f".*{PARTIAL}*", f"{OLD_PARTIAL}*")

_swept: set[pathlib.Path] = set()  # directories in which files are replaced
_partials: set[pathlib.Path] = set()  # begun and not finished; what a stopped process has to remove


def _partial(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(f".{target.name}{PARTIAL}{platform.node()}-{os.getpid()}")


def _sweep(directory: pathlib.Path, names: str) -> None:
    """Removes what killed processes of this host left of the targets whose names match a glob."""
    host = re.escape(platform.node())
    pid_in = re.compile(rf"{re.escape(PARTIAL)}(?:{host}-)?(\d+)(?:\.|$)")  # before December 2026 without the host
    for path in directory.glob(f".{names}{PARTIAL}*"):
        pid = pid_in.search(path.name)
        if pid and not _is_being_written(path, int(pid[1])):
            remove(path)


def _is_being_written(path: pathlib.Path, pid: int) -> bool:
    if pid == os.getpid():  # a container gives its processes the same numbers at each start
        return any(f"{path.name}.".startswith(f"{partial.name}.") for partial in _partials)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a process of another user
        pass
    return True


@contextlib.contextmanager
def new(*targets: pathlib.Path) -> Iterator[tuple[pathlib.Path, ...]]:
    """Yields paths to write files or directories at, which become `targets` if the block ends well.

    Otherwise they are removed; what a killed process left, by the next one with the same target. Raises: ValueError if
    a target has come to exist meanwhile.
    """
    for target in targets:
        _sweep(target.parent, glob.escape(target.name))
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
    if path.parent not in _swept:  # once: a writer of many files would list them all for each
        _swept.add(path.parent)
        _sweep(path.parent, "*")
    partial = _partial(path)
    _partials.add(partial)
    try:
        with os_errors.named(path), partial.open("wb") as file:
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
        # Orbax writes to a sibling with a longer name first.
        remove_matching(partial.parent, lambda name, own=partial.name: f"{name}.".startswith(f"{own}."))
        _partials.discard(partial)


def remove_matching(directory: pathlib.Path, matches: Callable[[str], object]) -> None:
    """Removes what has a matching name, until nothing has come back twice.

    After an error, Orbax's threads may write on for a moment.
    """
    num_clean_looks = 0
    for _ in range(100):
        siblings = directory.iterdir() if directory.is_dir() else ()
        leftovers = [path for path in siblings if matches(path.name)]
        for path in leftovers:
            remove(path)
        num_clean_looks = 0 if leftovers else num_clean_looks + 1
        if num_clean_looks == 2:
            break
        time.sleep(0.05)


def remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
