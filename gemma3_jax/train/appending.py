"""A file that is only appended to, whole entries at a time, by who may be killed, on a disk that may be full."""

import io
import os
import pathlib
from collections.abc import Callable


class Appending:
    """Where the disk refuses, entries wait in memory for the next attempt, and `warn` is told once."""

    def __init__(self, path: pathlib.Path, warn: Callable[[str], None], *, end: bytes = b""):
        """`end`: what every entry ends with; half an entry of a process that was killed is closed with it."""
        self._path, self._warn, self._end = path, warn, end
        self._waiting: list[bytes] = []
        self._is_refused = False

    def write(self, entry: bytes) -> None:
        self._waiting.append(entry)
        self.flush()

    def flush(self, *, durable: bool = False) -> None:
        """Writes what waits; `durable`: and has it reach the disk, so that a crash of the machine leaves it there."""
        if not self._waiting and not (durable and self._path.exists()):
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Opened anew, as the file may have been moved away; without a buffer, which would be written on closing.
            with self._path.open("ab+", buffering=0) as file:
                self._append(file, durable)
        except OSError as error:
            if not self._is_refused:
                self._warn(f"{self._path} cannot be written, and is tried again: {error.strerror or error}")
            self._is_refused = True
        else:
            self._waiting, self._is_refused = [], False

    def _append(self, file: io.RawIOBase, durable: bool) -> None:
        size = file.seek(0, os.SEEK_END)
        is_whole = not size or os.pread(file.fileno(), len(self._end), size - len(self._end)) == self._end
        content = (b"" if is_whole else self._end) + b"".join(self._waiting)
        try:
            while content:
                content = content[file.write(content) :]
            if durable:
                os.fsync(file.fileno())
        except OSError:
            file.truncate(size)  # half an entry would spoil the next one
            raise
