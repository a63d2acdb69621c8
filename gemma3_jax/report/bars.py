"""Bars: where the time went, and what rounding costs."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import matplotlib.axes
import matplotlib.figure

from gemma3_jax.report import drawing, history, markup, quantities, shown
from gemma3_jax.report.shown import Shown
from gemma3_jax.train import goodput

# What moves the run first; what is lost last, in the colour of what went wrong.
SPENT = {
    "step": ("training steps", "series0"),
    "evaluate": ("evaluation", "series2"),
    "data": ("waiting for data", "series1"),
    "save": ("saving", "series3"),
    "compile": ("compiling", "series4"),
    "restore": ("restoring", "series5"),
    "init": ("starting up", "muted"),
    goodput.LOST: ("lost, done again", "bad"),
}
assert set(SPENT) == {*goodput.KINDS, goodput.LOST}
SHORT = {"bfloat16": "bf16", "float32": "f32"}
PRECISIONS = ("unquantised_nats", "rounded_nats", "trained_nats")
LETTER = 7.4  # pixels that a letter of a label is wide, at most


def time_spent(runs: Sequence[Shown]) -> drawing.Chart | None:
    """One bar a run, of shares of its time; None if no run has a ledger."""
    having = [one for one in runs if sum(one.run.seconds.values()) > 0]
    if not having:
        return None
    kinds = [kind for kind in SPENT if any(one.run.seconds[kind] > 0 for one in having)]

    def draw(figure: matplotlib.figure.Figure, is_narrow: bool) -> None:
        axes = figure.add_subplot()
        for row, one in enumerate(having):
            whole, left = sum(one.run.seconds.values()), 0.0
            for kind in kinds:
                share = 100 * one.run.seconds[kind] / whole
                axes.barh(
                    row,
                    share,
                    0.62,
                    left=left,
                    color=drawing.COLOUR[SPENT[kind][1]],
                    edgecolor=drawing.COLOUR["surface"],
                    linewidth=1.5,
                )
                if share > (14 if is_narrow else 5):
                    label = f"{share:.0f} %"
                    axes.text(left + share / 2, row, label, ha="center", va="center", color=drawing.COLOUR["surface"])
                left += share
        room = _rows(axes, [one.label for one in having] if len(runs) > 1 else [""], is_narrow)
        drawing.place(figure, left=room, right=20, top=0)
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of wall time")

    rows = [[SPENT[kind][0], *(cell for one in having for cell in _spent(one, kind))] for kind in kinds]
    wholes = [quantities.duration(sum(one.run.seconds.values())) for one in having]
    rows.append(["in all", *(cell for whole in wholes for cell in (whole, quantities.share(1.0)))])
    head = ["", *(cell for one in having for cell in (one.label if len(runs) > 1 else "time", "share"))]
    return drawing.Chart(
        name="goodput",
        title="Where the time went",
        caption="Of all processes of the run: the longer the first part, the better; what is lost was done again after "
        "a process had ended without a save.",
        draw=draw,
        keys=[drawing.Key(label=SPENT[kind][0], role=SPENT[kind][1], mark="area") for kind in kinds],
        height=62 + 40 * len(having),
        is_full=True,
        numbers=markup.table(head, rows),
    )


def _spent(one: Shown, kind: str) -> tuple[str, str]:
    seconds = one.run.seconds[kind]
    return quantities.duration(seconds), quantities.share(seconds / sum(one.run.seconds.values()))


@dataclasses.dataclass(frozen=True)
class Rounded:
    """The last evaluation of a stage that rounds its weights."""

    one: Shown
    row: Mapping
    format: str  # of weights; empty: not known
    dtype: str  # of activations

    @property
    def perplexities(self) -> list[float]:
        """Unquantised; rounded after training; trained to be rounded."""
        return [math.exp(min(float(self.row[name]), 700.0)) for name in PRECISIONS]

    def labels(self) -> list[str]:
        form = f" {self.format}" if self.format else ""
        return [self.dtype, f"PTQ{form}", f"QAT{form}"]


def find_rounded(runs: Sequence[Shown]) -> list[Rounded]:
    """Of every run and stage that has been held against its start."""
    found = []
    for one in runs:
        for row in one.run.last_evaluations(PRECISIONS[0]):
            if all(isinstance(row.get(name), int | float) for name in PRECISIONS):
                dtype = history.fields(one.run.config, "execution").get("dtype")
                format = str(history.fields(one.run.config, "stages", row["stage"], "quant").get("format", ""))
                found.append(Rounded(one, row, format, SHORT.get(str(dtype), "unquantised")))
    return found


def rounding(runs: Sequence[Shown]) -> drawing.Chart | None:
    """Perplexity before rounding, after it, and after training with it; None if no stage rounds."""
    found = find_rounded(runs)
    if not found:
        return None
    bars = []  # (label, perplexity, rise in percent or None, colour)
    for of in found:
        whole = of.perplexities[0]
        roles = ("muted", drawing.role_of(1), drawing.role_of(0))
        for number, (label, value) in enumerate(zip(of.labels(), of.perplexities, strict=True)):
            name = shown.name(runs, of.one, label)
            bars.append(
                (name, value, None if number == 0 else 100 * (value / whole - 1), drawing.COLOUR[roles[number]])
            )

    def draw(figure: matplotlib.figure.Figure, is_narrow: bool) -> None:
        panels = figure.subplots(*((2, 1) if is_narrow else (1, 2)), sharey=not is_narrow)
        labels, colours = [bar[0] for bar in bars], [bar[3] for bar in bars]
        values = [bar[1] for bar in bars]
        _panel(panels[0], values, [quantities.number(value) for value in values], colours)
        panels[0].set_xlabel("perplexity, lower is better")
        rises = [bar[2] for bar in bars]
        texts = ["" if rise is None else f"{rise:+.3g} %" for rise in rises]
        _panel(panels[1], [rise or 0.0 for rise in rises], texts, colours)
        panels[1].axvline(0, color=drawing.COLOUR["ink"], linewidth=1)
        panels[1].set_xlabel("% above unquantised")
        room = max(_rows(panel, labels, is_narrow) for panel in (panels if is_narrow else panels[:1]))
        drawing.place(figure, left=room, top=0, between=56 if is_narrow else 40)

    return drawing.Chart(
        name="rounding-cost",
        title="What rounding costs",
        caption="Held-out perplexity of the unquantised start, of that start rounded (PTQ), and of the weights after "
        "training with rounding (QAT): QAT should stand closer to the unquantised bar than PTQ.",
        draw=draw,
        height=90 + 26 * len(bars),
        narrow_height=150 + 56 * len(bars),
        is_full=True,
        numbers=_rounding_numbers(runs, found),
    )


def _panel(axes: matplotlib.axes.Axes, values: Sequence[float], texts: Sequence[str], colours: Sequence[str]) -> None:
    drawn = axes.barh(range(len(values)), values, 0.62, color=colours)
    axes.bar_label(drawn, texts, padding=5, color=drawing.COLOUR["ink"])
    axes.margins(x=0.24)
    axes.xaxis.set_major_locator(drawing.ticks(4))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    axes.grid(visible=False)


def _rows(axes: matplotlib.axes.Axes, labels: Sequence[str], is_narrow: bool) -> int:
    """The first row on top, each with its label, cut to leave room for the bars. Returns the pixels these take."""
    most = int((120 if is_narrow else 260) / LETTER)
    labels = [drawing.printable(label) for label in labels]
    cut = [label if len(label) <= most else f"…{label[1 - most :]}" for label in labels]
    axes.set_yticks(range(len(cut)), cut, color=drawing.COLOUR["ink"])
    axes.set_ylim(len(cut) - 0.5, -0.5)
    axes.grid(visible=False)
    return 8 + int(LETTER * max(map(len, cut)))


def _rounding_numbers(runs: Sequence[Shown], found: Sequence[Rounded]) -> markup.Markup:
    head = [*(["run"] if len(runs) > 1 else []), "stage", "weights", "unquantised", "PTQ", "QAT"]
    head += ["perplexity won back", "KL, PTQ", "KL, QAT"]
    rows = []
    for of in found:
        back, before, after = (of.row.get(name) for name in ("recovered_perplexity", "rounded_kl", "trained_kl"))
        rows.append(
            [
                *([of.one.label] if len(runs) > 1 else []),
                of.row["stage"],
                of.format or "–",
                *(f"{value:.5g}" for value in of.perplexities),
                quantities.share(back) if isinstance(back, float) else "–",
                quantities.number(before),
                quantities.number(after),
            ]
        )
    return markup.table(head, rows, caption="Perplexity, and nats of Kullback–Leibler divergence from the start")
