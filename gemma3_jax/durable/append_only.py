"""A file that is only appended to, one whole entry at a time; the writer may be killed, and the disk may fill up."""

import io
import os
import pathlib
from collections.abc import Callable


class AppendOnlyFile:
    """Appends entries. While the disk refuses them they wait in memory for the next attempt, after one warning."""

    def __init__(self, path: pathlib.Path, warn: Callable[[str], None], *, end: bytes = b""):
        """`end` is what every entry ends with; it also closes half an entry that a killed process left."""
        self._path, self._warn, self._end = path, warn, end
        self._waiting: list[bytes] = []
        self._is_refused = False

    def write(self, entry: bytes) -> None:
        self._waiting.append(entry)
        self.flush()

    def flush(self, *, durable: bool = False) -> None:
        """Writes the entries that wait. With `durable` they are on the disk afterwards, and survive a machine crash."""
        if not self._waiting and not (durable and self._path.exists()):
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Opened anew, because the file may have been moved; unbuffered, because a buffer is written on closing.
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
