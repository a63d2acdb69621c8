"""Sources of raw text: which pieces of work they fall into, and the records in each.

A unit of work is cut by the source alone (16 MiB of lines, a file, a row group), never by who works on it, so that the
same records come in the same order on one core or a thousand. Paths may be local or of any file system fsspec knows.
"""

import contextlib
import dataclasses
import json
import lzma
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence

import fsspec
import fsspec.utils

from gemma3_jax.data import records, settings
from gemma3_jax.data.prepare import builtin

BYTES_PER_UNIT = 1 << 24  # some seconds of work, which is what a stop may cost
ROWS_PER_UNIT = 8_192


@dataclasses.dataclass(frozen=True)
class Unit:
    """A piece of work: part of one file."""

    number: int  # among all units
    source: str
    source_number: int
    file: int
    path: str
    start: int  # first byte (lines), row group (parquet) or row (tfds, python) ...
    stop: int  # ... and the one after the last; -1: to the end
    size: int  # bytes, for progress
    version: str  # when the file was last changed: another file under the name is another source


@dataclasses.dataclass(frozen=True)
class Broken:
    """A record that cannot be read, and why."""

    place: records.Place
    problem: str


def units(sources: Mapping[str, settings.Source]) -> list[Unit]:
    """All units of all sources, in order.

    Raises: ValueError if a source has no files.
    """
    found: list[Unit] = []
    for source_number, (name, source) in enumerate(sources.items()):
        try:
            parts = list(_PARTS[source.kind](source))
        except ValueError as error:
            raise ValueError(f"{error} (config.sources.{name})") from error
        if not parts:
            raise ValueError(
                f"source {name} is empty: there is nothing in {', '.join(source.paths)} (config.sources.{name})"
            )
        for part in parts:
            found.append(Unit(len(found), name, source_number, *part))
    return found


def read(unit: Unit, source: settings.Source) -> Iterator[records.Record | Broken]:
    """The records of a unit, in order, thinned to the source's share.

    Raises: ValueError if the file itself is damaged.
    """
    for position, row in _rows(unit, source):
        place = records.Place(unit.source_number, unit.file, position)
        if source.fraction < 1 and records.uniform(0, "share", f"{unit.source}/{place}") >= source.fraction:
            continue
        yield Broken(place, row) if isinstance(row, str) else _record(place, row, source)


def _rows(unit: Unit, source: settings.Source) -> Iterator[tuple[int, Mapping | str]]:
    with _named(unit.path):
        yield from _ROWS[source.kind](unit, source)


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Whatever a reader says of a file, said with its name."""
    try:
        yield
    except (EOFError, ImportError, OSError, ValueError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, ModuleNotFoundError):
            raise  # a library of an extra: told with the extra's name
        raise ValueError(f"{path} cannot be read: {error}") from error


def _record(place: records.Place, row: Mapping, source: settings.Source) -> records.Record | Broken:
    """The record that a row stands for."""
    language_field = source.language_field or ("language" if source.kind == "python" else "")
    language = row.get(language_field) if language_field else source.language
    if not isinstance(language, str) or not language.replace("-", "").replace("_", "").isalnum():
        return Broken(place, f"field {language_field} is {repr(language)[:40]}, not the name of a language")
    if source.turns_field:
        turns = row.get(source.turns_field)
        if not _are_turns(turns):
            return Broken(place, f"field {source.turns_field} is not a list of {{role, content}}")
        texts, roles = zip(*((turn["content"], turn["role"]) for turn in turns), strict=True)
        return records.Record(place, source.bucket, language, texts, roles, row)
    values = [row.get(field) for field in source.fields]
    for field, value in zip(source.fields, values, strict=True):
        if not isinstance(value, str):
            return Broken(place, f"field {field} is {'absent' if value is None else repr(value)[:40]}, not text")
        if not _is_unicode(value):
            return Broken(place, f"field {field} holds half a surrogate pair, which is no text")
    return records.Record(place, source.bucket, language, ("\n".join(values),), (), row)


def _are_turns(turns: object) -> bool:
    return (
        isinstance(turns, list | tuple)
        and len(turns) > 0
        and all(
            isinstance(turn, Mapping)
            and isinstance(turn.get("role"), str)
            and isinstance(turn.get("content"), str)
            and _is_unicode(turn["content"])
            for turn in turns
        )
    )


def _is_unicode(text: str) -> bool:
    """False if UTF-8 cannot say it: JSON may spell half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def describe(sources: Mapping[str, settings.Source], units: Sequence[Unit], place: records.Place) -> str:
    """A place as a person would look for it; the unit of its file must be among `units`."""
    source = list(sources.values())[place.source]
    if source.kind == "python":
        kind = "documentation" if place.position % 2 else "code"
        return f"{builtin.files()[place.position // 2]} ({kind})"
    path = next(unit.path for unit in units if (unit.source_number, unit.file) == (place.source, place.file))
    if source.kind == "text":
        return path
    if source.kind != "jsonl":
        return f"{path}, row {place.position}"
    with _open(path) as file:  # lines are counted only when somebody asks
        num_before, left = 0, place.position
        while left and (block := file.read(min(left, 1 << 20))):
            num_before, left = num_before + block.count(b"\n"), left - len(block)
    return f"{path}, line {num_before + 1}"


