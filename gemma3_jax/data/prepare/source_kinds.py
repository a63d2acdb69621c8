"""The kinds of sources: how each falls into units of work, and how the rows of a unit are read.

A unit is cut by the source alone (16 MiB of lines, a file, a row group), never by the number of workers, so that the
same records come in the same order on one core or a thousand.
"""

import json
import sys
from collections.abc import Iterator, Mapping

from gemma3_jax.data.prepare import builtin, files, json_array, settings

BYTES_PER_UNIT = 1 << 24  # some seconds of work, which is what a stop may cost
ROWS_PER_BATCH = 1_024  # of Parquet, as Python objects at a time
ROWS_PER_UNIT = 8_192

Cut = tuple[int, str, int, int, int, str]  # file, path, start, stop, size, version: the fields of `sources.Unit`


def cut(source: settings.SourceConfig) -> list[Cut]:
    """Returns the units of a source, in order. Raises: ValueError if a file cannot be read."""
    return list(_CUTTERS[source.kind](source))


def read_rows(unit, source: settings.SourceConfig) -> Iterator[tuple[int, Mapping | str]]:
    """Yields (position, row) of a `sources.Unit`; instead of a row that cannot be read, the problem as text.

    Raises: ValueError if the file itself is damaged.
    """
    with files.naming(unit.path):
        yield from _READERS[source.kind](unit, source)


def _files(source: settings.SourceConfig) -> Iterator[tuple[str, int, str]]:
    """Yields (path, bytes, version) of every file, once. Raises: ValueError if one is missing or unreadable."""
    paths = set()
    for pattern in source.paths:
        with files.naming(pattern):
            for path, size, version in files.find(pattern):
                if path not in paths:
                    paths.add(path)
                    yield path, size, version


def _cut_by_file(source: settings.SourceConfig):
    for file, (path, size, version) in enumerate(_files(source)):
        yield file, path, 0, -1, size, version


def _cut_by_bytes(source: settings.SourceConfig):
    for file, (path, size, version) in enumerate(_files(source)):
        if files.is_packed(path):  # it cannot be read from the middle
            yield file, path, 0, -1, size, version
        else:
            for start in range(0, size, BYTES_PER_UNIT):
                stop = min(start + BYTES_PER_UNIT, size)
                yield file, path, start, stop, stop - start, version


def _read_lines(unit, source: settings.SourceConfig):
    with files.open_unpacked(unit.path) as file:
        position = 0
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
        row = _value(line)
    except ValueError as error:
        return str(error)
    return row if isinstance(row, dict) else f"a JSON {type(row).__name__}, not an object"


def _value(content: bytes) -> object:
    """The JSON value of a line. Raises: ValueError."""
    try:
        text = content.decode("utf-8-sig")  # editors may write a byte order mark
        return json.loads(text.rstrip("\r\n"))  # with its end, an error there is in column 1 of the next line
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start} of the line)") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON (column {error.colno}: {error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nested too deeply
        raise ValueError(f"not JSON that can be read ({error})") from error


def _read_array(unit, source: settings.SourceConfig):
    with files.open_unpacked(unit.path) as file:
        for position, row in enumerate(json_array.elements(file.read)):
            yield position, row if isinstance(row, dict) else f"a JSON {type(row).__name__}, not an object"


def _read_text(unit, source: settings.SourceConfig):
    with files.open_unpacked(unit.path) as file:
        content = file.read()
    try:
        yield 0, {source.fields[0]: content.decode("utf-8-sig")}  # editors may write a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield 0, f"line {line} is not UTF-8 ({error.reason})"


def _cut_by_row_groups(source: settings.SourceConfig):
    from pyarrow import parquet

    for file, (path, _, version) in enumerate(_files(source)):
        with files.naming(path), files.open_unpacked(path) as content:
            metadata = parquet.ParquetFile(content).metadata
            for group in range(metadata.num_row_groups):
                yield file, path, group, group + 1, metadata.row_group(group).total_byte_size, version


def _read_parquet(unit, source: settings.SourceConfig):
    from pyarrow import parquet

    with files.open_unpacked(unit.path) as content:
        table = parquet.ParquetFile(content)
        position = sum(table.metadata.row_group(group).num_rows for group in range(unit.start))
        for batch in table.iter_batches(ROWS_PER_BATCH, row_groups=range(unit.start, unit.stop)):
            for row in _parquet_batch(batch):
                yield position, row
                position += 1


def _parquet_batch(batch) -> Iterator[Mapping | str]:
    """Yields the rows of a batch; instead of one that is not UTF-8, the problem."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(batch.num_rows):
            try:
                [row] = batch.slice(number, 1).to_pylist()
            except UnicodeDecodeError as error:
                row = f"not UTF-8 ({error.reason})"
            yield row


def _tfds_data(source: settings.SourceConfig):
    import tensorflow_datasets

    return tensorflow_datasets.data_source(
        source.dataset, split=source.split, data_dir=source.data_dir or None, download=False
    )


def _cut_tfds(source: settings.SourceConfig):
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


def _read_tfds(unit, source: settings.SourceConfig):
    data = _tfds_data(source)
    for position in range(unit.start, unit.stop):
        row = {name: _decoded(value) for name, value in data[position].items()}
        yield position, row


def _decoded(value: object) -> object:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value  # not text: an error for the fields that are used


def _cut_python(source: settings.SourceConfig):
    modules = builtin.files()
    for start in range(0, len(modules), 32):
        part = modules[start : start + 32]
        yield 0, "python", start, start + len(part), sum(file.stat().st_size for file in part), sys.version


def _read_python(unit, source: settings.SourceConfig):
    for number in range(unit.start, unit.stop):
        for kind, row in enumerate(builtin.rows(builtin.files()[number])):
            yield 2 * number + kind, row


_CUTTERS = {
    "jsonl": _cut_by_bytes,
    "json": _cut_by_file,
    "text": _cut_by_file,
    "parquet": _cut_by_row_groups,
    "tfds": _cut_tfds,
    "python": _cut_python,
}
_READERS = {
    "jsonl": _read_lines,
    "json": _read_array,
    "text": _read_text,
    "parquet": _read_parquet,
    "tfds": _read_tfds,
    "python": _read_python,
}
