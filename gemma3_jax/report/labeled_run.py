"""A run as the page shows it: with a short label and a line style of its own."""

import dataclasses
from collections.abc import Sequence

from gemma3_jax.report import chart, run_data


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabeledRun:
    """One of the runs of a page; number 0 is the run that the page is about."""

    number: int
    label: str
    data: run_data.RunData

    @property
    def line_style(self) -> dict:
        return chart.line_style(self.number)

    @property
    def color(self) -> str:
        return chart.COLORS[chart.series_role(self.number)]


def legend(runs: Sequence[LabeledRun]) -> list[chart.LegendEntry]:
    """The legend that tells runs apart; empty for a single run."""
    if len(runs) == 1:
        return []
    return [chart.legend_line(run.label, run.number) for run in runs]


def prefixed(runs: Sequence[LabeledRun], run: LabeledRun, text: str) -> str:
    """The text, after the label of its run if there are several runs."""
    return text if len(runs) == 1 else f"{run.label}: {text}"
