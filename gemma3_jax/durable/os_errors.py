"""Errors of the operating system that name their file."""

import contextlib
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def named(path: pathlib.Path | str) -> Iterator[None]:
    """Adds the file to an OSError of the block that names none: those of writing, as on a full disk, never do."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
