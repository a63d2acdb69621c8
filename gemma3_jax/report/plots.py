"""What the rows of a run say, over the tokens it had seen."""

import dataclasses
from collections.abc import Sequence

import matplotlib.axes
import matplotlib.figure
import numpy as np

from gemma3_jax.report import drawing, history, markup, quantities, thinning
from gemma3_jax.report.shown import Shown, keys

LEAST = 80  # points of a stage, if it has as many rows
BAND = 0.18  # opacity
ROW = 15  # pixels that a row of names of stages is high
LETTER = 7.2  # pixels that a letter of a stage's name is wide, at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """A number of the rows, as a chart says it."""

    column: str
    name: str
    title: str
    axis: str  # with its unit
    caption: str  # one sentence: what to see
    scale: float = 1.0
    from_zero: bool = False
    is_full: bool = False
    held_out: str = ""  # a number of evaluations that is drawn as points
    with_skipped: bool = False


LOSS = Curve(
    column="loss",
    name="loss",
    title="Loss by stage",
    axis="nats per token",
    caption="What each stage minimises, over all tokens the run has seen: it falls within a stage, and may jump where "
    "the next one begins, with other rows or another aim",
    is_full=True,
    with_skipped=True,
)
CROSS_ENTROPY = Curve(
    column="cross_entropy",
    name="cross-entropy",
    title="Cross-entropy of the token that came",
    axis="nats per token",
    caption="How well the next token itself is predicted while a teacher's word is what is learned: it should fall "
    "with the loss",
)
BITS = Curve(
    column="bits_per_byte",
    name="bits-per-byte",
    title="Bits per byte",
    axis="bits per byte of text",
    caption="The same whatever the tokenizer, so it may be held against other models; points, where there are any, are "
    "of held-out rows and should lie on the line",
    held_out="bits_per_byte",
)
RATE = Curve(
    column="learning_rate",
    name="learning-rate",
    title="Learning rate",
    axis="learning rate",
    caption="Each stage warms up and decays by itself; the loss should not jump where the rate is highest",
    from_zero=True,
)
GRADIENT = Curve(
    column="gradient_norm",
    name="gradient-norm",
    title="Gradient norm",
    axis="norm, before it is cut",
    caption="A norm that grows while the loss does not fall is the first sign of a run that diverges",
    from_zero=True,
)
SPEED = Curve(
    column="tokens_per_second",
    name="throughput",
    title="Throughput",
    axis="tokens a second",
    caption="Level within a stage if nothing holds the run up; stages with longer rows are slower",
    from_zero=True,
)
MFU = Curve(
    column="mfu",
    name="mfu",
    title="Model FLOPs utilisation",
    axis="% of the chips' peak",
    caption="Operations of the formula over what the chips could do in that time; nothing recomputed counts",
    scale=100.0,
    from_zero=True,
)
WAITING = Curve(
    column="data_wait_share",
    name="data-wait",
    title="Waiting for data",
    axis="% of a step's time",
    caption="Near 0 if rows are ready before they are needed",
    scale=100.0,
    from_zero=True,
)
KEPT = Curve(
    column="captured_mass",
    name="kept-mass",
    title="Captured teacher mass",
    axis="% of the probability",
    caption="The teacher's probability of the ids it named for a token, of all ids: what is missing from 100 % is "
    "what the student is not told",
    scale=100.0,
)
AGREEMENT = Curve(
    column="agreement",
    name="agreement",
    title="Agreement with the teacher",
    axis="% of tokens",
    caption="How often the student's likeliest next token is the teacher's; it should rise",
    scale=100.0,
    from_zero=True,
)


def over_tokens(runs: Sequence[Shown], curve: Curve) -> drawing.Chart | None:
    """The curve of each run that has it, stages side by side; None if no run has."""
    having = [one for one in runs if one.run.has(curve.column)]
    if not having:
        return None
    lines = [(one, line) for one in having for line in _lines(one.run, curve)]
    most = max(line.rows_per_point for _, line in lines)
    points = [(one, _held_out(one.run, curve)) for one in having]
    legend = keys(runs)
    if curve.with_skipped and any(_skipped(one.run) for one in having):
        legend.append(drawing.Key(label="step skipped", role="bad", mark="cross"))
    if any(found for _, found in points):
        legend.append(drawing.Key(label="held-out rows", role=drawing.role_of(0), mark="point"))

    def draw(figure: matplotlib.figure.Figure, is_narrow: bool) -> None:
        axes = figure.add_subplot()
        for one, line in lines:
            if line.rows_per_point > 1:
                axes.fill_between(line.x, line.least, line.most, color=one.colour, alpha=BAND, linewidth=0)
            axes.plot(line.x, line.mean, **one.style, **({"marker": "o"} if len(line.x) == 1 else {}))
        for one, found in points:
            if found:
                axes.plot(*zip(*found, strict=True), "o", color=one.colour, markeredgecolor=drawing.COLOUR["surface"])
        _frame(axes, curve, [line for _, line in lines], [y for _, found in points for _, y in found])
        if curve.with_skipped:
            _mark_skipped(axes, having)
        width = drawing.WIDTHS["narrow" if is_narrow else "full" if curve.is_full else "half"]
        num_rows = _mark_stages(axes, runs[0].run, width - 82)
        drawing.place(figure, top=8 + ROW * num_rows)
        axes.xaxis.set_major_locator(drawing.ticks(4 if is_narrow else 10 if curve.is_full else 6))

    return drawing.Chart(
        name=curve.name,
        title=curve.title,
        caption=_sentence(curve.caption, most, num_runs=len(runs)),
        draw=draw,
        keys=legend,
        height=330 if curve.is_full else 250,
        narrow_height=260,
        is_full=curve.is_full,
        numbers=_numbers(runs, having, curve),
    )


