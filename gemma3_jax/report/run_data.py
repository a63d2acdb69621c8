"""Reads a run directory, also of a run in progress, and writes nothing there.

Only the metrics are required. Every other file that is missing or damaged is listed in `RunData.problems`, which the
page shows.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from gemma3_jax import provenance, renamed
from gemma3_jax.train import goodput, metrics

ROW_KEYS = ("stage", "step", "global_step", "batch_id", "time")  # identify a row; the other columns are its values
REQUIRED_COLUMNS = ("step", "global_step", "tokens_seen", "loss")
MAX_NUMBER = 1e39  # above all float32s; numbers beyond it cannot be drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageMetrics:
    """The metrics of one stage by column: a number for each logged step, NaN where there is none."""

    name: str
    columns: Mapping[str, np.ndarray]

    @property
    def tokens(self) -> np.ndarray:
        """Tokens seen in the whole run, after each step."""
        return self.columns["tokens_seen"]

    def column(self, name: str) -> np.ndarray:
        """A column; all NaN if no row has it."""
        return self.columns.get(name, np.full(self.tokens.shape, np.nan))

    def accepted(self, name: str) -> np.ndarray:
        """A column with NaN for steps that were skipped."""
        return np.where(self.column("skipped") == 1, np.nan, self.column(name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData:
    """The contents of a run directory."""

    path: pathlib.Path
    stages: Sequence[StageMetrics]  # those that have rows, in the order they ran
    skipped_steps: Sequence[Mapping]
    evaluations: Sequence[Mapping]  # values by name, "a/b" for nested ones, and ROW_KEYS
    seconds_by_kind: Mapping[str, float]  # of the goodput ledger; empty if it is missing
    config: Mapping  # empty if it is missing
    starts: Sequence[Mapping]
    problems: Sequence[str]  # a sentence for each file that is missing or damaged

    def has_column(self, name: str) -> bool:
        """Whether any row has a finite number in this column."""
        return any(np.isfinite(stage.column(name)).any() for stage in self.stages)

    def tokens_at(self, global_step: int) -> float:
        """Tokens seen after a step, interpolated between logged steps."""
        steps, tokens = self._steps_and_tokens
        return float(np.interp(global_step, steps, tokens))

    @functools.cached_property
    def _steps_and_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        steps = np.concatenate([stage.columns["global_step"] for stage in self.stages])
        return steps, np.concatenate([stage.tokens for stage in self.stages])

    def last_evaluations(self, pattern: str) -> list[Mapping]:
        """The last evaluation of each stage with a value whose name matches, in the order of their steps."""
        by_stage: dict[str, Mapping] = {}
        for row in self.evaluations:
            if any(re.fullmatch(pattern, name) and is_number(value) for name, value in row.items()):
                by_stage[row["stage"]] = {
                    name: value for name, value in row.items() if name in ROW_KEYS or value is not None
                }
        return sorted(by_stage.values(), key=lambda row: row["global_step"])

    def config_digest(self) -> str:
        """A digest of the resolved config; the order of its fields does not change it."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read(path: pathlib.Path) -> RunData:
    """Reads the run in a directory.

    Raises: ValueError if it has no metrics.
    """
    file, problems = path / metrics.FILE, []
    if not file.is_file():
        reason = f"it has no {metrics.FILE}" if path.is_dir() else "no such directory"
        raise ValueError(f"{path} is not a run: {reason}; pass the --workdir of train")
    stages = _by_stage(_read_lines(file, problems, _check_metrics))
    if not stages:
        raise ValueError(f"{file} has no readable row; train writes one for every logged step")
    entries = {
        name: _read_optional(path / name, problems, consequence, check)
        for name, consequence, check in (
            (metrics.SKIPPED_FILE, "", _check_row_keys),
            (metrics.EVALUATIONS_FILE, "", _check_row_keys),
            (goodput.FILE, "how the time was spent is unknown", _check_ledger_entry),
            (provenance.STARTS, "how the run was started is unknown", _check_mapping),
        )
    }
    return RunData(
        path=path,
        stages=stages,
        skipped_steps=entries[metrics.SKIPPED_FILE],
        evaluations=[_flatten(renamed.current_metrics(row)) for row in entries[metrics.EVALUATIONS_FILE]],
        seconds_by_kind=goodput.summarize(entries[goodput.FILE]) if entries[goodput.FILE] else {},
        config=_read_config(path / provenance.CONFIG, problems),
        starts=entries[provenance.STARTS],
        problems=problems,
    )


