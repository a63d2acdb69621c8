"""One HTML page of a run, or of several laid over one another: all in one file, which loads nothing."""

import dataclasses
import pathlib
import time
from collections.abc import Sequence

from gemma3_jax import provenance
from gemma3_jax.report import bars, curves, drawing, history, markup, measured, origin, plots, style, summary
from gemma3_jax.report.shown import Shown, keys

NOTHING_LOADS = "default-src 'none'; style-src 'unsafe-inline'"  # the browser itself refuses what would


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page that the list on top leads to."""

    name: str  # its id
    title: str
    body: markup.Markup


def read(workdir: pathlib.Path, compared: Sequence[pathlib.Path] = ()) -> list[Shown]:
    """The runs of a page, in colours and under names that tell them apart; the first is the one it is about.

    Raises: ValueError if a directory is not a run, or is named twice.
    """
    paths = [workdir, *compared]
    labels = history.labels(paths)
    return [
        Shown(number=number, label=label, run=history.read(path))
        for number, (label, path) in enumerate(zip(labels, paths, strict=True))
    ]


def sections(runs: Sequence[Shown]) -> list[Section]:
    """All sections, in order: where a run has nothing to show, its section says so."""
    return [
        Section("summary", "Summary", _summary(runs)),
        Section("training", "Training", _over_tokens(runs, plots.LOSS, plots.BITS, plots.CROSS_ENTROPY)),
        Section("optimisation", "Optimisation", _over_tokens(runs, plots.RATE, plots.GRADIENT)),
        Section("speed", "Speed", _speed(runs)),
        Section(
            "teacher",
            "Teacher",
            _over_tokens(runs, plots.KEPT, plots.AGREEMENT, without="No stage learned from a teacher."),
        ),
        Section(
            "context",
            "Context",
            _charts(
                [curves.last_tokens(runs), curves.positions(runs)],
                "No stage was measured against the length of its context, which the evaluation “context” does.",
            ),
        ),
        Section(
            "rounding",
            "Rounding",
            _charts([bars.rounding(runs)], "No stage with rounded weights was held against its start."),
        ),
        Section("memory", "Cache memory", _memory(runs)),
        Section(
            "evaluations",
            "Evaluations",
            _evaluations(runs),
        ),
        Section("samples", "Samples", measured.samples(runs) or _note("No text was sampled while the run trained.")),
        Section("config", "Config", origin.configs(runs)),
        Section("provenance", "Provenance", origin.made_by(runs)),
    ]


def render(runs: Sequence[Shown], parts: Sequence[Section]) -> bytes:
    """The page as UTF-8."""
    head, about = runs[0], [one.label for one in runs[1:]]
    first, last = (head.run.stages[end].column("time")[end] for end in (0, -1))
    told = f"{origin.when(float(first))} to {origin.when(float(last))}"
    if about:
        told += f" · laid over it: {', '.join(about)}"
    made = f"Made by gemma3_jax {provenance.versions()['gemma3_jax'] or ''} on {origin.when(time.time())}."
    links = [markup.element("li", markup.element("a", part.title, href=f"#{part.name}")) for part in parts]
    page = markup.element(
        "html",
        markup.element(
            "head",
            markup.element("meta", charset="utf-8"),
            markup.element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            markup.element("meta", http_equiv="Content-Security-Policy", content=NOTHING_LOADS),
            markup.element("title", f"{head.label} · run report"),
            markup.element("style", markup.Markup(style.SHEET)),
        ),
        markup.element(
            "body",
            markup.element("header", markup.element("h1", head.label), markup.element("p", told)),
            markup.element("nav", markup.element("ul", *links), aria_label="Sections"),
            markup.element("main", *map(_section, parts)),
            markup.element("footer", made),
        ),
        lang="en",
    )
    return f"<!doctype html>\n{page}\n".encode("utf-8", "replace")


def _section(part: Section) -> markup.Markup:
    heading = markup.element("h2", part.title, id=f"{part.name}-title")
    return markup.element("section", heading, part.body, id=part.name, aria_labelledby=f"{part.name}-title")


def _summary(runs: Sequence[Shown]) -> markup.Markup:
    missing = [f"{one.label}: {line}" if len(runs) > 1 else line for one in runs for line in one.run.missing]
    overview = summary.side_by_side(runs) if len(runs) > 1 else summary.cards(runs[0].run)
    if len(runs) > 1:
        overview = markup.element("div", markup.element("ul", *drawing.legend(keys(runs)), class_="keys"), overview)
        overview = markup.element("div", overview, class_="panel")
    return markup.join(
        [
            overview,
            markup.element("div", markup.element("h3", "Stages"), summary.stages(runs), class_="panel"),
            *(_note(line) for line in missing),
        ]
    )


def _speed(runs: Sequence[Shown]) -> markup.Markup:
    charts = [plots.over_tokens(runs, curve) for curve in (plots.SPEED, plots.MFU, plots.WAITING)]
    found = [_charts([bars.time_spent(runs), *charts], "No row has timings.")]
    if not any(one.run.has(plots.MFU.column) for one in runs):
        found.append(_note("MFU is not shown: the peak of the devices is not known, as of CPUs."))
    return markup.join(found)


def _memory(runs: Sequence[Shown]) -> markup.Markup:
    of_runs = curves.cache_of_runs(runs)
    note = None if of_runs else _note("The run's model is not known, so that its cache is not shown.")
    return markup.join([_charts([of_runs, curves.cache_of_figure_6()], ""), note])


def _evaluations(runs: Sequence[Shown]) -> markup.Markup:
    tables = measured.tables(runs)
    if not tables:
        return _note("Nothing else was measured beside training.")
    return markup.element("div", *tables, class_="grid")


def _over_tokens(runs: Sequence[Shown], *asked: plots.Curve, without: str = "") -> markup.Markup:
    return _charts([plots.over_tokens(runs, curve) for curve in asked], without or "The rows do not have this.")


def _charts(charts: Sequence[drawing.Chart | None], without: str) -> markup.Markup:
    """Those that there are; the last of an odd number of halves takes the whole width."""
    having = [chart for chart in charts if chart]
    if not having:
        return _note(without)
    halves = [chart for chart in having if not chart.is_full]
    if len(halves) % 2:
        alone = halves[-1]
        having[having.index(alone)] = dataclasses.replace(alone, is_full=True)
    return markup.element("div", *map(drawing.figure, having), class_="grid")


def _note(text: str) -> markup.Markup:
    return markup.element("p", text, class_="note")
