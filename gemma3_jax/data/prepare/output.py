"""A data set that is being written: begun, gone on with, finished; its manifest is written last."""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping

import fsspec
import fsspec.implementations.local

from gemma3_jax.data import dataset, shards

MARK = f"{dataset.WORK}/begun"
ERROR = f"{dataset.WORK}/error"  # what a runner's last step found wrong


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a local file that appears whole or not at all."""
    partial = path.with_name(f"{shards.WRITING}{os.getpid()}-{path.name}")
    partial.write_bytes(content)
    partial.rename(path)


@dataclasses.dataclass(frozen=True)
class Output:
    """A directory of any file system fsspec knows."""

    url: str

    @property
    def _place(self) -> tuple[fsspec.AbstractFileSystem, str]:
        try:
            return fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:  # a driver that is not installed, a protocol that nobody knows
            raise ValueError(f"--output {self.url} cannot be reached: {error}") from error

    @property
    def is_local(self) -> bool:
        return isinstance(self._place[0], fsspec.implementations.local.LocalFileSystem)

    def local(self) -> pathlib.Path:
        """Raises: ValueError if it is not a local path."""
        if not self.is_local:
            raise ValueError(f"--output {self.url} is not a local directory; only a --runner writes to another place")
        return pathlib.Path(self._place[1])

    def exists(self, name: str) -> bool:
        files, path = self._place
        return files.exists(f"{path}/{name}")

    def read(self, name: str) -> bytes:
        files, path = self._place
        return files.cat_file(f"{path}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Writes a file that appears whole or not at all."""
        files, path = self._place
        if self.is_local:
            write_whole(pathlib.Path(path) / name, content)
        else:
            files.pipe_file(f"{path}/{name}", content)  # object stores show whole objects only

    @contextlib.contextmanager
    def begun(self, made_of: Mapping[str, str]) -> Iterator[None]:
        """Makes the directory, or takes up one that was begun with the same: all that it is made of, by name.

        Until the block ends no other process of this machine works on it. If it ends with an error before any unit was
        done, nothing is left.
        Raises: ValueError if there is a data set, something else, or one begun otherwise, or one being written.
        """
        files, path = self._place
        self._check_free(files, path)
        is_new = not files.exists(path)
        files.makedirs(f"{path}/{dataset.WORK}", exist_ok=True)
        with self._lock() if self.is_local else contextlib.nullcontext():
            if not self.exists(MARK) and self.completed():  # stopped while it was cleaned up
                self._check_free(files, path)
            if not self.exists(MARK):
                self.write(MARK, json.dumps(dict(made_of)).encode())
            before = json.loads(self.read(MARK))
            if changed := [name for name in {**before, **made_of} if before.get(name) != made_of.get(name)]:
                more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
                raise ValueError(
                    f"{self.url} was begun with another {', '.join(changed[:3])}{more}; go on with that, or remove it"
                )
            try:
                yield
            except ValueError:
                self._remove_if_nothing_is_done(is_new)
                raise

    def _check_free(self, files: fsspec.AbstractFileSystem, path: str) -> None:
        if files.isfile(path):
            raise ValueError(f"{self.url} is a file; choose another --output")
        if self.exists(dataset.MANIFEST) and not self.exists(dataset.WORK):
            raise ValueError(f"{self.url} exists and is complete; choose another --output, or remove it first")
        if not self.exists(dataset.WORK) and files.exists(path) and files.ls(path):
            raise ValueError(f"{self.url} exists and is not a data set that was begun here; choose another --output")

    def _remove_if_nothing_is_done(self, is_new: bool) -> None:
        """Takes away what `begun` made, and the tokenizer; the directory too if it was not there before."""
        files, path = self._place
        ours = {dataset.TOKENIZER, MARK, ERROR, f"{dataset.WORK}/lock"}
        if not {found.removeprefix(f"{path}/") for found in files.find(path)} <= ours:
            return
        with contextlib.suppress(OSError, ValueError):  # the error that led here is the one to tell
            files.rm(f"{path}/{dataset.WORK}", recursive=True)
            if self.exists(dataset.TOKENIZER):
                files.rm_file(f"{path}/{dataset.TOKENIZER}")
            if is_new:
                files.rmdir(path)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.local() / dataset.WORK / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"{self.url} is being written by another process; wait for it, or end it") from error
            for leftover in self.local().rglob(f"{shards.WRITING}*"):  # of a process that was killed
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            yield

    def complete(self, manifest: dict, report: dict) -> None:
        """Writes the report, then the manifest: from here on it is a data set."""
        for name, content in ((dataset.REPORT, report), (dataset.MANIFEST, manifest)):
            self.write(name, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    def completed(self) -> tuple[dict, dict] | None:
        """The manifest and the report, if they are there; what the work left behind is removed."""
        if not self.exists(dataset.MANIFEST):
            return None
        files, path = self._place
        if self.exists(dataset.WORK):
            files.rm(f"{path}/{dataset.WORK}", recursive=True)
        return json.loads(self.read(dataset.MANIFEST)), json.loads(self.read(dataset.REPORT))
