"""A file of JSON lines that outlives its writer: appended to, cut back when a run goes back, readable if cut short."""

import json
import math
import pathlib
from collections.abc import Callable, Mapping

from gemma3_jax.durable import append_only, atomic


class Journal:
    """Appends JSON objects to a file. A number that is not finite becomes null, because JSON has none."""

    def __init__(
        self, path: pathlib.Path, warn: Callable[[str], None], *, is_entry: Callable[[dict], bool] = lambda entry: True
    ):
        """A line in the file that is not JSON, or that `is_entry` refuses, is not an entry: it is never read."""
        self._path, self._warn, self._is_entry = path, warn, is_entry
        self._file = append_only.AppendOnlyFile(path, warn, end=b"\n")

    def write(self, entry: Mapping) -> None:
        self._file.write(json.dumps(finite(entry)).encode() + b"\n")

    def flush(self, *, durable: bool = False) -> None:
        """Writes the lines that a full disk refused. With `durable` all lines are on the disk afterwards."""
        self._file.flush(durable=durable)

    def read(self) -> list[dict]:
        """Returns all entries, without the half line that a killed process may have left."""
        return [entry for _, entry in self._lines()]

    def keep(self, predicate: Callable[[dict], bool]) -> None:
        """Drops the entries for which `predicate` is false, and lines that are none. The file is replaced whole.

        Warns of lines that are not entries, but for half a line at the end. Raises: OSError.
        """
        num_lines = self._path.read_bytes().count(b"\n") if self._path.exists() else 0
        if num_others := num_lines - len(self._lines()):
            self._warn(f"{self._path}: {num_others} of {num_lines} lines are of another form, and are dropped")
        content = b"".join(line for line, entry in self._lines() if predicate(entry))
        if self._path.exists() and content != self._path.read_bytes():
            atomic.replace(self._path, content)

    def _lines(self) -> list[tuple[bytes, dict]]:
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        entries = ((line, parse(line)) for line in lines if line.endswith(b"\n"))
        return [(line, entry) for line, entry in entries if entry is not None and self._is_entry(entry)]


def parse(line: bytes) -> dict | None:
    """Returns the object of a line, or None if the line is anything else."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def finite(value: object) -> object:
    """Returns the value with null for each number that is not finite."""
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None
