"""Labelled lines over token counts, with their legend and the table of their numbers."""

import dataclasses
from collections.abc import Callable, Sequence

from gemma3_jax.report import chart, table


@dataclasses.dataclass(frozen=True)
class Line:
    label: str
    role: str  # of its color
    dash: object
    x: Sequence[float]
    y: Sequence[float]


def legend(lines: Sequence[Line]) -> list[chart.LegendEntry]:
    return [chart.LegendEntry(label=line.label, role=line.role, dash=line.dash) for line in lines]


def numbers(
    lines: Sequence[Line], x_name: str, format_x: Callable[[float], str], format_y: Callable[[float], str]
) -> table.Table:
    """A row for each x of any line, a column for each line."""
    points = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    rows = [
        [format_x(x), *(format_y(y_by_x[x]) if x in y_by_x else None for y_by_x in points)]
        for x in sorted({x for y_by_x in points for x in y_by_x})
    ]
    return table.Table(head=[x_name, *(line.label for line in lines)], rows=rows)
