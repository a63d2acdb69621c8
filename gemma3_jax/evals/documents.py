"""The documents that a model is evaluated on, and their sources."""

import bz2
import dataclasses
import gzip
import hashlib
import json
import lzma
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence

_KINDS = "a .jsonl file of rows with a text, a text file, or a directory of these"
_ROWS = (".jsonl", ".ndjson")
_ROW = re.compile(r'\s*\[?\s*\{[^{}]*"text"\s*:')
_UNPACK = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
# Of files that are no text and no rows, whatever they hold.
_REFUSED = (
    ".zip",
    ".tar",
    *(".tgz", ".tbz", ".tbz2", ".txz", ".tzst"),
    *(".7z", ".rar"),
    *(".zst", ".lz4", ".br", ".snappy", ".sz", ".Z"),
    ".parquet",
    ".arrow",
    ".array_record",
    ".pdf",
    ".docx",
)


@dataclasses.dataclass(frozen=True)
class EvalDocument:
    """A text, and the source that results are grouped by."""

    source: str
    text: str


def read(path: pathlib.Path) -> list[EvalDocument]:
    """The documents of a file, or of all files under a directory, in the order of their names.

    A .jsonl or .ndjson file has a document on each line, {"text": ...}; a .json file is one such row, or a list of
    them. Any other text file is one document, and so is a .json file without rows in a directory. Files may be
    compressed (.gz, .bz2, .xz). The source is the row's "source", or the file's path under the directory without its
    suffix. Hidden files and documents of white space are left out.
    Raises: ValueError if there is no document, or something cannot be read.
    """
    if not path.exists():
        raise ValueError(f"documents {path} does not exist; name {_KINDS}")
    files = [path]
    if path.is_dir():
        by_name = {file.relative_to(path): file for file in path.rglob("*") if file.is_file()}
        visible = [name for name in by_name if not any(part.startswith(".") for part in name.parts)]
        files = [by_name[name] for name in sorted(visible)]
    documents = []
    for file in files:
        name = file.relative_to(path if path.is_dir() else path.parent)
        rows = _rows(file, name, has_rows=not path.is_dir())
        documents += [document for document in rows if document.text.strip()]
    if not documents:
        raise ValueError(f"documents {path} has no text in it; name {_KINDS}")
    return documents


def digest(documents: Sequence[EvalDocument]) -> str:
    """A digest of the documents in their order."""
    sha256 = hashlib.sha256()
    for document in documents:
        sha256.update(json.dumps(dataclasses.astuple(document)).encode() + b"\n")
    return sha256.hexdigest()


def _rows(file: pathlib.Path, name: pathlib.Path, has_rows: bool) -> Iterator[EvalDocument]:
    """The documents of a file; by its name without suffixes they are called. `has_rows`: a .json is not a text."""
    content = _content(file)
    if name.suffix.lower() in _UNPACK:
        name = name.with_suffix("")
    source, suffix = name.with_suffix("").as_posix(), name.suffix.lower()
    try:
        text = content.decode("utf-8-sig")  # some editors write a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"documents {file}, line {line}: not UTF-8 ({error.reason})") from error
    if suffix in _ROWS:
        for number, line in enumerate(text.split("\n"), start=1):  # splitlines() splits at U+2028, which JSON may have
            if line.strip():
                position = f"documents {file}, line {number}"
                yield _row(_parse(line, position), source, position)
    elif suffix == ".json" and (has_rows or _begins_with_a_row(text)):
        value = _parse(text, f"documents {file}")
        rows = value if isinstance(value, list) else [value]
        yield from (_row(row, source, f"documents {file}, row {number}") for number, row in enumerate(rows, start=1))
    else:
        yield EvalDocument(source, text)


def _content(file: pathlib.Path) -> bytes:
    packing = file.suffix.lower()
    for suffix in (file.suffix, packing, pathlib.Path(file.stem).suffix.lower() if packing in _UNPACK else ""):
        if suffix in _REFUSED:
            raise ValueError(f"documents {file} is a {suffix} file, which is not read; unpack it, or name {_KINDS}")
    try:
        content = file.read_bytes()
        return _UNPACK.get(packing, bytes)(content)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ValueError(f"documents {file} cannot be read: {reason or error}") from error


def _begins_with_a_row(text: str) -> bool:
    """Whether JSON, or what was to be JSON, is a row or a list of rows."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _ROW.match(text) is not None
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and "text" in first


def _parse(text: str, position: str) -> object:
    """The JSON value of a text. `position` names the file and line in errors."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; a file with a row on each line is called .jsonl" if error.msg == "Extra data" else ""
        raise ValueError(f"{position}: not JSON ({error.msg}, column {error.colno}){hint}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nested too deeply
        raise ValueError(f"{position}: not JSON that can be read ({error})") from error


def _row(row: object, source: str, position: str) -> EvalDocument:
    """The document of a row. `position` names the file and line in errors."""
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise ValueError(f'{position}: no text; a row is {{"text": "...", "source": "..."}}, and source is optional')
    source = row.get("source", source)
    if not isinstance(source, str) or not source:
        raise ValueError(f"{position}: source is {source!r:.40}; it must be a name, or absent")
    for name, value in (("text", row["text"]), ("source", source)):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{position}: {name} has half of a surrogate pair, which is not a character") from error
    return EvalDocument(source, row["text"])
