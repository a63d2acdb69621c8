"""The documents that a model is evaluated on, and their sources."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence

_KINDS = "a .jsonl file of rows with a text, a text file, or a directory of these"


@dataclasses.dataclass(frozen=True)
class EvalDocument:
    """A text, and the source that results are grouped by."""

    source: str
    text: str


def read(path: pathlib.Path) -> list[EvalDocument]:
    """The documents of a file, or of all files under a directory, in the order of their names.

    A .jsonl file has a document on each line, {"text": ...}; any other file is one document. The source is the row's
    "source", or the file's path under the directory without its suffix. Hidden files and documents of white space are
    left out.
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
        rows = _rows(file, name.with_suffix("").as_posix())
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


def _rows(file: pathlib.Path, source: str) -> Iterator[EvalDocument]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"documents {file} cannot be read: {error.strerror or error}") from error
    try:
        text = content.decode("utf-8-sig")  # some editors write a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"documents {file}, line {line}: not UTF-8 ({error.reason})") from error
    if file.suffix != ".jsonl":
        yield EvalDocument(source, text)
        return
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() splits at U+2028, which JSON may have
        if line.strip():
            yield _row(line, source, f"documents {file}, line {number}")


def _row(line: str, source: str, position: str) -> EvalDocument:
    """The document of a line. `position` names the file and line in errors."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{position}: not JSON ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nested too deeply
        raise ValueError(f"{position}: not JSON that can be read ({error})") from error
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
