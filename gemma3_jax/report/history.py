"""A run directory as plain data. Nothing is written there; a run that is still at work can be read.

Only the rows have to be there. What else is missing or cannot be read stands in `Run.missing`, for the page to say.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from gemma3_jax import provenance
from gemma3_jax.train import goodput, metrics

PLACE = ("stage", "step", "global_step", "batch_id", "time")  # where a row belongs; all else in it is what it says
NEEDED = ("step", "global_step", "tokens_seen", "loss")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """The rows of one stage, by column: a number for each logged step, NaN where there is none."""

    name: str
    columns: Mapping[str, np.ndarray]

    @property
    def tokens(self) -> np.ndarray:
        """Tokens seen in the whole run, after each step."""
        return self.columns["tokens_seen"]

    def column(self, name: str) -> np.ndarray:
        """NaN everywhere if the rows have no such number."""
        return self.columns.get(name, np.full(self.tokens.shape, np.nan))

    def believed(self, name: str) -> np.ndarray:
        """A column with NaN for steps that were skipped."""
        return np.where(self.column("skipped") == 1, np.nan, self.column(name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """All that a run directory says."""

    path: pathlib.Path
    stages: Sequence[Stage]  # that have rows, in the order they were walked
    skipped: Sequence[Mapping]
    evaluations: Sequence[Mapping]  # numbers by name, "a/b" for what lies in a dict; and PLACE
    seconds: Mapping[str, float]  # by kind; empty if the ledger is missing
    config: Mapping  # empty if it is missing
    starts: Sequence[Mapping]
    missing: Sequence[str]  # a sentence for each file that is not there or not whole

    def has(self, name: str) -> bool:
        """Whether any row has this number."""
        return any(np.isfinite(stage.column(name)).any() for stage in self.stages)

    def tokens_at(self, global_step: int) -> float:
        """Tokens seen after a step, between two logged ones by a straight line."""
        steps, tokens = self._steps_and_tokens
        return float(np.interp(global_step, steps, tokens))

    @functools.cached_property
    def _steps_and_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        steps = np.concatenate([stage.columns["global_step"] for stage in self.stages])
        return steps, np.concatenate([stage.tokens for stage in self.stages])

    def last_evaluations(self, pattern: str) -> list[Mapping]:
        """The last evaluation of every stage that has a number whose whole name is so, in the order of the steps."""
        found: dict[str, Mapping] = {}
        for row in self.evaluations:
            if any(re.fullmatch(pattern, name) and _is_number(value) for name, value in row.items()):
                found[row["stage"]] = {name: value for name, value in row.items() if name in PLACE or value is not None}
        return sorted(found.values(), key=lambda row: row["global_step"])

    def config_digest(self) -> str:
        """The same for the same resolved config."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read(path: pathlib.Path) -> Run:
    """The run in a directory.

    Raises: ValueError if it has no rows.
    """
    file, missing = path / metrics.FILE, []
    if not file.is_file():
        problem = f"has no {metrics.FILE}" if path.is_dir() else "is no directory"
        raise ValueError(f"{path} is not a run: it {problem}; name what was the --workdir of train")
    stages = _by_stage(_lines(file, missing, _check_row))
    if not stages:
        raise ValueError(f"{file} has no row that can be read; train writes one for every logged step")
    told = {
        name: _optional(path / name, missing, why, check)
        for name, why, check in (
            (metrics.SKIPPED_FILE, "", _check_place),
            (metrics.EVALUATIONS_FILE, "", _check_place),
            (goodput.FILE, "where the time went is not known", _check_spent),
            (provenance.STARTS, "how the run was started is not known", _check_start),
        )
    }
    return Run(
        path=path,
        stages=stages,
        skipped=told[metrics.SKIPPED_FILE],
        evaluations=[_flat(row) for row in told[metrics.EVALUATIONS_FILE]],
        seconds=goodput.summarise(told[goodput.FILE]) if told[goodput.FILE] else {},
        config=_config(path / provenance.CONFIG, missing),
        starts=told[provenance.STARTS],
        missing=missing,
    )


