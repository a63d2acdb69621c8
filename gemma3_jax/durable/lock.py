"""One process at a time in a directory."""

import contextlib
import errno
import fcntl
import os
import pathlib
import uuid
from collections.abc import Callable, Iterator

GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)  # of a file that was removed, the last on a network disk


@contextlib.contextmanager
def exclusive(
    file: pathlib.Path, *, busy: str, warn: Callable[[str], None] | None = None
) -> Iterator[Callable[[], bool]]:
    """Holds a lock on `file`, which is created if need be. The system drops the lock when the process ends.

    Yields a function that returns whether `file` is still there and this holder's: a lock outlives its file's removal.
    A file system without locks raises OSError; with `warn` it is a warning instead.
    Raises: ValueError, with `busy` as its text, if another process holds the lock.
    """
    with file.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(busy) from None
        except OSError as error:
            if warn is None:
                raise
            warn(f"warning: {file} cannot be locked, so nothing keeps a second process out: {error}")
        token = uuid.uuid4().hex
        try:
            os.ftruncate(handle.fileno(), 0)
            os.write(handle.fileno(), token.encode())
        except OSError:  # a full disk: an empty file is in place, too
            token = ""

        def is_in_place() -> bool:
            try:
                return file.read_text() == token
            except OSError as error:  # another error says nothing about the file
                return error.errno not in GONE

        yield is_in_place
