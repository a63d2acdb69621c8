"""The documents and chats that a model is evaluated on, and their sources: from the files that `prepare` reads."""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from gemma3_jax.data.prepare import chats, files, formats, sources
from gemma3_jax.tokenizer import chat

_KINDS = "a .jsonl file of rows with a text or with messages, a text file, or a directory of these"
_ROW = re.compile(rf'\s*\[?\s*\{{[^{{}}]*"({formats.TEXT}|{formats.TURNS})"\s*:')


@dataclasses.dataclass(frozen=True)
class EvalDocument:
    """A text, and the source that results are grouped by."""

    source: str
    text: str


@dataclasses.dataclass(frozen=True)
class EvalChat:
    """Turns of {role, content} that `tokenizer.chat` encodes, and the source that results are grouped by."""

    source: str
    turns: tuple[Mapping[str, str], ...]

    @property
    def text(self) -> str:
        """What the model writes."""
        return "".join(turn["content"] for turn in self.turns if chat.ROLES.get(turn["role"]) == "model")


def read(path: pathlib.Path) -> list[EvalDocument | EvalChat]:
    """The documents and chats of a file, a glob, or all files under a directory, in the order of their names.

    Files are read in the format that `prepare --input` recognizes: rows of {"text": ...}, rows of {"messages": ...}, or
    one text. A .json file without such rows is a text if it stands in a directory. The source is the row's "source", or
    the file's path under the directory or archive without its suffix. Hidden files and white space are left out.
    Raises: ValueError if there is nothing, or something cannot be read.
    """
    found = []
    for file, name in _files(path):
        has_rows = not path.is_dir()
        items = _items(file, name, has_rows)
        found += [item for item in items if isinstance(item, EvalChat) or item.text.strip()]
    if not found:
        raise ValueError(f"documents {path} has no text in it; name {_KINDS}")
    return found


def read_texts(path: pathlib.Path, task: str) -> list[EvalDocument]:
    """As `read`, for a task that has no use for chats. Raises: ValueError as `read`; if there is a chat."""
    found = read(path)
    if chat_source := next((item.source for item in found if isinstance(item, EvalChat)), None):
        raise ValueError(f"documents {path} has chats ({chat_source}), and {task} reads texts; perplexity scores chats")
    return found


def digest(documents: Sequence[EvalDocument | EvalChat]) -> str:
    """A digest of documents and chats in their order."""
    sha256 = hashlib.sha256()
    for document in documents:
        sha256.update(json.dumps(dataclasses.astuple(document)).encode() + b"\n")
    return sha256.hexdigest()


def _files(path: pathlib.Path) -> Iterator[tuple[str, pathlib.PurePosixPath]]:
    """Yields (file or member of an archive, its name from which the source is taken). Raises: ValueError."""
    patterns = [path]
    if path.is_dir():
        by_name = {file.relative_to(path): file for file in path.rglob("*") if file.is_file()}
        visible = [name for name in by_name if not any(part.startswith(".") for part in name.parts)]
        patterns = [by_name[name] for name in sorted(visible)]
    for pattern in patterns:
        try:
            with files.naming(str(pattern)):
                found = list(files.find(str(pattern)))
        except ValueError as error:
            raise ValueError(f"documents {error}; name {_KINDS}") from error
        for file, num_bytes, _ in found:
            member, _, _ = file.removeprefix("zip://").rpartition("::")
            under = path if path.is_dir() else path.parent
            name = member or (pattern.relative_to(under).as_posix() if pattern.exists() else pathlib.Path(file).name)
            if num_bytes:
                yield file, pathlib.PurePosixPath(name)


def _items(file: str, name: pathlib.PurePosixPath, has_rows: bool) -> Iterator[EvalDocument | EvalChat]:
    """The documents or chats of a file. `has_rows`: a .json is not a text."""
    if files.compression(file):
        name = name.with_suffix("")
    try:
        form = formats.Format("text")
        if has_rows or files.kind_of(file) != "json" or _begins_with_a_row(file):
            form = formats.recognize(file)
        for where, row in sources.rows(file, form.kind):
            yield _item(row, name.with_suffix("").as_posix(), where, form.is_chat)
    except ValueError as error:
        raise ValueError(f"documents {error}") from error


def _begins_with_a_row(file: str) -> bool:
    """Whether JSON, or what was to be JSON, is a row or a list of rows."""
    with files.naming(file), files.open_unpacked(file) as content:
        text = content.read().decode("utf-8-sig", errors="replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _ROW.match(text) is not None
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and not {formats.TEXT, formats.TURNS}.isdisjoint(first)


def _item(row: Mapping | str, source: str, where: Callable[[], str], is_chat: bool) -> EvalDocument | EvalChat:
    """The document or chat of a row of `sources.rows`, which may be a problem instead. Raises: ValueError."""
    if isinstance(row, str):
        raise ValueError(f"{where()}: {row}")
    source = source if row.get("source") is None else row["source"]
    if not isinstance(source, str) or not source or not chats.is_unicode(source):
        raise ValueError(f"{where()}: source is {source!r:.40}; it must be a name, or absent")
    if is_chat:
        if problem := chats.problem(row, formats.TURNS):
            raise ValueError(f"{where()}: {problem}")
        turns = tuple({key: turn[key] for key in ("role", "content")} for turn in row[formats.TURNS])
        try:
            chat.check_ends_with_model(chat.fold_system(turns))
        except ValueError as error:
            raise ValueError(f"{where()}: {error}") from error
        return EvalChat(source, turns)
    text = row.get(formats.TEXT)
    if not isinstance(text, str):
        raise ValueError(f'{where()}: no text; a row is {{"text": "...", "source": "..."}}, and source is optional')
    if not chats.is_unicode(text):
        raise ValueError(f"{where()}: text has half of a surrogate pair, which is not a character")
    return EvalDocument(source, text)
