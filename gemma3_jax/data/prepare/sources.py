"""The sources of raw text: their units of work, and the records in each.

Paths may be local or of any file system that fsspec knows.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

from gemma3_jax.data import record_ids
from gemma3_jax.data.prepare import builtin, chats, files, records, settings, source_kinds


@dataclasses.dataclass(frozen=True)
class Unit:
    """A unit of work: part of one file."""

    number: int  # among all units
    source: str
    source_number: int
    file: int
    path: str
    start: int  # first byte (lines), row group (parquet) or row (tfds, python) ...
    stop: int  # ... and the one after the last; -1: to the end
    size: int  # bytes, for progress
    version: str  # when the file was last changed: a changed file is another source


@dataclasses.dataclass(frozen=True)
class BrokenRecord:
    """A record that cannot be read, and the reason."""

    record_id: record_ids.RecordId
    problem: str


def units(sources: Mapping[str, settings.SourceConfig]) -> list[Unit]:
    """Returns all units of all sources, in order.

    Raises: ValueError if a source has no files.
    """
    units: list[Unit] = []
    for source_number, (name, source) in enumerate(sources.items()):
        with _naming_field(f"config.sources.{name}"):
            cuts = source_kinds.cut(source)
        if not cuts:
            raise ValueError(
                f"source {name} is empty: there is nothing in {', '.join(source.paths)} (config.sources.{name})"
            )
        for cut in cuts:
            units.append(Unit(len(units), name, source_number, *cut))
    return units


def read(unit: Unit, source: settings.SourceConfig) -> Iterator[records.Record | BrokenRecord]:
    """Yields the records of a unit, in order; of all records, the fraction that the source sets.

    Raises: ValueError if the file itself is damaged.
    """
    for position, row in source_kinds.read_rows(unit, source):
        record_id = record_ids.RecordId(unit.source_number, unit.file, position)
        if source.fraction < 1:
            # Purpose and key are frozen: with others the same config would draw other records.
            draw = records.uniform(0, "share", f"{unit.source}/{record_id.hash_key()}")
            if draw >= source.fraction:
                continue
        yield BrokenRecord(record_id, row) if isinstance(row, str) else _record(record_id, row, source)


def _record(
    record_id: record_ids.RecordId, row: Mapping, source: settings.SourceConfig
) -> records.Record | BrokenRecord:
    """Returns the record of a source row."""
    language_field = source.language_field or ("language" if source.kind == "python" else "")
    language = row.get(language_field) if language_field else source.language
    if not isinstance(language, str) or not settings.is_name(language):
        return BrokenRecord(record_id, f"field {language_field} is {repr(language)[:40]}, not the name of a language")
    if source.turns_field:
        if problem := chats.problem(row, source.turns_field):
            return BrokenRecord(record_id, problem)
        turns = row[source.turns_field]
        texts, roles = zip(*((turn["content"], turn["role"]) for turn in turns), strict=True)
        return records.Record(record_id, source.bucket, language, texts, roles, row)
    values = [row.get(field) for field in source.fields]
    for field, value in zip(source.fields, values, strict=True):
        if not isinstance(value, str):
            problem = f"field {field} is {'absent' if value is None else repr(value)[:40]}, not text"
            return BrokenRecord(record_id, problem)
        if not chats.is_unicode(value):
            return BrokenRecord(record_id, f"field {field} holds half a surrogate pair, which is no text")
    return records.Record(record_id, source.bucket, language, ("\n".join(values),), (), row)


def describe(
    sources: Mapping[str, settings.SourceConfig], units: Sequence[Unit], record_id: record_ids.RecordId
) -> str:
    """Returns where a person finds a record; the unit of its file must be among `units`."""
    source = list(sources.values())[record_id.source]
    if source.kind == "python":
        kind = "documentation" if record_id.position % 2 else "code"
        return f"{builtin.files()[record_id.position // 2]} ({kind})"
    path = next(unit.path for unit in units if (unit.source_number, unit.file) == (record_id.source, record_id.file))
    if source.kind == "text":
        return path
    if source.kind == "json":
        return f"{path}, row {record_id.position + 1}"
    if source.kind != "jsonl":
        return f"{path}, row {record_id.position}"
    with files.open_unpacked(path) as file:  # lines are counted only here, because it takes time
        num_before, left = 0, record_id.position
        while left and (block := file.read(min(left, 1 << 20))):
            num_before, left = num_before + block.count(b"\n"), left - len(block)
    return f"{path}, line {num_before + 1}"


def read_texts(path: str, fields: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yields (name, text) of every item of an evaluation set: a row of JSON or Parquet, or a whole text file.

    Raises: ValueError if the path matches nothing, or something cannot be read.
    """
    with _naming_field("config.decontamination.paths"):
        with files.naming(path):
            names = [name for name, _, _ in files.find(path)]
        if not names:
            raise ValueError(f"there is nothing in {path}")
        for name in names:
            yield from _items(name, fields)


def _items(path: str, fields: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for where, row in rows(path, files.kind_of(path)):
        if isinstance(row, str):
            raise ValueError(f"{where()}: {row}")
        yield where(), _joined(row, fields)


def rows(path: str, kind: str) -> Iterator[tuple[Callable[[], str], Mapping | str]]:
    """Yields (a function that returns where it is, row) of a file; instead of a row that cannot be read, the problem.

    Raises: ValueError if the file itself is damaged.
    """
    source = settings.SourceConfig(kind=kind, paths=(path,))
    for number, cut in enumerate(source_kinds.cut(source)):
        unit = Unit(number, "", 0, *cut)
        for position, row in source_kinds.read_rows(unit, source):
            record_id = record_ids.RecordId(0, unit.file, position)
            yield functools.partial(describe, {"": source}, [unit], record_id), row


def _joined(row: Mapping, fields: tuple[str, ...]) -> str:
    values = [row.get(field) for field in fields] if fields else row.values()
    return " ".join(value for value in values if isinstance(value, str))


@contextlib.contextmanager
def _naming_field(name: str) -> Iterator[None]:
    """Adds the field of the config to errors."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error} ({name})") from error