def labels(paths: Sequence[pathlib.Path]) -> list[str]:
    """A short name for each directory: as many of its last parts as tell it from the others.

    Raises: ValueError if one is named twice.
    """
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        twice = next(path for path, found in zip(paths, parts, strict=True) if parts.count(found) > 1)
        raise ValueError(f"{twice} is named twice; --compare takes runs other than --workdir, each once")
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(found[-length:]) for found in parts]
        if len(set(names)) == len(names):
            break
    return names


def _by_stage(rows: Iterator[Mapping]) -> list[Stage]:
    found: dict[str, list[Mapping]] = {}
    for row in rows:
        found.setdefault(row["stage"], []).append(row)
    stages = []
    for name, of_stage in found.items():
        columns = sorted({column for row in of_stage for column in row} - {"stage", "batch_id"})
        stages.append(Stage(name=name, columns={column: _column(of_stage, column) for column in columns}))
    return sorted(stages, key=lambda stage: stage.columns["global_step"][0])


def _column(rows: Sequence[Mapping], name: str) -> np.ndarray:
    values = [row.get(name) for row in rows]
    try:
        return np.array(values, float)  # null is NaN
    except (ValueError, TypeError):
        return np.array([value if _is_number(value) else np.nan for value in values], float)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _check_row(row: Mapping) -> None:
    _check_place(row)
    for name in NEEDED:
        if not isinstance(row[name], int | float) and not (name == "loss" and row[name] is None):
            raise ValueError(name)


def _check_place(row: Mapping) -> None:
    if not isinstance(row["stage"], str) or not isinstance(row["global_step"], int):
        raise ValueError("place")


def _check_spent(entry: Mapping) -> None:
    goodput.summarise([entry])


def _check_start(entry: Mapping) -> None:
    entry.keys()


def _optional(path: pathlib.Path, missing: list[str], why: str, check: Callable[[Mapping], None]) -> list[Mapping]:
    """`why`: what a page without it lacks; empty: a run may well be without it."""
    if path.is_file():
        return list(_lines(path, missing, check))
    if why:
        missing.append(f"{path.name} is not there: {why}.")
    return []


def _lines(path: pathlib.Path, missing: list[str], check: Callable[[Mapping], None]) -> Iterator[Mapping]:
    """The objects of a file that `check` does not raise at; how many others there were is noted in the end."""
    content = path.read_bytes()
    # The last line of a run that is at work, or was killed, may be half a line.
    entries = [_parse(line) for line in content.splitlines()] if (bulk := _parse_all(content)) is None else bulk
    num_bad = 0
    for number, entry in enumerate(entries, start=1):
        try:
            check(entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            num_bad += number < len(entries) or content.endswith(b"\n")
            continue
        yield entry
    if num_bad:
        missing.append(f"{num_bad:,} of {len(entries):,} lines of {path.name} cannot be read, and are left out.")


def _parse_all(content: bytes) -> list | None:
    """Every line, if all are whole: in one call, as 100,000 calls take seconds longer."""
    lines = content.splitlines()
    found = _parse(b"[" + b",".join(lines) + b"]")
    return found if found is not None and len(found) == len(lines) else None


def _parse(line: bytes) -> object:
    """None where it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def fields(config: Mapping, *path: str) -> Mapping:
    """What a config has at a path of names; nothing where it is not as it is written today."""
    for name in path:
        config = config.get(name)
        if not isinstance(config, Mapping):
            return {}
    return config


def _flat(row: Mapping, prefix: str = "") -> dict:
    found: dict = {}
    for name, value in row.items():
        found |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _config(path: pathlib.Path, missing: list[str]) -> Mapping:
    if not path.is_file():
        missing.append(f"{path.name} is not there: what the run was asked is not known.")
        return {}
    found = _parse(path.read_bytes())
    if isinstance(found, dict):
        return found
    missing.append(f"{path.name} cannot be read: what the run was asked is not known.")
    return {}