def read_texts(path: str, fields: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(name, text) of every item of an evaluation set: a line of a .jsonl file, or a whole file of text.

    Raises: ValueError if the path matches nothing, or a line is not a JSON object.
    """
    source = settings.Source(kind="jsonl" if ".jsonl" in path else "text", paths=(path,))
    try:
        parts = list(_PARTS[source.kind](source))
    except ValueError as error:
        raise ValueError(f"{error} (config.decontamination.paths)") from error
    if not parts:
        raise ValueError(f"there is nothing in {path} (config.decontamination.paths)")
    for number, part in enumerate(parts):
        unit = Unit(number, "evaluation", 0, *part)
        for position, row in _rows(unit, source):
            where = describe({"": source}, [unit], records.Place(0, unit.file, position))
            if isinstance(row, str):
                raise ValueError(f"{where}: {row} (config.decontamination.paths)")
            chosen = [row.get(field) for field in fields] if fields else row.values()
            yield where, " ".join(value for value in chosen if isinstance(value, str))


def _files(source: settings.Source) -> Iterator[tuple[str, int, str]]:
    """(path, bytes, version) of every file. Raises: ValueError if one is not there, or nothing can go there."""
    for pattern in source.paths:
        with _named(pattern):
            files, path = fsspec.core.url_to_fs(pattern)
            is_glob = any(mark in path for mark in "*?[") and not files.exists(path)
            for found in sorted(files.glob(path)) if is_glob else [path]:
                if not files.exists(found):
                    raise ValueError("it does not exist")
                if not files.isdir(found):
                    name = found if "://" not in pattern else files.unstrip_protocol(found)
                    yield name, files.size(found) or 0, _version(files, found)
                elif not is_glob:
                    raise ValueError(f"it is a directory; name its files, as {pattern.rstrip('/')}/*.jsonl")


def _version(files: fsspec.AbstractFileSystem, path: str) -> str:
    try:
        return files.modified(path).isoformat()
    except NotImplementedError:  # not every file system knows: there files are told apart by their size alone
        return ""


def _whole_files(source: settings.Source):
    for file, (path, size, version) in enumerate(_files(source)):
        yield file, path, 0, -1, size, version


def _ranges_of_lines(source: settings.Source):
    for file, (path, size, version) in enumerate(_files(source)):
        if fsspec.utils.infer_compression(path):  # it cannot be entered in the middle
            yield file, path, 0, -1, size, version
        else:
            for start in range(0, size, BYTES_PER_UNIT):
                stop = min(start + BYTES_PER_UNIT, size)
                yield file, path, start, stop, stop - start, version


def _open(path: str):
    return fsspec.open(path, "rb", compression="infer").open()


def _lines(unit: Unit, source: settings.Source):
    with _open(unit.path) as file:
        if unit.start:
            file.seek(unit.start - 1)
            file.readline()  # the line that began before this range belongs to the range before
        position = file.tell()
        while unit.stop < 0 or position < unit.stop:
            line = file.readline()
            if not line:
                break
            if line.strip():
                yield position, _parse(line)
            position += len(line)


def _parse(line: bytes) -> Mapping | str:
    try:
        row = json.loads(line.decode("utf-8-sig"))  # editors may put a mark before the first line
    except UnicodeDecodeError as error:
        return f"not UTF-8 ({error.reason} at byte {error.start} of the line)"
    except json.JSONDecodeError as error:
        return f"not JSON (column {error.colno}: {error.msg})"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nested too deeply
        return f"not JSON that can be read ({error})"
    return row if isinstance(row, dict) else f"a JSON {type(row).__name__}, not an object"


def _texts(unit: Unit, source: settings.Source):
    with _open(unit.path) as file:
        content = file.read()
    try:
        yield 0, {source.fields[0]: content.decode()}
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield 0, f"line {line} is not UTF-8 ({error.reason})"


def _row_groups(source: settings.Source):
    from pyarrow import parquet

    for file, (path, _, version) in enumerate(_files(source)):
        with _named(path), fsspec.open(path, "rb") as content:
            metadata = parquet.ParquetFile(content).metadata
            for group in range(metadata.num_row_groups):
                yield file, path, group, group + 1, metadata.row_group(group).total_byte_size, version


def _parquet_rows(unit: Unit, source: settings.Source):
    from pyarrow import parquet

    with fsspec.open(unit.path, "rb") as content:
        table = parquet.ParquetFile(content)
        position = sum(table.metadata.row_group(group).num_rows for group in range(unit.start))
        for batch in table.iter_batches(row_groups=range(unit.start, unit.stop)):
            for row in _parquet_batch(batch):
                yield position, row
                position += 1


def _parquet_batch(batch) -> Iterator[Mapping | str]:
    """The rows of a batch; in the place of one that is not UTF-8, what is wrong with it."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(batch.num_rows):
            try:
                [row] = batch.slice(number, 1).to_pylist()
            except UnicodeDecodeError as error:
                row = f"not UTF-8 ({error.reason})"
            yield row


def _tfds_data(source: settings.Source):
    import tensorflow_datasets

    return tensorflow_datasets.data_source(
        source.dataset, split=source.split, data_dir=source.data_dir or None, download=False
    )


def _tfds_ranges(source: settings.Source):
    import tensorflow_datasets

    try:
        num_rows = len(_tfds_data(source))
    except (tensorflow_datasets.core.DatasetNotFoundError, FileNotFoundError, NotImplementedError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"TensorFlow dataset {source.dataset!r} cannot be read: {reason} (it must be prepared already, in the "
            "array_record format, under data_dir)"
        ) from error
    for start in range(0, num_rows, ROWS_PER_UNIT):
        stop = min(start + ROWS_PER_UNIT, num_rows)
        yield 0, source.dataset, start, stop, stop - start, ""


def _tfds_rows(unit: Unit, source: settings.Source):
    data = _tfds_data(source)
    for position in range(unit.start, unit.stop):
        row = {name: _decoded(value) for name, value in data[position].items()}
        yield position, row


def _decoded(value: object) -> object:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value  # not text; a field that is asked for says so


def _python_ranges(source: settings.Source):
    files = builtin.files()
    for start in range(0, len(files), 32):
        part = files[start : start + 32]
        yield 0, "python", start, start + len(part), sum(file.stat().st_size for file in part), sys.version


def _python_rows(unit: Unit, source: settings.Source):
    for number in range(unit.start, unit.stop):
        for kind, row in enumerate(builtin.rows(builtin.files()[number])):
            yield 2 * number + kind, row


_PARTS = {
    "jsonl": _ranges_of_lines,
    "text": _whole_files,
    "parquet": _row_groups,
    "tfds": _tfds_ranges,
    "python": _python_ranges,
}
_ROWS = {
    "jsonl": _lines,
    "text": _texts,
    "parquet": _parquet_rows,
    "tfds": _tfds_rows,
    "python": _python_rows,
}
