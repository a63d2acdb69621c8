"""Curves of a run's metrics over the tokens it has seen."""

import dataclasses
from collections.abc import Sequence

import matplotlib.axes
import matplotlib.figure
import numpy as np

from gemma3_jax.report import chart, downsample, formatting, labeled_run, run_data, table

MIN_STAGE_POINTS = 80  # if the stage has as many rows
LEAST_SPAN = 0.05  # of the vertical axis, as a fraction of its highest value: less would make a finding of noise
BAND_OPACITY = 0.18
NAME_ROW_PIXELS = 15  # height of a row of stage names
LETTER_PIXELS = 7.2  # width of a letter of a stage's name, at most
MAX_NAME_LETTERS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricCurve:
    """A column of the metrics, and how its chart presents it."""

    column: str
    name: str
    title: str
    axis: str  # with its unit
    caption: str  # one sentence, without its full stop: what to look for
    scale: float = 1.0
    from_zero: bool = False
    is_full: bool = False
    held_out: str = ""  # a value of the evaluations, drawn as points
    with_skipped: bool = False


LOSS = MetricCurve(
    column="loss",
    name="loss",
    title="Loss by stage",
    axis="nats per token",
    caption="The training loss of each stage: it should fall within a stage, and may jump where the next stage begins "
    "with other data or another objective",
    is_full=True,
    with_skipped=True,
)
CROSS_ENTROPY = MetricCurve(
    column="cross_entropy",
    name="cross-entropy",
    title="Next-token cross-entropy",
    axis="nats per token",
    caption="How well the student predicts the actual next token while it is trained on the teacher's distribution: it "
    "should fall with the loss",
)
BITS_PER_BYTE = MetricCurve(
    column="bits_per_byte",
    name="bits-per-byte",
    title="Bits per byte",
    axis="bits per byte of text",
    caption="Does not depend on the tokenizer, so it compares with other models; points are held-out evaluations, "
    "which should lie on the line",
    held_out="bits_per_byte",
)
LEARNING_RATE = MetricCurve(
    column="learning_rate",
    name="learning-rate",
    title="Learning rate",
    axis="learning rate",
    caption="Each stage has its own warmup and decay; the loss should not jump where the learning rate peaks",
    from_zero=True,
)
GRADIENT_NORM = MetricCurve(
    column="gradient_norm",
    name="gradient-norm",
    title="Gradient norm",
    axis="norm before clipping",
    caption="A norm that grows while the loss does not fall is the first sign of divergence",
    from_zero=True,
)
THROUGHPUT = MetricCurve(
    column="tokens_per_second",
    name="throughput",
    title="Throughput",
    axis="tokens per second",
    caption="Should be level within a stage; stages with longer sequences are slower",
    from_zero=True,
)
MFU = MetricCurve(
    column="mfu",
    name="mfu",
    title="Model FLOPs utilization",
    axis="% of the chips' peak",
    caption="FLOPs of the model's formula over the peak FLOPs of the chips in that time; recomputation does not count",
    scale=100.0,
    from_zero=True,
)
DATA_WAIT = MetricCurve(
    column="data_wait_share",
    name="data-wait",
    title="Waiting for data",
    axis="% of step time",
    caption="Near 0 if batches are ready before they are needed",
    scale=100.0,
    from_zero=True,
)
CAPTURED_MASS = MetricCurve(
    column="captured_mass",
    name="captured-mass",
    title="Captured teacher mass",
    axis="% of probability",
    caption="The teacher's total probability of the ids in its targets for a token; what is missing from 100 % the "
    "student cannot learn from them",
    scale=100.0,
)
AGREEMENT = MetricCurve(
    column="agreement",
    name="agreement",
    title="Agreement with the teacher",
    axis="% of tokens",
    caption="How often the most likely next token of the student is that of the teacher: it should rise",
    scale=100.0,
    from_zero=True,
)


