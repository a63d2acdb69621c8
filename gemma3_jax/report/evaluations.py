"""Tables of the evaluations of a run: the last values of each stage, except those that charts show."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from gemma3_jax.report import context_curves, formatting, labeled_run, quantization_cost, run_data, samples, table

HELD_OUT = "held-out data"
IN_CHARTS = re.compile(rf"{context_curves.LAST_TOKENS}|{context_curves.POSITION}|context/by_length/\d+/standard_error")
MAX_ROWS = 24  # of a table; the others are collapsed
MAX_HALF_COLUMNS = 4  # of a table that takes half the width of the page


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskTable:
    """The values of one evaluation task."""

    title: str
    top: table.Table
    rest: table.Table | None  # rows beyond MAX_ROWS
    is_full: bool


def tables(runs: Sequence[labeled_run.LabeledRun]) -> list[TaskTable]:
    """A table for each task, with a column for each stage of each run."""
    columns = [
        (labeled_run.prefixed(runs, run, stage), values)
        for run in runs
        for stage, values in _last_values(run.data).items()
        if values
    ]
    names_by_task: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for _, values in columns for name in values):
        names_by_task.setdefault(name.partition("/")[0] if "/" in name else HELD_OUT, []).append(name)
    return [_task_table(task, names, columns) for task, names in names_by_task.items()]


def _task_table(task: str, names: Sequence[str], columns: Sequence[tuple[str, Mapping]]) -> TaskTable:
    columns = [(label, values) for label, values in columns if any(name in values for name in names)]
    head = ["", *(label for label, _ in columns)]
    rows = [
        [
            name.removeprefix(f"{task}/").replace("_", " "),
            *(formatting.number(values.get(name)) for _, values in columns),
        ]
        for name in names
    ]
    rest = rows[MAX_ROWS:]
    return TaskTable(
        title=task.capitalize(),
        top=table.Table(head=head, rows=rows[:MAX_ROWS]),
        rest=table.Table(head=head, rows=rest) if rest else None,
        is_full=len(columns) > MAX_HALF_COLUMNS,
    )


def _last_values(run: run_data.RunData) -> dict[str, dict]:
    """The last value of each name by stage, without those that charts show."""
    by_stage: dict[str, dict] = {}
    for row in run.evaluations:
        values = by_stage.setdefault(row["stage"], {})
        if quantization_cost.NATS[0] in row:
            row = {name: value for name, value in row.items() if "/" in name}
        for name, value in row.items():
            is_shown_elsewhere = name in run_data.ROW_KEYS or name == samples.COLUMN or IN_CHARTS.fullmatch(name)
            if run_data.is_number(value) and not is_shown_elsewhere:
                values[name] = value
    return by_stage
