"""Targets that are being written: begun, gone on with, finished; the manifest is written last.

Every process writes files of its own below one directory that all share, so another number of processes can go on.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from gemma3_jax.data import shards
from gemma3_jax.data.prepare import output
from gemma3_jax.data.targets import codec
from gemma3_jax.data.targets import reader as targets_reader

PARTS = "part-*"
UNIT_BYTES = 1 << 26  # of targets that a process makes before it writes them: what a kill may cost


class Writer:
    """Writes rows in any order, by units of some; `begun` makes one."""

    def __init__(self, path: pathlib.Path, origin: Mapping, process: int):
        self._path, self._origin, self._process = path, dict(origin), process
        self._is_missing = self._places(self._files())[:, 1] == 0

    def _files(self) -> list[tuple[str, int]]:
        """Every file of every process, and how many records it has."""
        files = sorted(self._path.glob(f"{PARTS}/*.array_record"))
        return [(str(file.relative_to(self._path)), len(targets_reader.rows_in(file)) + 1) for file in files]

    def _places(self, files: list[tuple[str, int]]) -> np.ndarray:
        return targets_reader.find_rows(self._path, files, self._origin["num_rows"])

    @property
    def missing(self) -> np.ndarray:
        """The rows that no file had when this began, and that this process has not written since, in order."""
        return np.flatnonzero(self._is_missing)

    def units(self, batch_size: int, num_processes: int = 1) -> list[range]:
        """Whole steps of neighbouring rows, about UNIT_BYTES for each process, each with a row that is missing."""
        num_rows = self._origin["num_rows"]
        row_bytes = self._origin["seq_len"] * codec.bytes_per_token(targets_reader.samples_of(self._origin))
        size = batch_size * max(1, num_processes * UNIT_BYTES // (batch_size * row_bytes))
        units = [range(first, min(first + size, num_rows)) for first in range(0, num_rows, size)]
        return [unit for unit in units if self._is_missing[unit.start : unit.stop].any()]

    def write(self, numbers: Sequence[int], records: Iterable[bytes]) -> int:
        """Writes the rows of these numbers as one file, which appears whole or not at all; returns its bytes.

        Those that are not missing are left out. Raises: OSError.
        """
        wanted = [number for number in numbers if self._is_missing[number]]
        if not wanted:
            return 0

        def contents() -> Iterator[bytes]:
            yield np.asarray(wanted, "<i8").tobytes()
            for number, record in zip(numbers, records, strict=True):
                if self._is_missing[number]:
                    yield record

        written = shards.write(str(self._path / _part(self._process) / f"{wanted[0]:012d}.array_record"), contents())
        self._is_missing[wanted] = False
        return written["bytes"]

    def complete(self, notes: Mapping | None = None) -> dict:
        """Writes the manifest: from here on these are targets. One process does, once all have written what they have.

        `notes` go into it, beside what is checked. Raises: ValueError if a row is missing.
        """
        files = self._files()
        if missing := np.flatnonzero(self._places(files)[:, 1] == 0).tolist():
            raise ValueError(
                f"{self._path} lacks {targets_reader.describe(missing)}; let all processes write to one directory that "
                "they share: the same command goes on"
            )
        manifest = {
            **(notes or {}),
            "format": targets_reader.FORMAT,
            "version": importlib.metadata.version("gemma3_jax"),
            "bytes": sum((self._path / name).stat().st_size for name, _ in files),
            "made_of": self._origin,
            "files": files,
        }
        output.write_whole(self._path / targets_reader.MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")
        for leftover in self._path.glob(f"{PARTS}/{shards.WRITING}*"):  # of a process that does not go on
            shutil.rmtree(leftover, ignore_errors=True)
        shutil.rmtree(self._path / targets_reader.WORK, ignore_errors=True)  # others may still hold their locks
        return manifest


@contextlib.contextmanager
def begun(
    path: pathlib.Path, origin: Mapping, *, process: int = 0, warn: Callable[[str], None] = print
) -> Iterator[Writer]:
    """Makes the directory, or takes up one that was begun with the same: what `taught.made_of` says.

    Until the block ends no other process of this number works on it on this machine. If it ends with a ValueError
    before anything was written, nothing of this process is left, and no directory that is then empty.
    Raises: ValueError if there are targets, something else, or ones begun otherwise, or being written.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; choose another --output")
    found = {child.name for child in path.iterdir()} if path.exists() else set()  # once: others may begin meanwhile
    if found and targets_reader.WORK not in found:
        if targets_reader.MANIFEST in found:
            raise ValueError(f"{path} exists and is complete; choose another --output, or remove it first")
        raise ValueError(f"{path} exists and is not targets that were begun here; choose another --output")
    (path / targets_reader.WORK).mkdir(parents=True, exist_ok=True)
    with _locked(path, process, warn):
        for leftover in (path / _part(process)).glob(f"{shards.WRITING}*"):  # of a process that was killed
            shutil.rmtree(leftover)
        _check_same(path, origin)
        output.write_whole(path / targets_reader.WORK / f"begun-{process:05d}", json.dumps(dict(origin)).encode())
        try:
            yield Writer(path, origin, process)
        except ValueError:
            if not _has_parts(path):
                _withdraw(path, process)
            raise


def _part(process: int) -> str:
    return f"part-{process:05d}"


def _has_parts(path: pathlib.Path) -> bool:
    return any(path.glob(f"{PARTS}/*.array_record"))


def _withdraw(path: pathlib.Path, process: int) -> None:
    """Other processes may be at work: what is theirs stays, and so do the directories that it is in."""
    for name in ("begun", "lock"):
        (path / targets_reader.WORK / f"{name}-{process:05d}").unlink(missing_ok=True)
    for directory in (path / _part(process), path / targets_reader.WORK, path):
        with contextlib.suppress(OSError):  # it is not empty, or not there
            directory.rmdir()


def _check_same(path: pathlib.Path, origin: Mapping) -> None:
    """What was begun otherwise, and came to nothing, is forgotten.

    Raises: ValueError if rows were written with something else, or it is complete with something else.
    """
    before = {mark: json.loads(mark.read_text()) for mark in sorted((path / targets_reader.WORK).glob("begun-*"))}
    if (path / targets_reader.MANIFEST).exists():
        before[path / targets_reader.MANIFEST] = json.loads((path / targets_reader.MANIFEST).read_text())["made_of"]
    for file, found in before.items():
        names = [name for name in {**found, **origin} if found.get(name) != origin.get(name)]
        if names and file.parent.name == targets_reader.WORK and not _has_parts(path):
            file.unlink(missing_ok=True)
        elif names:
            changed = "; ".join(f"{name} was {found.get(name)} and is {origin.get(name)}" for name in names[:3])
            more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"{path} was begun otherwise: {changed}{more}; go on with that, choose another --output, or remove it"
            )


@contextlib.contextmanager
def _locked(path: pathlib.Path, process: int, warn: Callable[[str], None]) -> Iterator[None]:
    with (path / targets_reader.WORK / f"lock-{process:05d}").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{path} is being written by another process; wait for it, or end it") from error
        except OSError as error:
            warn(f"warning: nothing keeps a second process from writing {path}: {error}")
        yield
