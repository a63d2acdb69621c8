"""Loss over the length of the context: how much a model gains from longer contexts."""

import re
from collections.abc import Mapping, Sequence

import matplotlib.figure
import matplotlib.ticker

from gemma3_jax import renamed
from gemma3_jax.report import chart, formatting, labeled_run, lines, run_data

# Names of evaluated values, with the context length or the first position of a bin: 64 or 64-127.
LAST_TOKENS = r"context/by_length/(\d{1,15})/nats"
POSITION = r"context/by_position/(\d{1,15})(?:-\d+)?"


def last_tokens(runs: Sequence[labeled_run.LabeledRun]) -> chart.Chart | None:
    """Loss of the last tokens over context length, after each stage; None if it was not evaluated."""
    return _evaluated(
        runs,
        LAST_TOKENS,
        name="context-last",
        title="Loss of the last tokens by context length",
        axis="tokens of context",
        caption="Falls to the right if more context helps; a rise beyond the sequence length of the stage (dotted) is "
        "what context extension has to remove.",
    )


def positions(runs: Sequence[labeled_run.LabeledRun]) -> chart.Chart | None:
    """Loss by position in the document; None if it was not evaluated."""
    return _evaluated(
        runs,
        POSITION,
        name="context-position",
        title="Loss by position",
        axis="position in the document (start of the bin), tokens",
        caption="The mean over a bin of positions, each up to twice its start: falls as long as the model uses what "
        "precedes; beyond the trained sequence length (dotted) only an extended model stays low.",
    )


def trained_length(run: run_data.RunData, stage: str) -> int | None:
    """Tokens of the sequences that a stage was trained on; None if the config does not have it."""
    stage_config = run_data.subconfig(run.config, "stages", stage)
    length = renamed.current(stage_config).get("seq_len")
    return length if isinstance(length, int) and length > 0 else None


def _evaluated(
    runs: Sequence[labeled_run.LabeledRun], pattern: str, *, name: str, title: str, axis: str, caption: str
) -> chart.Chart | None:
    curves: list[lines.Line] = []
    trained_lengths: set[int] = set()
    for run in runs:
        for number, row in enumerate(run.data.last_evaluations(pattern)):
            # A run has one color and its stages differ in dashes; in a single run each stage has its own color.
            role = chart.series_role(number if len(runs) == 1 else run.number)
            label = labeled_run.prefixed(runs, run, f"after {row['stage']}")
            x, y = zip(*_points(row, pattern), strict=True)
            curves.append(lines.Line(label, role, chart.series_dash(number), x, y))
            if length := trained_length(run.data, row["stage"]):
                trained_lengths.add(length)
    if not curves:
        return None

    def draw(figure: matplotlib.figure.Figure, is_narrow: bool) -> None:
        axes = figure.add_subplot()
        chart.set_margins(figure, top=24)
        for length in sorted(trained_lengths):
            axes.axvline(length, color=chart.COLORS["muted"], linewidth=1, linestyle=(0, (1.5, 2)))
            axes.annotate(
                f"trained at {formatting.tokens(length)}",
                (length, 1),
                (-3, 4),
                xycoords=axes.get_xaxis_transform(),
                textcoords="offset points",
                ha="right",
                color=chart.COLORS["muted"],
            )
        for line in curves:
            axes.plot(line.x, line.y, marker="o", markersize=4, color=chart.COLORS[line.role], linestyle=line.dash)
        axes.set_xscale("log", base=2)
        ticks = sorted({x for line in curves for x in line.x})
        axes.set_xticks(ticks[:: -(-len(ticks) // (5 if is_narrow else 9))])
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: formatting.tokens(value))
        axes.set_xlabel(axis)
        axes.set_ylabel("nats per token")
        axes.yaxis.set_major_locator(chart.round_ticks(5))

    return chart.Chart(
        name=name,
        title=title,
        caption=caption,
        draw=draw,
        legend=lines.legend(curves),
        narrow_height=250,
        numbers=lines.numbers(curves, "tokens", formatting.tokens, lambda value: formatting.decimals(value, 4)),
    )


def _points(row: Mapping, pattern: str) -> list[tuple[float, float]]:
    """(tokens, nats) in order."""
    matches = [(re.fullmatch(pattern, name), value) for name, value in row.items()]
    return sorted((float(match[1]), float(value)) for match, value in matches if match and run_data.is_number(value))
