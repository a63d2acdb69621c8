"""A prepared data set: a directory with a manifest, written last, so that there is one if and only if it is whole.

manifest.json                 what is here, and of what it was made; its digest is the data's name
report.json                   what was left out, why, and examples
tokenizer.model
rows-00512/BUCKET/LANGUAGE/00000-of-00004.array_record
documents/BUCKET/LANGUAGE/00000-of-00004.array_record
"""

import dataclasses
import fcntl
import hashlib
import json
import pathlib
import shutil

import fsspec
import fsspec.implementations.local

from gemma3_jax.data import settings, sources
from gemma3_jax.tokenizer import vocabulary

FORMAT = 1
MANIFEST, REPORT, TOKENIZER = "manifest.json", "report.json", "tokenizer.model"
WORK = ".work"  # what an unfinished data set has instead of a manifest


def canonical(value: object) -> str:
    """JSON of one form, to be digested."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: object) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def part_path(kind: str, part: str, shard: int, num_shards: int) -> str:
    """Where a shard stands in the data set: kind "rows-00512" or "documents", part "bucket/language"."""
    return f"{kind}/{part}/{shard:05d}-of-{num_shards:05d}.array_record"


def rows_kind(row_length: int) -> str:
    return f"rows-{row_length:05d}"


@dataclasses.dataclass(frozen=True)
class Output:
    """A data set that is being written; on any file system fsspec knows."""

    url: str

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file that appears whole or not at all."""
        files, path = fsspec.core.url_to_fs(self.url)
        if _is_local(files):
            partial = pathlib.Path(path) / WORK / "writing"
            partial.write_bytes(content)
            partial.rename(pathlib.Path(path) / name)
        else:
            files.pipe_file(f"{path}/{name}", content)  # object stores show whole objects only

    def begin(self, config: settings.Prepare, units: list[sources.Unit]) -> None:
        """Makes the directory, or takes up one that was begun with the same settings and sources.

        Raises: ValueError if there is a data set, something else, or one begun otherwise.
        """
        files, path = fsspec.core.url_to_fs(self.url)
        # The mixture is what the rows are drawn by, not what they are: a wrong one can be mended on the way.
        fields = dataclasses.asdict(dataclasses.replace(config, mixture={}))
        started = digest([FORMAT, fields, [dataclasses.astuple(unit) for unit in units]])
        mark = f"{path}/{WORK}/settings"
        if files.exists(f"{path}/{MANIFEST}"):
            raise ValueError(f"{self.url} exists and is complete; choose another --output, or remove it first")
        if files.exists(mark):
            if files.cat_file(mark).decode() != started:
                raise ValueError(f"{self.url} was begun with other settings or sources; go on with those, or remove it")
        elif files.exists(path) and files.ls(path):
            raise ValueError(f"{self.url} exists and is not a data set that was begun here; choose another --output")
        else:
            files.makedirs(f"{path}/{WORK}", exist_ok=True)
            files.pipe_file(mark, started.encode())

    def lock(self):
        """A file to keep open: while it is, no other process of this machine works on the same directory.

        Raises: ValueError if one does.
        """
        file = (self.local() / WORK / "lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise ValueError(f"{self.url} is being written by another process; wait for it, or end it") from error
        for leftover in self.local().rglob(".writing-*"):  # of a process that was killed
            shutil.rmtree(leftover)
        return file

    def local(self) -> pathlib.Path:
        """Raises: ValueError if it is not a local path."""
        files, path = fsspec.core.url_to_fs(self.url)
        if not _is_local(files):
            raise ValueError(f"--output {self.url} is not a local directory; only a --runner writes to another place")
        return pathlib.Path(path)

    def finish(self, manifest: dict, report: dict) -> None:
        """Writes the report, and the manifest as the last file of all."""
        files, path = fsspec.core.url_to_fs(self.url)
        self.write_text(REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        self.write_text(MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        files.rm(f"{path}/{WORK}", recursive=True)


def _is_local(files: fsspec.AbstractFileSystem) -> bool:
    return isinstance(files, fsspec.implementations.local.LocalFileSystem)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A complete data set in a local directory."""

    path: pathlib.Path
    manifest: dict

    @property
    def digest(self) -> str:
        """Of the contents: the same for a copy, wherever it lies."""
        return self.manifest["digest"]

    def tokenizer(self) -> vocabulary.Tokenizer:
        """Raises: ValueError if the file is not the one the records were made with."""
        tokenizer = vocabulary.load(self.path / TOKENIZER)
        vocabulary.check_same(
            tokenizer.digest,
            self.manifest["tokenizer"]["digest"],
            got_from=str(self.path / TOKENIZER),
            expected_from=f"the records beside it ({MANIFEST})",
        )
        return tokenizer

    def mixture(self) -> dict[str, settings.Bucket]:
        """The mixture it was prepared with."""
        return {
            name: settings.Bucket(**{**bucket, "languages": tuple(bucket["languages"])})
            for name, bucket in self.manifest["mixture"].items()
        }


def open_dataset(path: pathlib.Path) -> Dataset:
    """The data set in a directory.

    Raises: ValueError if there is none, or it is not finished, or of a format this version does not read.
    """
    if not (path / MANIFEST).is_file():
        if (path / WORK).is_dir():
            raise ValueError(f"{path} is not finished; run the same prepare command again, and it goes on")
        raise ValueError(f"{path} is not a prepared data set: it has no {MANIFEST}; make one with prepare")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        found = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / MANIFEST} is damaged ({error}); copy or prepare the data again") from error
    if found != FORMAT:
        raise ValueError(f"{path / MANIFEST} is of format {found}; this version reads {FORMAT}: prepare the data again")
    return Dataset(path, manifest)
