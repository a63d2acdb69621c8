"""The data set that `prepare` writes, in a directory that is resumed; its manifest is written last."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping

from gemma3_jax.data import dataset
from gemma3_jax.durable import json_file, resumable

ERROR = f"{dataset.WORK}/error"  # what the last step of a runner reports


@dataclasses.dataclass(frozen=True)
class Output:
    """A directory of any file system that fsspec knows."""

    url: str

    @property
    def directory(self) -> resumable.ResumableDirectory:
        return resumable.ResumableDirectory(
            url=self.url,
            manifest=dataset.MANIFEST,
            work=dataset.WORK,
            contents="data set",
            scratch=(dataset.TOKENIZER, ERROR),
        )

    def local(self) -> pathlib.Path:
        """Raises: ValueError if it is not a local path."""
        if (path := self.directory.local) is None:
            raise ValueError(f"--output {self.url} is not a local directory; only a --runner writes elsewhere")
        return path

    def exists(self, name: str) -> bool:
        return self.directory.exists(name)

    def read(self, name: str) -> bytes:
        return self.directory.read(name)

    def write(self, name: str, content: bytes) -> None:
        """Writes a file that appears whole or not at all."""
        self.directory.write(name, content)

    def resume(self, made_of: Mapping[str, str]) -> contextlib.AbstractContextManager:
        """Creates the directory, or resumes one that was begun with the same `made_of`.

        Raises: ValueError as `ResumableDirectory.resume` does.
        """
        return self.directory.resume(made_of)

    def complete(self, manifest: dict, report: dict) -> None:
        """Writes the report, then the manifest: from here on it is a data set."""
        self.write(dataset.REPORT, _to_json(report))
        self.directory.complete(_to_json(manifest))

    def completed(self) -> tuple[dict, dict] | None:
        """Returns the manifest and the report, and removes what the work has left; None while there is no manifest."""
        if not self.exists(dataset.MANIFEST):
            return None
        self.directory.clean_up()
        manifest, report = (
            json_file.read_object(self.read(name), f"{self.url}/{name}") for name in (dataset.MANIFEST, dataset.REPORT)
        )
        return manifest, report


def _to_json(content: dict) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
