"""Writes teacher targets to a directory that is resumed; its manifest is written last.

Every process writes separate files below one shared directory, so another number of processes can resume.
"""

import contextlib
import importlib.metadata
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from gemma3_jax import renamed
from gemma3_jax.data import shards
from gemma3_jax.data.targets import codec
from gemma3_jax.data.targets import reader as targets_reader
from gemma3_jax.durable import resumable

UNIT_BYTES = 1 << 26  # of targets that a process makes before it writes them: what a kill may cost


class TargetsWriter:
    """Writes rows in any order, a unit of them at a time; `resume` makes one."""

    def __init__(self, directory: resumable.ResumableDirectory, origin: Mapping, process: int):
        self._directory, self._path = directory, directory.local
        self._origin, self._process = dict(origin), process
        self._is_missing = self._locations(self._files())[:, 1] == 0

    def _files(self) -> list[tuple[str, int]]:
        """Every file of every process, with its number of records."""
        files = sorted(self._path.glob("part-*/*.array_record"))
        return [(str(file.relative_to(self._path)), len(targets_reader.rows_in(file)) + 1) for file in files]

    def _locations(self, files: list[tuple[str, int]]) -> np.ndarray:
        return targets_reader.find_rows(self._path, files, self._origin["num_rows"])

    @property
    def missing(self) -> np.ndarray:
        """The ids of the rows that no file had at the start, and that this process has not written since, in order."""
        return np.flatnonzero(self._is_missing)

    def units(self, batch_size: int, num_processes: int = 1) -> list[range]:
        """Returns ranges of whole steps that lack a row, each of about UNIT_BYTES for every process."""
        num_rows = self._origin["num_rows"]
        row_bytes = self._origin["seq_len"] * codec.bytes_per_token(targets_reader.samples_of(self._origin))
        size = batch_size * max(1, num_processes * UNIT_BYTES // (batch_size * row_bytes))
        units = [range(first, min(first + size, num_rows)) for first in range(0, num_rows, size)]
        return [unit for unit in units if self._is_missing[unit.start : unit.stop].any()]

    def write(self, row_ids: Sequence[int], records: Iterable[bytes]) -> int:
        """Writes rows as one file, which appears whole or not at all; returns its bytes.

        Rows that are not missing are left out. Raises: OSError.
        """
        missing = [row_id for row_id in row_ids if self._is_missing[row_id]]
        if not missing:
            return 0

        def contents() -> Iterator[bytes]:
            yield np.asarray(missing, "<i8").tobytes()
            for row_id, record in zip(row_ids, records, strict=True):
                if self._is_missing[row_id]:
                    yield record

        written = shards.write(str(self._path / _part(self._process) / f"{missing[0]:012d}.array_record"), contents())
        self._is_missing[missing] = False
        return written["bytes"]

    def complete(self, notes: Mapping | None = None) -> dict:
        """Writes the manifest and returns it. One process calls this, once all have written their rows.

        `notes` go into the manifest beside what is checked. Raises: ValueError if a row is missing.
        """
        files = self._files()
        if missing := np.flatnonzero(self._locations(files)[:, 1] == 0).tolist():
            raise ValueError(
                f"{self._path} lacks {targets_reader.describe(missing)}; let all processes write to one shared "
                "directory, and run the same command to resume"
            )
        manifest = {
            **(notes or {}),
            "format": targets_reader.FORMAT,
            "version": importlib.metadata.version("gemma3_jax"),
            "bytes": sum((self._path / name).stat().st_size for name, _ in files),
            "made_of": self._origin,
            "files": files,
        }
        self._directory.complete(json.dumps(manifest, indent=1).encode() + b"\n")
        self._directory.clean_up()
        return manifest


@contextlib.contextmanager
def resume(
    path: pathlib.Path, origin: Mapping, *, process: int = 0, warn: Callable[[str], None] = print
) -> Iterator[TargetsWriter]:
    """Creates the directory, or resumes one that was begun with the same origin, as `reader.made_of` returns it.

    Raises: ValueError as `ResumableDirectory.resume` does.
    """
    directory = resumable.ResumableDirectory(
        url=str(path.absolute()),
        manifest=targets_reader.MANIFEST,
        work=targets_reader.WORK,
        contents="directory of targets",
        forgets_empty=True,
        read_origin=renamed.current,
    )
    with directory.resume(origin, process=process, subdirectory=_part(process), warn=warn):
        yield TargetsWriter(directory, origin, process)


def _part(process: int) -> str:
    return f"part-{process:05d}"