def _lines(run: history.Run, curve: Curve) -> list[thinning.Thinned]:
    """One for each stage, of points in proportion to its rows, so that they lie about as dense everywhere."""
    num_rows = [len(stage.tokens) for stage in run.stages]
    most = [max(LEAST, round(thinning.MOST * num / sum(num_rows))) for num in num_rows]
    return [
        thinning.thin(stage.tokens, curve.scale * stage.believed(curve.column), of_stage)
        for stage, of_stage in zip(run.stages, most, strict=True)
    ]


def _sentence(caption: str, rows_per_point: int, *, num_runs: int) -> str:
    found = f"{caption}."
    if rows_per_point > 1:
        found += (
            f" Each point of a line is the mean of up to {rows_per_point:,} rows, and the band about it their range."
        )
    return found + (" Upright lines are where stages of the first run begin." if num_runs > 1 else "")


def _frame(
    axes: matplotlib.axes.Axes, curve: Curve, lines: Sequence[thinning.Thinned], points: Sequence[float]
) -> None:
    """Axes with units, and limits by what is drawn as lines: one spike of a band would flatten all else."""
    axes.set_xlabel("tokens seen")
    axes.set_ylabel(curve.axis)
    axes.xaxis.set_major_formatter(lambda value, _: quantities.scaled(value))
    axes.yaxis.set_major_formatter(lambda value, _: quantities.scaled(value) if abs(value) >= 1_000 else f"{value:.4g}")
    axes.yaxis.set_major_locator(drawing.ticks(5))
    axes.margins(x=0.01)
    found = np.concatenate([*(line.mean for line in lines), np.array(points, float)])
    least, most = (0.0 if curve.from_zero else found.min()), found.max()
    room = 0.06 * (most - least) or 0.06 * abs(most) or 1.0
    axes.set_ylim(least if curve.from_zero else least - room, most + room)


def _mark_stages(axes: matplotlib.axes.Axes, run: history.Run, width: int) -> int:
    """A line where each stage begins, and its name above, a row higher if the name before is in the way.

    Returns how many rows of names there are, of 4 at most: a name for which there is no room is left out.
    """
    left, right = axes.get_xlim()
    ends = [0.0] * 4  # of the names in each row above, in pixels
    starts = [run.stages[0].tokens[0], *(stage.tokens[-1] for stage in run.stages[:-1])]
    for number, (start, stage) in enumerate(zip(starts, run.stages, strict=True)):
        if number:
            axes.axvline(start, color=drawing.COLOUR["muted"], linewidth=1, linestyle=(0, (2, 2)))
        name = drawing.printable(stage.name if len(stage.name) <= 24 else f"{stage.name[:23]}…")
        length = LETTER * len(name)
        at = max(0.0, min((start - left) / (right - left) * width + 3, width - length))
        row = next((row for row, end in enumerate(ends) if end <= at), None)
        if row is not None:
            ends[row] = at + length + 8
            axes.annotate(
                name,
                (at / width, 1),
                (0, 4 + ROW * row),
                xycoords="axes fraction",
                textcoords="offset points",
                color=drawing.COLOUR["muted"],
                annotation_clip=False,
            )
    return sum(1 for end in ends if end)


def _skipped(run: history.Run) -> list[float]:
    return [run.tokens_at(row["global_step"]) for row in run.skipped]


def _mark_skipped(axes: matplotlib.axes.Axes, runs: Sequence[Shown]) -> None:
    """Crosses along the upper edge: a skipped step has a loss that would be far off, or none."""
    for one in runs:
        at = _skipped(one.run)
        axes.plot(
            at,
            np.full(len(at), 0.97 - 0.05 * (one.number % 4)),
            "x",
            color=drawing.COLOUR["bad"],
            markersize=7,
            markeredgewidth=2,
            transform=axes.get_xaxis_transform(),
        )


def _held_out(run: history.Run, curve: Curve) -> list[tuple[float, float]]:
    found = [(run.tokens_at(row["global_step"]), row.get(curve.held_out)) for row in run.evaluations]
    return [(tokens, value) for tokens, value in found if isinstance(value, int | float)]


def _numbers(runs: Sequence[Shown], having: Sequence[Shown], curve: Curve) -> markup.Markup:
    rows = []
    for one in having:
        for stage in one.run.stages:
            found = curve.scale * stage.believed(curve.column)
            found = found[np.isfinite(found)]
            if len(found):
                told = (found[0], found.min(), np.median(found), found.max(), found[-1])
                name = [one.label] if len(runs) > 1 else []
                rows.append([*name, stage.name, *(quantities.number(float(value)) for value in told)])
    head = (["run"] if len(runs) > 1 else []) + ["stage", "first", "least", "median", "most", "last"]
    return markup.table(head, rows, caption=f"{curve.title}, {curve.axis}, of steps that were not skipped")
