"""An evaluation task: items, the result of each, and a summary of all; and the one driver that runs every task."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

from gemma3_jax import console
from gemma3_jax.durable import results_file

BATCH_TOKENS = 131_072  # in a usual call of `measure`: some batches of each length, and what an interruption may cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """An evaluation, item by item. Results are dicts that survive a round trip through JSON: they have no tuples."""

    name: str
    identity: Mapping  # settings and digests: two tasks with the same identity have the same items
    items: Sequence
    batch_size: int  # items in a call of `measure`
    measure: Callable[[dict, Sequence], list[dict]]  # (parameters, items) -> the result of each item
    summarize: Callable[[list[dict]], dict]  # all results, in order -> figures, in dicts of dicts
    format_lines: Callable[[dict], list[str]]  # the summary -> a table for people
    # (item, what a file has for it) -> whether `measure` may have made it
    is_result: Callable[[object, dict], bool] = lambda item, result: True


def run(
    task: Task,
    load_params: Callable[[], dict],
    *,
    model_id: str,
    path: pathlib.Path | None = None,
    progress: Callable[[int], None] = console.ignore,
) -> dict:
    """The summary of a task for a model, resuming from the results in the file `path`.

    `load_params` is called once, if there is something to measure. The file has a header, then a line of JSON for each
    result; an incomplete line at its end is measured again. Non-finite numbers stand in it as NaN and Infinity, as in
    Python's JSON.
    Raises: ValueError if the file has other results (another task, model or settings), is not such a file, cannot be
    created, or is written by another process; OSError if it cannot be written.
    """
    # The header's names are part of the file format.
    header = {"task": task.name, "of": model_id, "asked": _digest(task.identity), "num_items": len(task.items)}
    results = results_file.read(path, header, most=len(task.items), differences=_differences) if path else []
    for number, (item, result) in enumerate(zip(task.items, results, strict=False), start=2):
        if not task.is_result(item, result):
            raise ValueError(
                f"{path} is damaged: line {number} is not the result of item {number - 1} of {task.name}; name another "
                "file, or delete this one"
            )
    progress(len(results))
    nowhere = contextlib.nullcontext(lambda entries: None)
    with results_file.appending(path, header, len(results)) if path else nowhere as append:
        params = load_params() if len(results) < len(task.items) else {}
        while len(results) < len(task.items):
            items = task.items[len(results) : len(results) + task.batch_size]
            new_results = task.measure(params, items)
            assert len(new_results) == len(items), f"{task.name}: {len(new_results)} results of {len(items)} items"
            append(new_results)
            results += new_results
            progress(len(new_results))
    return task.summarize(results)


def are_floats(values: object, count: int) -> bool:
    """Whether this is a list of so many floats, which may be NaN."""
    return isinstance(values, list) and len(values) == count and all(isinstance(value, float) for value in values)


def numbers(summary: Mapping) -> dict[str, float]:
    """The numbers of a summary by path, as "by_source/news/bits_per_byte"; other values are left out."""
    flat: dict[str, float] = {}
    for name, value in summary.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{inner}": number for inner, number in numbers(value).items()}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[str(name)] = float(value)
    return flat


def _digest(identity: Mapping) -> str:
    """A digest that does not depend on the order of names."""
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()


def _differences(old: Mapping, new: Mapping) -> list[str]:
    """Returns how the run of an existing file differs from this one, from their headers."""
    differing = {name for name in new if old[name] != new[name]}
    reasons = [f"task {old['task']}, not {new['task']}"] * ("task" in differing)
    reasons += [f"model {old['of']}, not {new['of']}"] * ("of" in differing)
    return reasons + ["other settings, documents or tokenizer"] * bool(differing & {"asked", "num_items"})