def labels(paths: Sequence[pathlib.Path]) -> list[str]:
    """A label for each directory: as many of its last parts as make the labels different.

    Raises: ValueError if a directory is listed twice.
    """
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        repeated = next(path for path, part in zip(paths, parts, strict=True) if parts.count(part) > 1)
        raise ValueError(f"{repeated} is listed twice; --compare takes runs other than --workdir, each once")
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def subconfig(config: Mapping, *path: str) -> Mapping:
    """The part of a config at a path of names; empty if it is missing, as in a config of another version."""
    for name in path:
        config = config.get(name)
        if not isinstance(config, Mapping):
            return {}
    return config


def _by_stage(rows: Iterator[Mapping]) -> list[StageMetrics]:
    rows_by_stage: dict[str, list[Mapping]] = {}
    for row in rows:
        rows_by_stage.setdefault(row["stage"], []).append(renamed.current_metrics(row))
    stages = []
    for name, stage_rows in rows_by_stage.items():
        columns = sorted({column for row in stage_rows for column in row} - {"stage", "batch_id"})
        stages.append(StageMetrics(name=name, columns={column: _column(stage_rows, column) for column in columns}))
    return sorted(stages, key=lambda stage: stage.columns["global_step"][0])


def _column(rows: Sequence[Mapping], name: str) -> np.ndarray:
    values = (row.get(name) for row in rows)
    return np.array([value if is_number(value) else np.nan for value in values], float)


def is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _check_metrics(row: object) -> None:
    _check_row_keys(row)
    for name in REQUIRED_COLUMNS:
        if not is_number(row[name]) and not (name == "loss" and row[name] is None):
            raise ValueError(name)


def _check_row_keys(row: object) -> None:
    if not isinstance(row["stage"], str) or not isinstance(row["global_step"], int):
        raise ValueError("stage or global_step")


def _check_ledger_entry(entry: object) -> None:
    _check_mapping(entry)
    if not goodput.is_entry(entry):
        raise ValueError("not of a ledger")


def _check_mapping(entry: object) -> None:
    entry.keys()


def _read_optional(
    path: pathlib.Path, problems: list[str], consequence: str, check: Callable[[object], None]
) -> list[Mapping]:
    """`consequence`: what the page lacks without the file; empty for a file that not every run has."""
    if path.is_file():
        return list(_read_lines(path, problems, check))
    if consequence:
        problems.append(f"{path.name} is missing: {consequence}.")
    return []


def _read_lines(path: pathlib.Path, problems: list[str], check: Callable[[object], None]) -> Iterator[Mapping]:
    """Yields the objects that `check` accepts, then adds to `problems` how many lines it did not."""
    content = path.read_bytes()
    # The last line may be incomplete, if the run is in progress or was killed.
    entries = [_parse(line) for line in content.splitlines()] if (parsed := _parse_all(content)) is None else parsed
    num_bad = 0
    for number, entry in enumerate(entries, start=1):
        try:
            check(entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            num_bad += number < len(entries) or content.endswith(b"\n")
            continue
        yield entry
    if num_bad:
        problems.append(f"{num_bad:,} of {len(entries):,} lines of {path.name} cannot be read and are left out.")


def _parse_all(content: bytes) -> list | None:
    """Parses all lines in one call, which saves seconds at 100,000 lines; None if any is damaged."""
    lines = content.splitlines()
    entries = _parse(b"[" + b",".join(lines) + b"]")
    return entries if entries is not None and len(entries) == len(lines) else None


def _parse(line: bytes) -> object:
    """None where it is not JSON, and in place of numbers beyond MAX_NUMBER, of NaN and of infinities."""
    try:
        return json.loads(line, parse_float=_float, parse_int=_int, parse_constant=lambda constant: None)
    except (ValueError, RecursionError):
        return None


def _float(text: str) -> float | None:
    value = float(text)
    return value if abs(value) < MAX_NUMBER else None


def _int(text: str) -> int | None:
    return int(text) if len(text) < 40 else None


def _flatten(row: Mapping, prefix: str = "") -> dict:
    flat: dict = {}
    for name, value in row.items():
        flat |= _flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _read_config(path: pathlib.Path, problems: list[str]) -> Mapping:
    if not path.is_file():
        problems.append(f"{path.name} is missing: the configuration is unknown.")
        return {}
    config = _parse(path.read_bytes())
    if isinstance(config, dict):
        return config
    problems.append(f"{path.name} cannot be read: the configuration is unknown.")
    return {}
