"""The report page: one HTML file about a run, or about several for comparison, that loads nothing."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence

from gemma3_jax import provenance
from gemma3_jax.report import (
    cache_memory,
    chart,
    configs,
    context_curves,
    evaluations,
    labeled_run,
    metric_curves,
    provenance_section,
    quantization_cost,
    run_data,
    samples,
    summary,
    svg,
    template,
    time_breakdown,
)

CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # browsers refuse to load anything
TRAINING_CURVES = (metric_curves.LOSS, metric_curves.BITS_PER_BYTE, metric_curves.CROSS_ENTROPY)
OPTIMIZATION_CURVES = (metric_curves.LEARNING_RATE, metric_curves.GRADIENT_NORM)
SPEED_CURVES = (metric_curves.THROUGHPUT, metric_curves.MFU, metric_curves.DATA_WAIT)
TEACHER_CURVES = (metric_curves.CAPTURED_MASS, metric_curves.AGREEMENT)
MAX_DIFFERENCES = 12  # of configs; a longer table is collapsed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: a template and the values it shows."""

    name: str  # its id
    title: str
    template: str
    content: Mapping[str, object]


def read(workdir: pathlib.Path, compared: Sequence[pathlib.Path] = ()) -> list[labeled_run.LabeledRun]:
    """Reads the runs of a page; the first is the one that the page is about.

    Raises: ValueError if a directory is not a run, or is listed twice.
    """
    paths = [workdir, *compared]
    labels = run_data.labels(paths)
    return [
        labeled_run.LabeledRun(number=number, label=label, data=run_data.read(path))
        for number, (label, path) in enumerate(zip(labels, paths, strict=True))
    ]


def sections(runs: Sequence[labeled_run.LabeledRun]) -> list[Section]:
    """The sections that have something to show, in order."""
    every = [
        _summary(runs),
        _curves(runs, TRAINING_CURVES, name="training", title="Training"),
        _curves(runs, OPTIMIZATION_CURVES, name="optimization", title="Optimization"),
        _speed(runs),
        _curves(runs, TEACHER_CURVES, name="teacher", title="Teacher"),
        chart_section(
            [context_curves.last_tokens(runs), context_curves.positions(runs)],
            name="context",
            title="Context",
        ),
        chart_section([quantization_cost.bars(runs)], name="rounding", title="Rounding"),
        _cache(runs),
        _evaluations(runs),
        _samples(runs),
        _configs(runs),
        _provenance(runs),
    ]
    return [section for section in every if section]


def render(runs: Sequence[labeled_run.LabeledRun], parts: Sequence[Section]) -> bytes:
    """The page in UTF-8."""
    first, *compared = runs
    start, end = (first.data.stages[at].column("time")[at] for at in (0, -1))
    lines = [f"{provenance_section.utc(float(start))} to {provenance_section.utc(float(end))}"]
    lines += [f"compared with: {', '.join(run.label for run in compared)}"] if compared else []
    return document(parts, title=first.label, about="run report", subtitle=" · ".join(lines))


def document(parts: Sequence[Section], *, title: str, about: str, subtitle: str) -> bytes:
    """A page of these sections in UTF-8; `about` follows the title in the name of its window."""
    html = template.render(
        "page.html",
        title=title,
        about=about,
        subtitle=subtitle,
        sections=parts,
        security_policy=CONTENT_SECURITY_POLICY,
        version=provenance.versions()["gemma3_jax"],
        made_at=provenance_section.utc(time.time()),
    )
    return html.encode("utf-8", "replace")


def chart_section(
    charts: Sequence[chart.Chart | None], *, name: str, title: str, notes: Sequence[str] = ()
) -> Section | None:
    """Charts in a grid of two columns; the last of an odd number of half-width charts takes the whole width.

    None if there is no chart.
    """
    subjects = [subject for subject in charts if subject]
    if not subjects:
        return None
    halves = [subject for subject in subjects if not subject.is_full]
    if len(halves) % 2:
        subjects[subjects.index(halves[-1])] = dataclasses.replace(halves[-1], is_full=True)
    content = {
        "figures": [(subject, svg.drawings(subject)) for subject in subjects],
        "notes": notes,
    }
    return Section(name=name, title=title, template="charts.html", content=content)


def _curves(
    runs: Sequence[labeled_run.LabeledRun],
    curves: Sequence[metric_curves.MetricCurve],
    *,
    name: str,
    title: str,
) -> Section | None:
    return chart_section([metric_curves.over_tokens(runs, curve) for curve in curves], name=name, title=title)


def _summary(runs: Sequence[labeled_run.LabeledRun]) -> Section:
    content = {
        "headline": summary.headline(runs),
        "facts": summary.facts(runs[0].data) if len(runs) == 1 else [],
        "comparison": summary.comparison(runs) if len(runs) > 1 else None,
        "legend": labeled_run.legend(runs),
        "stages": summary.stages(runs),
        "problems": [labeled_run.prefixed(runs, run, problem) for run in runs for problem in run.data.problems],
    }
    return Section(name="summary", title="Summary", template="summary.html", content=content)


def _speed(runs: Sequence[labeled_run.LabeledRun]) -> Section | None:
    charts = [time_breakdown.bars(runs), *(metric_curves.over_tokens(runs, curve) for curve in SPEED_CURVES)]
    notes = []
    if not any(run.data.has_column(metric_curves.MFU.column) for run in runs):
        notes.append("MFU is not shown: the peak FLOPs of the devices are unknown, as for CPUs.")
    return chart_section(charts, name="speed", title="Speed", notes=notes)


def _evaluations(runs: Sequence[labeled_run.LabeledRun]) -> Section | None:
    tables = evaluations.tables(runs)
    if not tables:
        return None
    return Section(name="evaluations", title="Evaluations", template="evaluations.html", content={"tables": tables})


def _cache(runs: Sequence[labeled_run.LabeledRun]) -> Section | None:
    of_runs = cache_memory.of_runs(runs)
    notes = [] if of_runs else ["The cache of the run's model is not shown: its config is unknown."]
    return chart_section([of_runs, cache_memory.of_figure_6()], name="memory", title="Cache memory", notes=notes)


def _samples(runs: Sequence[labeled_run.LabeledRun]) -> Section | None:
    prompts = samples.by_prompt(runs)
    if not prompts:
        return None
    content = {"prompts": prompts[: samples.MAX_PROMPTS], "more_prompts": prompts[samples.MAX_PROMPTS :]}
    return Section(name="samples", title="Samples", template="samples.html", content=content)


def _configs(runs: Sequence[labeled_run.LabeledRun]) -> Section:
    content = {
        "differences": configs.differences(runs),
        "max_differences": MAX_DIFFERENCES,
        "configs": [(labeled_run.prefixed(runs, run, "All fields, as resolved"), configs.as_json(run)) for run in runs],
        "not_recorded": provenance_section.NOT_RECORDED,
    }
    return Section(name="config", title="Config", template="configs.html", content=content)


def _provenance(runs: Sequence[labeled_run.LabeledRun]) -> Section:
    content = {
        "runs": [
            {
                "label": run.label if len(runs) > 1 else "",
                "properties": provenance_section.properties(run.data),
                "data_digests": provenance_section.data_digests(run.data),
                "starts": provenance_section.starts(run.data),
            }
            for run in runs
        ]
    }
    return Section(name="provenance", title="Provenance", template="provenance.html", content=content)
