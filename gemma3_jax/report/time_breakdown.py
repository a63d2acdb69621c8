"""Where the time of a run went: a bar for each run, by kind of work."""

from collections.abc import Sequence

import matplotlib.figure

from gemma3_jax.report import chart, formatting, labeled_run, table
from gemma3_jax.train import goodput

# Label and color by kind, from what trains the model to what was lost.
KINDS = {
    "step": ("training steps", "series0"),
    "evaluate": ("evaluation", "series2"),
    "data": ("waiting for data", "series1"),
    "save": ("saving", "series3"),
    "compile": ("compiling", "series4"),
    "restore": ("restoring", "series5"),
    "init": ("starting up", "muted"),
    goodput.LOST: ("lost and repeated", "bad"),
}
assert set(KINDS) == {*goodput.KINDS, goodput.LOST}


def bars(runs: Sequence[labeled_run.LabeledRun]) -> chart.Chart | None:
    """Fractions of each run's wall time; None if no run has a goodput ledger."""
    timed = [run for run in runs if sum(run.data.seconds_by_kind.values()) > 0]
    if not timed:
        return None
    kinds = [kind for kind in KINDS if any(run.data.seconds_by_kind[kind] > 0 for run in timed)]

    def draw(figure: matplotlib.figure.Figure, is_narrow: bool) -> None:
        axes = figure.add_subplot()
        for row, run in enumerate(timed):
            total, left = sum(run.data.seconds_by_kind.values()), 0.0
            for kind in kinds:
                percentage = 100 * run.data.seconds_by_kind[kind] / total
                axes.barh(
                    row,
                    percentage,
                    0.62,
                    left=left,
                    color=chart.COLORS[KINDS[kind][1]],
                    edgecolor=chart.COLORS["surface"],
                    linewidth=1.5,
                )
                if percentage > (14 if is_narrow else 5):
                    center = left + percentage / 2
                    label_color = chart.COLORS["surface"]
                    axes.text(center, row, f"{percentage:.0f} %", ha="center", va="center", color=label_color)
                left += percentage
        label_width = chart.label_bars(axes, [run.label for run in timed] if len(runs) > 1 else [""], is_narrow)
        chart.set_margins(figure, left=label_width, right=20, top=0)
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of wall time")

    return chart.Chart(
        name="goodput",
        title="Where the time went",
        caption="All processes of the run together: the longer the first part, the better. Lost is work that was "
        "repeated because a process had ended without saving it.",
        draw=draw,
        legend=[chart.LegendEntry(label=KINDS[kind][0], role=KINDS[kind][1], mark="area") for kind in kinds],
        height=62 + 40 * len(timed),
        is_full=True,
        numbers=_numbers(runs, timed, kinds),
    )


def _numbers(
    runs: Sequence[labeled_run.LabeledRun], timed: Sequence[labeled_run.LabeledRun], kinds: Sequence[str]
) -> table.Table:
    head = ["", *(cell for run in timed for cell in (run.label if len(runs) > 1 else "time", "fraction"))]
    rows = [[KINDS[kind][0], *(cell for run in timed for cell in _time_and_fraction(run, kind))] for kind in kinds]
    totals = [formatting.duration(sum(run.data.seconds_by_kind.values())) for run in timed]
    rows.append(["total", *(cell for total in totals for cell in (total, formatting.percent(1.0)))])
    return table.Table(head=head, rows=rows)


def _time_and_fraction(run: labeled_run.LabeledRun, kind: str) -> tuple[str, str]:
    seconds = run.data.seconds_by_kind[kind]
    return formatting.duration(seconds), formatting.percent(seconds / sum(run.data.seconds_by_kind.values()))
