"""A directory that several starts of a program write, and that is complete once it has its manifest.

MANIFEST           written last
WORK/begun-00000   while it is not complete: what the writer with this process number makes the contents of
WORK/lock-00000    held while that writer is at work
"""

import contextlib
import dataclasses
import json
import pathlib
import posixpath
from collections.abc import Callable, Iterator, Mapping

import fsspec
import fsspec.implementations.local

from gemma3_jax.durable import atomic, json_file, lock


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumableDirectory:
    """A directory of any file system that fsspec knows, to be written by one process or by several that share it."""

    url: str
    manifest: str
    work: str
    contents: str  # what the directory holds once it is complete, for errors: "data set"
    scratch: tuple[str, ...] = ()  # files written before the first result, worth nothing without one
    forgets_empty: bool = False  # a start that came to nothing does not bind the next one to its origin
    read_origin: Callable[[Mapping], Mapping] = dict  # a stored origin -> the same under today's names

    @property
    def _location(self) -> tuple[fsspec.AbstractFileSystem, str]:
        try:
            return fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:  # a driver that is not installed, an unknown protocol
            raise ValueError(f"--output {self.url} cannot be reached: {error}") from error

    @property
    def local(self) -> pathlib.Path | None:
        """The path of a local directory; None for any other."""
        files, path = self._location
        return pathlib.Path(path) if isinstance(files, fsspec.implementations.local.LocalFileSystem) else None

    def exists(self, name: str) -> bool:
        files, path = self._location
        return files.exists(f"{path}/{name}")

    def read(self, name: str) -> bytes:
        files, path = self._location
        return files.cat_file(f"{path}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Writes a file that appears whole or not at all."""
        files, path = self._location
        if self.local:
            atomic.replace(self.local / name, content)
        else:
            files.pipe_file(f"{path}/{name}", content)  # object stores show whole objects only

    @contextlib.contextmanager
    def resume(
        self,
        origin: Mapping,
        *,
        process: int = 0,
        subdirectory: str = "",
        warn: Callable[[str], None] | None = None,
    ) -> Iterator[None]:
        """Creates the directory, or resumes one that was begun with the same `origin`: what its contents follow from.

        Until the block ends no other process with this number writes there, on this machine. `subdirectory` is what
        this process alone writes, and is set where several processes write. If the block raises ValueError before
        there is a result, nothing of this process is left.
        Raises: ValueError if the directory is complete, is something else, has another origin, or is being written.
        """
        is_new = self._check_can_begin()
        files, path = self._location
        files.makedirs(f"{path}/{self.work}", exist_ok=True)
        with self.locked(process, warn):
            self._remove_leftovers(subdirectory)
            self._check_origin(origin)
            mark = f"{self.work}/begun-{process:05d}"
            if not self.exists(mark):
                self.write(mark, json.dumps(dict(origin)).encode())
            try:
                yield
            except ValueError:
                if not self.has_results():
                    self._withdraw(process, subdirectory, is_new)
                raise

    def locked(self, process: int = 0, warn: Callable[[str], None] | None = None) -> contextlib.AbstractContextManager:
        """Keeps other processes with this number out. Raises: ValueError if one is in."""
        if self.local is None:
            return contextlib.nullcontext()
        busy = f"{self.url} is being written by another process; wait for it, or end it"
        return lock.exclusive(self.local / self.work / f"lock-{process:05d}", busy=busy, warn=warn)

    def complete(self, manifest: bytes) -> None:
        """Writes the manifest; from then on the directory is complete."""
        self.write(self.manifest, manifest)

    def clean_up(self) -> None:
        """Removes what the work on a complete directory has left."""
        files, path = self._location
        self._remove_leftovers()
        if self.local:
            atomic.remove(self.local / self.work)  # as far as it can be: others may still hold their locks
        elif self.exists(self.work):
            files.rm(f"{path}/{self.work}", recursive=True)

    def has_results(self) -> bool:
        """Whether there is anything that another start need not do again."""
        files, path = self._location
        names = (name.removeprefix(f"{path}/") for name in files.find(path))
        ours = (f"{self.work}/begun", f"{self.work}/lock")
        return any(
            name not in self.scratch
            and not name.startswith(ours)
            and not (atomic.PARTIAL in name or atomic.OLD_PARTIAL in name)
            for name in names
        )

    def _names(self, directory: str = "") -> set[str] | None:
        """The names in a directory; None if it is not there."""
        files, path = self._location
        try:
            listed = files.ls(f"{path}/{directory}".rstrip("/"), detail=False)
        except FileNotFoundError:
            return None
        return {posixpath.basename(name.rstrip("/")) for name in listed}

    def _remove(self, name: str) -> None:
        files, path = self._location
        with contextlib.suppress(OSError, ValueError):  # the error that leads here is the one to report
            files.rm_file(f"{path}/{name}")

    def _check_can_begin(self) -> bool:
        """Returns whether the directory is new. Raises: ValueError if it is complete, or not one of these."""
        files, path = self._location
        if files.isfile(path):
            raise ValueError(f"{self.url} is a file; choose another --output")
        names = self._names()  # listed once, because others may begin meanwhile
        if names is None:
            return True
        if names and self.work not in names:
            if self.manifest in names:
                raise ValueError(f"{self.url} exists and is complete; choose another --output, or remove it first")
            raise ValueError(f"{self.url} exists and is not an unfinished {self.contents}; choose another --output")
        return False

    def _check_origin(self, origin: Mapping) -> None:
        """Raises: ValueError if the directory was begun with another origin, or is complete."""
        names = sorted(name for name in self._names(self.work) or () if name.startswith("begun"))
        marks = {name: self.read_origin(self._read_object(f"{self.work}/{name}")) for name in names}
        origins = list(marks.values())
        if self.exists(self.manifest):
            made_of = self._read_object(self.manifest).get("made_of")
            if made_of is None and not marks:  # stopped while it was cleaned up
                self.clean_up()
                raise ValueError(f"{self.url} exists and is complete; choose another --output, or remove it first")
            origins += [self.read_origin(made_of)] if made_of is not None else []
        changed = [old for old in origins if old != dict(origin)]
        if not changed:
            return
        if self.forgets_empty and not self.has_results():
            for name, old in marks.items():
                if old in changed:
                    self._remove(f"{self.work}/{name}")
            return
        names = [name for name in {**changed[0], **origin} if changed[0].get(name) != origin.get(name)]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(
            f"{self.url} was begun with another {', '.join(_change(name, changed[0], origin) for name in names[:3])}"
            f"{more}; resume with the old settings, choose another --output, or remove it"
        )

    def _read_object(self, name: str) -> dict:
        try:
            content = json_file.read_object(self.read(name), f"{self.url}/{name}")
            json_file.check(content, {}, f"{self.url}/{name}", optional={"made_of": dict})
            return content
        except ValueError as error:
            raise ValueError(f"{error}; choose another --output, or remove {self.url}") from error

    def _remove_leftovers(self, subdirectory: str = "") -> None:
        """Removes what killed processes left half written, in the whole directory or in one part of it."""
        if self.local:
            for glob in atomic.LEFTOVERS:
                for leftover in list((self.local / subdirectory).rglob(glob)):
                    atomic.remove(leftover)

    def _withdraw(self, process: int, subdirectory: str, is_new: bool) -> None:
        """Removes what this process made. Others may be at work: their files stay, with the directories they are in."""
        files, path = self._location
        mine = (f"{self.work}/begun-{process:05d}", f"{self.work}/lock-{process:05d}", *self.scratch)
        for name in mine:
            self._remove(name)
        # A directory that was there before is the user's. Of several processes none knows which one made it.
        directories = [self.work, *[subdirectory] * bool(subdirectory), *[""] * (is_new or bool(subdirectory))]
        for name in directories:
            with contextlib.suppress(OSError, ValueError):  # it is not empty, or not there
                files.rmdir(f"{path}/{name}".rstrip("/"))


def _change(name: str, old: Mapping, new: Mapping) -> str:
    """The name of what changed, with its values where a line has room for them."""
    values = f"{old.get(name)}, now {new.get(name)}"
    return f"{name} ({values})" if len(values) <= 60 else name
