"""A file of JSON lines that outlives who writes it: appended to, cut back when a run goes back, read if cut short."""

import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping

from gemma3_jax.train import appending


class Journal:
    """Appends objects to a file; a number that is not finite, which JSON has not, becomes null."""

    def __init__(self, path: pathlib.Path, warn: Callable[[str], None]):
        self._path = path
        self._file = appending.Appending(path, warn, end=b"\n")

    def write(self, entry: Mapping) -> None:
        self._file.write(json.dumps(finite(entry)).encode() + b"\n")

    def flush(self, *, durable: bool = False) -> None:
        """Writes what a full disk has kept waiting; `durable`: and has all of it reach the disk."""
        self._file.flush(durable=durable)

    def read(self) -> list[dict]:
        """All that was written; of a process that was killed in the middle of a line, all but that line."""
        return [entry for _, entry in self._lines()]

    def keep(self, wanted: Callable[[dict], bool]) -> None:
        """Drops what is not wanted, and half a line at the end; the file is replaced whole.

        Raises: OSError.
        """
        lines = [line for line, entry in self._lines() if wanted(entry)]
        content = b"".join(lines)
        if not self._path.exists() or content == self._path.read_bytes():
            return
        replace(self._path, content)

    def _lines(self) -> list[tuple[bytes, dict]]:
        found = []
        for line in self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # cut short
            if line.endswith(b"\n") and isinstance(entry, dict):
                found.append((line, entry))
        return found


def replace(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole, or leaves what is there. Raises: OSError."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def finite(value: object) -> object:
    """The value with null for each number that is not finite."""
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None
