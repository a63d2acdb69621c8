"""The format of a file, recognized from its name and its first records: JSON lines, a JSON array, Parquet, or a text;
texts or chats.

A file has one format, which is decided before anything is read and named in the report. A record that does not have it
cannot be read: no record is looked at to choose how it is read.
"""

import collections
import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence

from gemma3_jax.data.prepare import files, settings, sources

TEXT, TURNS = "text", "messages"  # the fields of a record that is a text, and of one that is a chat
NUM_FIRST = 20  # records
_HEAD = 1 << 16  # bytes
_KINDS = {"jsonl": "JSON lines", "json": "a JSON array", "parquet": "Parquet", "text": "a text in each file"}
_MEND = (
    f"a record has its text in {TEXT!r}, or its turns as {{role, content}} in {TURNS!r}; for other fields, prepare "
    "takes a config file (sources, in docs/data.md)"
)


@dataclasses.dataclass(frozen=True)
class Format:
    """How all records of a file are read."""

    kind: str  # as settings.SourceConfig.kind
    is_chat: bool = False

    @property
    def name(self) -> str:
        """The name of a source of this format."""
        return self.kind if self.kind == "text" else f"{self.kind}_{TURNS if self.is_chat else TEXT}"

    def source(self, paths: Sequence[str]) -> dict:
        """Returns the fields of the source that reads files of this format."""
        turns = {"turns_field": TURNS, "bucket": "chat"} if self.is_chat else {}
        return {"kind": self.kind, "paths": tuple(paths), **turns}


def sources_of(inputs: Sequence[str]) -> dict[str, dict]:
    """Returns `sources` of a config that reads files, globs and archives: a source for each format among them.

    Raises: ValueError if there is nothing, or something whose format is not known.
    """
    by_format: dict[Format, list[str]] = collections.defaultdict(list)
    for pattern in inputs:
        with files.naming(pattern):
            paths = [path for path, _, _ in files.find(pattern)]
        if not paths:
            raise ValueError(f"there is nothing in {pattern}")
        for path in paths:
            by_format[recognize(path)].append(path)
    return {one.name: one.source(paths) for one, paths in by_format.items()}


def recognize(path: str) -> Format:
    """Returns the format of a file that `files.find` has yielded.

    Raises: ValueError if it is none that is read, or if its first records are of two.
    """
    with files.naming(path), files.open_unpacked(path) as file:
        head = file.read(_HEAD)
    kind = _kind(path, head)
    return Format(kind) if kind == "text" else _of_first_records(path, kind)


def describe(source: settings.SourceConfig) -> str:
    """Returns the format of a source, for people."""
    if source.kind not in _KINDS:
        return f"TensorFlow dataset {source.dataset}" if source.kind == "tfds" else "the standard library of Python"
    if source.kind == "text":
        return _KINDS["text"]
    what = f"chats in {source.turns_field}" if source.turns_field else f"texts in {' and '.join(source.fields)}"
    return f"{_KINDS[source.kind]}, {what}"


def _kind(path: str, head: bytes) -> str:
    """The kind of source, by the name and the first bytes. Raises: ValueError."""
    kind = files.kind_of(path)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"PAR1") or kind == "parquet":
        return "parquet"
    if not start and kind != "text":
        raise ValueError(f"{path} is empty")
    if b"\0" in head:
        raise ValueError(
            f"{path} is neither text nor Parquet: it has bytes of zero; JSON lines, a JSON array, Parquet "
            "and texts are read"
        )
    if kind == "text":
        if _is_row(start.partition(b"\n")[0]):
            raise ValueError(f"{path} has JSON in its first line, and the name of a text; call it .jsonl")
        return "text"
    if start.startswith(b"["):
        return "json"
    if kind == "json" and not _is_row(start.partition(b"\n")[0]) and len(head) < _HEAD:
        raise ValueError(f"{path} is one JSON value over several lines, and no array of records; {_MEND}")
    return "jsonl"


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _of_first_records(path: str, kind: str) -> Format:
    """The format of a file of records. Raises: ValueError."""
    first: dict[bool, str] = {}  # where the first text and the first chat are
    problem = None
    for where, row in itertools.islice(sources.rows(path, kind), NUM_FIRST):
        if isinstance(row, str):
            problem = problem or f"{where()}: {row}"
        elif _is_chat(row):
            first.setdefault(True, where())
        elif isinstance(row.get(TEXT), str):
            first.setdefault(False, where())
        else:
            known = ", ".join(map(repr, itertools.islice(row, 8))) or "no field"
            problem = problem or f"{where()} has {known:.200}; {_MEND}"
    if len(first) > 1:
        raise ValueError(f"{first[False]} is a text and {first[True]} a chat; a file holds one of them: split it")
    if not first:
        raise ValueError(problem or f"{path} has no records")
    return Format(kind, is_chat=True in first)


def _is_chat(row: Mapping) -> bool:
    turns = row.get(TURNS)
    return isinstance(turns, list | tuple) and bool(turns)
