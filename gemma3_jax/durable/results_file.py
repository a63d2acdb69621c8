"""A file of results, a JSON line each, that a stopped program resumes. Its first line, the header, has their origin.

Unlike a journal it is never repaired in silence: a file of other results is refused, and so is a damaged one.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from gemma3_jax.durable import jsonl, os_errors

Append = Callable[[Sequence[dict]], None]


def read(
    path: pathlib.Path, header: Mapping, *, most: int, differences: Callable[[Mapping, Mapping], Sequence[str]]
) -> list[dict]:
    """Returns the results in the whole lines of a file, at most `most`; none if there is no file yet.

    `differences(old, new)` takes two headers that differ, and says in what.
    Raises: ValueError if the file has results of another header, holds anything else, or cannot be made.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a directory; results go to a file: name one in it")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file, and could not be resumed from; name another file")
    if not path.parent.is_dir():
        raise ValueError(
            f"{path} cannot be created: there is no directory {path.parent}; make it, or name another file"
        )
    content = path.read_bytes() if path.exists() else b""
    if _line(header).startswith(content):  # empty, or half of the header: its process was killed
        return []
    lines = content.splitlines(keepends=True)
    old_header = jsonl.parse(lines[0])
    if old_header is None or old_header.keys() != header.keys():
        raise ValueError(f"{path} is not a file of results: its first line is not their header; name another file")
    if old_header != dict(header):
        changes = "; ".join(differences(old_header, header))
        raise ValueError(f"{path} has results of another run: {changes}. Name another file, or delete this one")
    results = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.endswith(b"\n"):
            break  # half a line: its process was killed
        if (result := jsonl.parse(line)) is None or len(results) == most:
            problem = "is not a JSON object" if result is None else f"is after the last of {len(results)} results"
            raise ValueError(f"{path} is damaged: line {number} {problem}; name another file, or delete this one")
        results.append(result)
    return results


@contextlib.contextmanager
def appending(path: pathlib.Path, header: Mapping, num_results: int) -> Iterator[Append]:
    """Cuts the file back to the header and `num_results` results, and yields a function that appends more.

    That function raises ValueError if another process has written to the file meanwhile, OSError if it cannot write.
    """
    content = path.read_bytes() if path.exists() else b""
    whole = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
    size = len(b"".join(whole[: 1 + num_results]))
    with path.open("ab", buffering=0) as file:  # a buffer would be written again on closing
        file.truncate(size)

        def append(entries: Sequence[dict]) -> None:
            nonlocal size
            if os.fstat(file.fileno()).st_size != size:
                raise ValueError(f"{path} was changed by another process; name a file that no other process writes to")
            lines = list(map(_line, entries))
            for line, entry in zip(lines, entries, strict=True):
                assert repr(json.loads(line)) == repr(entry), f"JSON does not preserve {entry}"
            content = b"".join(lines)
            with os_errors.named(path):
                while content:
                    num_written = file.write(content)
                    size, content = size + num_written, content[num_written:]

        if not size:
            append([dict(header)])
        yield append


def _line(entry: Mapping) -> bytes:
    return json.dumps(entry).encode() + b"\n"
