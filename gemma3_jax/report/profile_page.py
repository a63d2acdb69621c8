"""The page of a profile of a compiled TPU program, or of two side by side."""

from gemma3_jax.planning import kinds, places, profile, profile_comparison
from gemma3_jax.report import cycle_charts, formatting, page, summary, table

NUM_DEAREST = 20
ESTIMATE = (
    "Cycles are estimates of the compiler's cost model, not measurements: good for comparing programs and the parts of "
    "one. What has no estimate is listed below, and is in no sum of cycles."
)


def sections(this: profile.Profile, other: profile.Profile | None = None) -> list[page.Section]:
    """All sections in order; with another profile, both side by side."""
    charts = [cycle_charts.by_place(this), *([cycle_charts.beside(this, other)] if other else [])]
    parts = [
        page.Section(
            name="summary",
            title="Summary",
            template="facts.html",
            content={"facts": _facts(this, other), "notes": [ESTIMATE]},
        ),
        page.chart_section(charts, name="cycles", title="Cycles"),
        _tables("dearest", "The dearest instructions", [_dearest(this)]),
        _tables("waiting", "Waiting", [_exposed(this)], "The chip waits for nothing, or waiting is not estimated."),
        _tables("unestimated", "Without an estimate", [_unestimated(this)], "Every instruction has an estimate."),
    ]
    if other:
        changes = [_comparison(this, other), _unestimated_comparison(this, other)]
        parts.insert(2, _tables("comparison", "Comparison", changes))
    return [part for part in parts if part]


def render(this: profile.Profile, other: profile.Profile | None = None) -> bytes:
    """The page in UTF-8."""
    subtitle = "Estimated by the TPU compiler; nothing was measured"
    if other:
        subtitle += f" · compared with: {other.title}"
    return page.document(sections(this, other), title=this.title, about="profile", subtitle=subtitle)


def _tables(name: str, title: str, tables: list[table.Table], otherwise: str = "") -> page.Section:
    shown = [one for one in tables if one.rows]
    notes = [] if shown or not otherwise else [otherwise]
    return page.Section(name=name, title=title, template="tables.html", content={"tables": shown, "notes": notes})


def _facts(this: profile.Profile, other: profile.Profile | None) -> list[summary.Fact]:
    def remark(text: str, theirs: str) -> str:
        return f"{text}; other: {theirs}" if other else text

    def products(of_step: profile.Profile) -> str:
        cycles = sum(number for (_, kind), number in of_step.by_place_and_kind().items() if kind == kinds.PRODUCT)
        return formatting.percent(cycles / of_step.cycles)

    def runs(of_step: profile.Profile) -> str:
        return formatting.count(sum(of_step.runs_without_estimate.values()))

    waiting = "" if this.exposed_seconds is None else f" and {this.exposed_seconds:.3f} s of waiting"
    cycles = f"{formatting.count(this.cycles)} cycles at {this.clock_hz / 1e9:.2f} GHz{waiting}"
    compared = other or this
    return [
        summary.Fact("Estimated step", f"{this.seconds:.3f} s", remark(cycles, f"{compared.seconds:.3f} s")),
        summary.Fact(
            "Estimated MFU",
            formatting.percent(this.mfu),
            remark("too high by what has no estimate", formatting.percent(compared.mfu)),
        ),
        summary.Fact("Products", products(this), remark("of the cycles", products(compared))),
        summary.Fact("Without an estimate", runs(this), remark("runs in a step", runs(compared))),
    ]


def _dearest(of_step: profile.Profile) -> table.Table:
    dearest = [one for one in of_step.instructions[:NUM_DEAREST] if one.cycles is not None]
    rows = [
        [
            one.name,
            formatting.count(one.cycles),
            formatting.percent(one.cycles / of_step.cycles),
            f"{one.num_times:,}",
            str(one.place),
            one.kind,
            one.source,
        ]
        for one in dearest
    ]
    head = ["instruction", "cycles", "share", "runs", "place", "kind", "source"]
    return table.Table(head=head, rows=rows, code_columns=(0, 6))


def _exposed(of_step: profile.Profile) -> table.Table:
    rows = [
        [
            one.kind,
            f"{one.seconds:.4f}",
            formatting.percent(one.seconds / of_step.seconds),
            "+".join(one.axes),
            one.place,
        ]
        for one in (of_step.exposed or ())[:NUM_DEAREST]
    ]
    return table.Table(head=["for", "seconds", "share", "mesh axes", "place"], rows=rows)


def _unestimated(of_step: profile.Profile) -> table.Table:
    rows = [
        [
            row.name,
            f"{row.num_times:,}",
            f"{row.num_elements:,}",
            str(places.StepPlace(row.part, row.phase)),
            row.kind,
            row.source,
        ]
        for row in profile.without_estimate(of_step)
    ]
    return table.Table(
        head=["instruction", "runs", "elements", "place", "kind", "source"], rows=rows, code_columns=(0, 5)
    )


def _comparison(this: profile.Profile, other: profile.Profile) -> table.Table:
    rows = [
        [
            row.place or "all places",
            row.kind or "all kinds",
            formatting.count(row.cycles),
            formatting.count(row.other_cycles),
            formatting.decimals(row.ratio, 2),
        ]
        for row in profile_comparison.compare(this, other)
    ]
    head = ["place", "kind", "cycles", "other", "ratio"]
    return table.Table(head=head, rows=rows, caption=f"The other profile is {other.title}.")


def _unestimated_comparison(this: profile.Profile, other: profile.Profile) -> table.Table:
    rows = [
        [row.place, row.kind, f"{row.num_times:,}", f"{row.other_num_times:,}"]
        for row in profile_comparison.compare_unestimated(this, other)
    ]
    return table.Table(head=["place", "kind", "runs", "other"], rows=rows, caption="Runs without an estimate.")
