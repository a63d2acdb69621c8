"""A measure of a model: items of work, what each comes to, and what all of them say. One driver runs every measure.

What is measured sees a `Subject`, which is a model with everything else taken away; so it runs on a checkpoint, in the
middle of training, and on a stand-in of a few lines.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from gemma3_jax.tokenizer import vocabulary

TOKENS_AT_ONCE = 131_072  # that a usual call of `measure` is about: some batches of each length; what a stop may cost


@runtime_checkable
class GoOn(Protocol):
    """Greedy continuations of some prompts, of at most so many ids.

    `stop`: each ends before the first id that ends a document or a turn; otherwise it has that many ids.
    """

    def __call__(self, prompts: Sequence[Sequence[int]], num_tokens: int, *, stop: bool = True) -> list[list[int]]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A model as measures see it."""

    tokenizer: vocabulary.Tokenizer
    score: Callable[[Sequence[Sequence[int]]], list[list[float]]]  # of each list: nats of each id after the first, <= 0
    go_on: GoOn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be measured, item by item. Results are dicts that JSON gives back as they were: no tuples in them."""

    name: str
    asked: Mapping  # settings and digests: two tasks with the same have the same items
    items: Sequence
    items_at_once: int
    measure: Callable[[Sequence], list[dict]]  # items -> the result of each
    summarise: Callable[[list[dict]], dict]  # all results, in order -> what they say; numbers, in dicts of dicts
    lines: Callable[[dict], list[str]]  # a table of that, for people


def run(
    task: Task, *, of: str, kept: pathlib.Path | None = None, progress: Callable[[int], None] = lambda num_items: None
) -> dict:
    """What the task says of the model that `of` names, going on from the results that the file `kept` has.

    `kept` is a line of JSON for each result, after a line that says of what; half a line at its end is measured again.
    Numbers that are not finite stand in it as Python's JSON has them: NaN, Infinity.
    Raises: ValueError if the file has results of another task or model or other settings, has anything else, cannot be
    there, or is written by another process; OSError if it cannot be written.
    """
    header = {"task": task.name, "of": of, "asked": _digest(task.asked), "num_items": len(task.items)}
    results = _read(kept, header) if kept else []
    progress(len(results))
    with _appending(kept, header, results) as append:
        while len(results) < len(task.items):
            items = task.items[len(results) : len(results) + task.items_at_once]
            found = task.measure(items)
            assert len(found) == len(items), f"{task.name}: {len(found)} results of {len(items)} items"
            append(found)
            results += found
            progress(len(found))
    return task.summarise(results)


def numbers(summary: Mapping) -> dict[str, float]:
    """The numbers of a summary by their places in it, as "by_source/news/bits_per_byte"; all else is left out."""
    found: dict[str, float] = {}
    for name, value in summary.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{inner}": number for inner, number in numbers(value).items()}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[str(name)] = float(value)
    return found


def _digest(asked: Mapping) -> str:
    """The same for the same settings, whatever their order."""
    return hashlib.sha256(json.dumps(dict(asked), sort_keys=True).encode()).hexdigest()


def _line(entry: Mapping) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _read(kept: pathlib.Path, header: Mapping) -> list[dict]:
    """The results in whole lines of a file, or none where there is no file yet. Raises: ValueError."""
    if kept.is_dir():
        raise ValueError(f"{kept} is a directory; results are kept in a file: name one in it")
    if not kept.parent.is_dir():
        raise ValueError(f"{kept} cannot be made: there is no directory {kept.parent}; make it, or name another file")
    content = kept.read_bytes() if kept.exists() else b""
    if _line(header).startswith(content):  # nothing, or what is left of a process that was killed at once
        return []
    lines = content.splitlines(keepends=True)
    found = _parse(lines[0])
    if found is None or found.keys() != header.keys():
        raise ValueError(f"{kept} is no file of results, as its first line does not say of what; name another file")
    if others := {name for name in header if found[name] != header[name]}:
        said = [f"task {found['task']}, not {header['task']}"] * ("task" in others)
        said += [f"model {found['of']}, not {header['of']}"] * ("of" in others)
        said += ["other settings, documents or tokenizer"] * bool(others & {"asked", "num_items"})
        raise ValueError(f"{kept} has results of another run: {'; '.join(said)}. Name another file, or delete this one")
    results = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.endswith(b"\n"):
            break  # half a line: its process was killed
        if (result := _parse(line)) is None or len(results) == header["num_items"]:
            problem = "is not a JSON object" if result is None else f"is after the last of {len(results)} results"
            raise ValueError(f"{kept} is damaged: line {number} {problem}; name another file, or delete this one")
        results.append(result)
    return results


def _parse(line: bytes) -> dict | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


@contextlib.contextmanager
def _appending(
    kept: pathlib.Path | None, header: Mapping, results: Sequence[dict]
) -> Iterator[Callable[[Sequence[dict]], None]]:
    """What adds results to the file, which until then has the header and `results` alone; None: adds them nowhere."""
    if kept is None:
        yield lambda found: None
        return
    content = kept.read_bytes() if kept.exists() else b""
    whole = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
    size = len(b"".join(whole[: 1 + len(results)]))
    with kept.open("ab") as file:
        file.truncate(size)

        def append(entries: Sequence[dict]) -> None:
            nonlocal size
            if os.fstat(file.fileno()).st_size != size:
                raise ValueError(
                    f"{kept} was changed by another process meanwhile; name a file that no other writes to"
                )
            lines = list(map(_line, entries))
            for line, entry in zip(lines, entries, strict=True):
                assert repr(json.loads(line)) == repr(entry), f"JSON does not give {entry} back as it is"
            size += file.write(b"".join(lines))
            file.flush()

        if not size:
            append([header])
        yield append
