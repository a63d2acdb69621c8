"""Documents that a model is measured on: texts, and where each is from."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence

_KINDS = "a .jsonl file of rows with a text, a text file, or a directory of these"


@dataclasses.dataclass(frozen=True)
class Document:
    """A text, and what results are grouped by."""

    source: str
    text: str


def read(path: pathlib.Path) -> list[Document]:
    """The documents of a file, or of all files under a directory in the order of their names.

    A .jsonl file has a document on each line, {"text": ...}; any other file is one. The source is the "source" of the
    row, or else the file's name without its suffix, as it stands under the directory. Left out are hidden files and
    documents of white space alone.
    Raises: ValueError if there is nothing, or anything in it cannot be read.
    """
    if not path.exists():
        raise ValueError(f"documents {path} does not exist; name {_KINDS}")
    files = [path]
    if path.is_dir():
        below = {file.relative_to(path): file for file in path.rglob("*") if file.is_file()}
        visible = [name for name in below if not any(part.startswith(".") for part in name.parts)]
        files = [below[name] for name in sorted(visible)]
    found = []
    for file in files:
        name = file.relative_to(path if path.is_dir() else path.parent)
        of_file = _rows(file, name.with_suffix("").as_posix())
        found += [document for document in of_file if document.text.strip()]
    if not found:
        raise ValueError(f"documents {path} has no text in it; name {_KINDS}")
    return found


def digest(texts: Sequence[Document]) -> str:
    """The same for the same documents in the same order."""
    found = hashlib.sha256()
    for document in texts:
        found.update(json.dumps(dataclasses.astuple(document)).encode() + b"\n")
    return found.hexdigest()


def _rows(file: pathlib.Path, source: str) -> Iterator[Document]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"documents {file} cannot be read: {error.strerror or error}") from error
    try:
        text = content.decode("utf-8-sig")  # editors may put a mark at the start
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"documents {file}, line {line}: not UTF-8 ({error.reason})") from error
    if file.suffix != ".jsonl":
        yield Document(source, text)
        return
    for number, line in enumerate(text.split("\n"), start=1):  # JSON may hold what else is called the end of a line
        if line.strip():
            yield _row(line, source, f"documents {file}, line {number}")


def _row(line: str, source: str, place: str) -> Document:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nested too deeply
        raise ValueError(f"{place}: not JSON that can be read ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise ValueError(
            f'{place}: no text; a row is {{"text": "...", "source": "..."}}, of which source may be absent'
        )
    source = row.get("source", source)
    if not isinstance(source, str) or not source:
        raise ValueError(f"{place}: source is {source!r:.40}; it must be a name, or absent")
    for name, value in (("text", row["text"]), ("source", source)):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{place}: {name} holds half a surrogate pair, which is no text") from error
    return Document(source, row["text"])