def over_tokens(runs: Sequence[labeled_run.LabeledRun], curve: MetricCurve) -> chart.Chart | None:
    """The curve of each run that has it, over tokens seen; None if no run has it."""
    drawn = [run for run in runs if run.data.has_column(curve.column)]
    if not drawn:
        return None
    lines = [(run, line) for run in drawn for line in _lines(run.data, curve)]
    points = [(run, _held_out(run.data, curve)) for run in drawn]
    legend = labeled_run.legend(runs)
    if curve.with_skipped and any(_skipped(run.data) for run in drawn):
        legend.append(chart.LegendEntry(label="step skipped", role="bad", mark="cross"))
    if any(run_points for _, run_points in points):
        legend.append(chart.LegendEntry(label="held-out data", role=chart.series_role(0), mark="point"))

    def draw(figure: matplotlib.figure.Figure, is_narrow: bool) -> None:
        axes = figure.add_subplot()
        for run, line in lines:
            if line.rows_per_point > 1:
                axes.fill_between(line.x, line.low, line.high, color=run.color, alpha=BAND_OPACITY, linewidth=0)
            axes.plot(line.x, line.mean, **run.line_style, **({"marker": "o"} if len(line.x) == 1 else {}))
        for run, run_points in points:
            if run_points:
                tokens, values = zip(*run_points, strict=True)
                axes.plot(
                    tokens,
                    values,
                    "o",
                    color=chart.COLORS["surface"],
                    markeredgecolor=run.color,
                    markeredgewidth=1.8,
                    markersize=6.5,
                    zorder=3,  # over the lines, whose color they have
                )
        _set_axes(axes, curve, [line for _, line in lines], [y for _, run_points in points for _, y in run_points])
        if curve.with_skipped:
            _mark_skipped(axes, drawn)
        width = chart.WIDTHS["narrow" if is_narrow else "full" if curve.is_full else "half"]
        num_name_rows = _mark_stages(axes, runs[0].data, width - 82)
        chart.set_margins(figure, top=8 + NAME_ROW_PIXELS * num_name_rows)
        axes.xaxis.set_major_locator(chart.round_ticks(4 if is_narrow else 10 if curve.is_full else 6))

    return chart.Chart(
        name=curve.name,
        title=curve.title,
        caption=_caption(curve, max(line.rows_per_point for _, line in lines), num_runs=len(runs)),
        draw=draw,
        legend=legend,
        height=330 if curve.is_full else 250,
        narrow_height=260,
        is_full=curve.is_full,
        numbers=_numbers(runs, drawn, curve),
    )


def _lines(run: run_data.RunData, curve: MetricCurve) -> list[downsample.Downsampled]:
    """A line for each stage, its points in proportion to its rows, so that they are about as dense everywhere."""
    num_rows = [len(stage.tokens) for stage in run.stages]
    max_points = [max(MIN_STAGE_POINTS, round(downsample.MAX_POINTS * num / sum(num_rows))) for num in num_rows]
    return [
        downsample.downsample(stage.tokens, curve.scale * stage.accepted(curve.column), stage_points)
        for stage, stage_points in zip(run.stages, max_points, strict=True)
    ]


def _caption(curve: MetricCurve, rows_per_point: int, *, num_runs: int) -> str:
    sentences = [f"{curve.caption}."]
    if rows_per_point > 1:
        sentences.append(f"Each point of a line is the mean of up to {rows_per_point:,} rows; the band is their range.")
    if num_runs > 1:
        sentences.append("Vertical lines are where stages of the first run begin.")
    return " ".join(sentences)


