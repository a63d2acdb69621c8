"""Charts of estimated cycles: a treemap by place in the model and kind of work, and bars of two profiles."""

import matplotlib.axes
import matplotlib.figure
import matplotlib.patches

from gemma3_jax.planning import kinds, profile
from gemma3_jax.report import chart, formatting, table, treemap

ROLE_OF_KIND = {
    kinds.PRODUCT: "series0",
    kinds.KERNEL: "series5",
    kinds.COLLECTIVE: "series3",
    kinds.SCATTER: "bad",
    kinds.REDUCTION: "series4",
    kinds.ELEMENTWISE: "series2",
    kinds.LAYOUT: "series1",
    kinds.COPY: "muted",
}
assert set(ROLE_OF_KIND) == set(kinds.KINDS)
TITLE_PIXELS, LETTER_PIXELS = 18, 7.0


def by_place(of_step: profile.Profile) -> chart.Chart:
    """A rectangle for each place, divided by kind."""

    def draw(figure: matplotlib.figure.Figure, is_narrow: bool) -> None:
        width, height = 72 * figure.get_size_inches()
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        places = _totals(of_step)
        whole = treemap.Rectangle(0, 0, width, height)
        for (place, cycles), area in zip(places.items(), treemap.layout([*places.values()], whole), strict=True):
            has_title = area.height > 2.5 * TITLE_PIXELS and area.width > 60
            if has_title:
                _write(axes, area, f"{place} {formatting.percent(cycles / of_step.cycles)}", "ink", TITLE_PIXELS / 2)
            top = TITLE_PIXELS if has_title else 0
            inside = treemap.Rectangle(area.left, area.top + top, area.width - 3, area.height - top - 3)
            of_kinds = sorted(_kinds_at(of_step, place).items(), key=lambda one: -one[1])
            areas = treemap.layout([number for _, number in of_kinds], inside)
            for (kind, number), rectangle in zip(of_kinds, areas, strict=True):
                _fill(axes, rectangle, ROLE_OF_KIND[kind])
                label = f"{kind} {formatting.percent(number / of_step.cycles)}"
                if rectangle.height > TITLE_PIXELS:
                    _write(axes, rectangle, label, "surface", rectangle.height / 2)

    return chart.Chart(
        name="places",
        title="Where the cycles go",
        caption="Areas are estimated cycles of a chip in a step: outer rectangles are places in the model, inner ones "
        f"kinds of work. {of_step.title}.",
        draw=draw,
        legend=_legend(of_step),
        height=440,
        narrow_height=560,
        is_full=True,
        numbers=_numbers(of_step),
    )


def beside(this: profile.Profile, other: profile.Profile) -> chart.Chart:
    """Two stacked bars for each place, in seconds: this profile's and, below it, the other's."""
    places = list(dict.fromkeys([*_totals(this), *_totals(other)]))

    def draw(figure: matplotlib.figure.Figure, is_narrow: bool) -> None:
        axes = figure.add_subplot()
        for number, place in enumerate(places):
            for of_step, side in ((this, -1), (other, 1)):
                left, of_place = 0.0, _kinds_at(of_step, place)
                for kind in (kind for kind in kinds.KINDS if kind in of_place):
                    milliseconds = 1e3 * of_place[kind] / of_step.clock_hz
                    color, edge = chart.COLORS[ROLE_OF_KIND[kind]], chart.COLORS["surface"]
                    axes.barh(number + 0.19 * side, milliseconds, 0.36, left=left, color=color, edgecolor=edge)
                    left += milliseconds
        chart.set_margins(figure, left=chart.label_bars(axes, places, is_narrow), right=20, top=0)
        axes.set_xlabel("estimated ms of a chip in a step")

    return chart.Chart(
        name="beside",
        title="This profile and the other one",
        caption=f"The upper bar of each pair is {this.title}; the lower one, the other profile, is {other.title}.",
        draw=draw,
        legend=_legend(this, other),
        height=62 + 44 * len(places),
        is_full=True,
    )


def _totals(of_step: profile.Profile) -> dict[str, int]:
    """Cycles of each place, the most first."""
    totals: dict[str, int] = {}
    for (place, _), cycles in of_step.by_place_and_kind().items():
        totals[str(place)] = totals.get(str(place), 0) + cycles
    return dict(sorted(totals.items(), key=lambda one: -one[1]))


def _kinds_at(of_step: profile.Profile, at: str) -> dict[str, int]:
    return {kind: cycles for (place, kind), cycles in of_step.by_place_and_kind().items() if str(place) == at}


def _legend(*profiles: profile.Profile) -> list[chart.LegendEntry]:
    shown = {kind for of_step in profiles for _, kind in of_step.by_place_and_kind()}
    return [
        chart.LegendEntry(label=kind, role=ROLE_OF_KIND[kind], mark="area") for kind in kinds.KINDS if kind in shown
    ]


def _numbers(of_step: profile.Profile) -> table.Table:
    """Cycles by place and kind."""
    columns = [entry.label for entry in _legend(of_step)]
    rows = []
    for place, cycles in _totals(of_step).items():
        of_place = _kinds_at(of_step, place)
        cells = (formatting.count(of_place.get(kind, 0)) for kind in columns)
        rows.append([place, *cells, formatting.count(cycles), formatting.percent(cycles / of_step.cycles)])
    return table.Table(head=["cycles", *columns, "all", "share"], rows=rows)


def _fill(axes: matplotlib.axes.Axes, area: treemap.Rectangle, role: str) -> None:
    axes.add_patch(
        matplotlib.patches.Rectangle(
            (area.left, area.top),
            area.width,
            area.height,
            facecolor=chart.COLORS[role],
            edgecolor=chart.COLORS["surface"],
            linewidth=1,
        )
    )


def _write(axes: matplotlib.axes.Axes, area: treemap.Rectangle, label: str, role: str, middle: float) -> None:
    """Writes as many letters of a label as fit into the width of an area."""
    num_letters = int((area.width - 8) / LETTER_PIXELS)
    if num_letters < 4:
        return
    text = label if len(label) <= num_letters else f"{label[: num_letters - 1]}…"
    axes.text(area.left + 4, area.top + middle, text, va="center", color=chart.COLORS[role])
