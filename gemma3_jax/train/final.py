"""The final value of a metric: what the page of a run, its last line and the table of the demo call so."""

import math
from collections.abc import Iterable, Mapping, Sequence

ROWS = 20  # of the metrics, as one step is noisy


def values(column: Iterable[float]) -> list[float]:
    """Returns the finite numbers at the end of a column of accepted steps, at most ROWS."""
    return [float(value) for value in column if math.isfinite(value)][-ROWS:]


def mean(column: Iterable[float]) -> float:
    """Returns the mean of the final values of a column; NaN if there are none."""
    final = values(column)
    return sum(final) / len(final) if final else math.nan


def of_rows(rows: Sequence[Mapping], column: str) -> float:
    """Returns the final value of a column in the last stage of the rows of a run's metrics; NaN if there is none."""
    applied = (row for row in rows if row.get("stage") == rows[-1].get("stage") and not row.get("skipped"))
    found = (row.get(column) for row in applied)
    return mean(value for value in found if isinstance(value, int | float))