def _set_axes(
    axes: matplotlib.axes.Axes, curve: MetricCurve, lines: Sequence[downsample.Downsampled], points: Sequence[float]
) -> None:
    """Labels the axes, with limits by lines and points only: one spike in a band would flatten everything else."""
    axes.set_xlabel("tokens seen")
    axes.set_ylabel(curve.axis)
    axes.xaxis.set_major_formatter(lambda value, _: formatting.scaled(value))
    axes.yaxis.set_major_formatter(lambda value, _: formatting.scaled(value) if abs(value) >= 1_000 else f"{value:.4g}")
    axes.yaxis.set_major_locator(chart.round_ticks(5))
    axes.margins(x=0.01)
    values = np.concatenate([*(line.mean for line in lines), np.array(points, float)])
    low, high = (0.0 if curve.from_zero else values.min()), values.max()
    span = max(high - low, LEAST_SPAN * max(abs(high), abs(low))) or 1.0
    missing = (span - (high - low)) / 2 + 0.06 * span
    axes.set_ylim(low if curve.from_zero else low - missing, high + missing)


def _mark_stages(axes: matplotlib.axes.Axes, run: run_data.RunData, width: int) -> int:
    """Draws a line where each stage begins and its name above, a row higher where names would overlap.

    Returns the number of rows of names, at most 4: a name without room in any of them is left out.
    """
    left, right = axes.get_xlim()
    ends = [0.0] * 4  # of the names in each row, in pixels
    starts = [run.stages[0].tokens[0], *(stage.tokens[-1] for stage in run.stages[:-1])]
    for number, (start, stage) in enumerate(zip(starts, run.stages, strict=True)):
        if number:
            axes.axvline(start, color=chart.COLORS["muted"], linewidth=1, linestyle=(0, (2, 2)))
        is_short = len(stage.name) <= MAX_NAME_LETTERS
        name = chart.printable(stage.name if is_short else f"{stage.name[: MAX_NAME_LETTERS - 1]}…")
        length = LETTER_PIXELS * len(name)
        x = max(0.0, min((start - left) / (right - left) * width + 3, width - length))
        row = next((row for row, end in enumerate(ends) if end <= x), None)
        if row is not None:
            ends[row] = x + length + 8
            axes.annotate(
                name,
                (x / width, 1),
                (0, 4 + NAME_ROW_PIXELS * row),
                xycoords="axes fraction",
                textcoords="offset points",
                color=chart.COLORS["muted"],
                annotation_clip=False,
            )
    return sum(1 for end in ends if end)


def _skipped(run: run_data.RunData) -> list[float]:
    """Tokens seen at each skipped step."""
    return [run.tokens_at(row["global_step"]) for row in run.skipped_steps]


def _mark_skipped(axes: matplotlib.axes.Axes, runs: Sequence[labeled_run.LabeledRun]) -> None:
    """Draws crosses along the upper edge: the loss of a skipped step is an outlier or not finite."""
    for run in runs:
        tokens = _skipped(run.data)
        axes.plot(
            tokens,
            np.full(len(tokens), 0.97 - 0.05 * (run.number % 4)),
            "x",
            color=chart.COLORS["bad"],
            markersize=7,
            markeredgewidth=2,
            transform=axes.get_xaxis_transform(),
        )


def _held_out(run: run_data.RunData, curve: MetricCurve) -> list[tuple[float, float]]:
    """(tokens, value) of each evaluation that has the curve's held-out value."""
    values = [(run.tokens_at(row["global_step"]), row.get(curve.held_out)) for row in run.evaluations]
    return [(tokens, value) for tokens, value in values if run_data.is_number(value)]


def _numbers(
    runs: Sequence[labeled_run.LabeledRun], drawn: Sequence[labeled_run.LabeledRun], curve: MetricCurve
) -> table.Table:
    rows = []
    for run in drawn:
        for stage in run.data.stages:
            values = curve.scale * stage.accepted(curve.column)
            values = values[np.isfinite(values)]
            if len(values):
                statistics = (values[0], values.min(), np.median(values), values.max(), values[-1])
                label = [run.label] if len(runs) > 1 else []
                rows.append([*label, stage.name, *(formatting.number(float(value)) for value in statistics)])
    head = (["run"] if len(runs) > 1 else []) + ["stage", "first", "min", "median", "max", "last"]
    return table.Table(head=head, rows=rows, caption=f"{curve.title}, {curve.axis}, without skipped steps")
