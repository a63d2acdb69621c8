"""One process at a time in a directory."""

import contextlib
import fcntl
import pathlib
import uuid
from collections.abc import Callable, Iterator


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
        handle.truncate(0)
        handle.write(token)
        handle.flush()

        def is_in_place() -> bool:
            try:
                return file.read_text() == token
            except FileNotFoundError:
                return False

        yield is_in_place
