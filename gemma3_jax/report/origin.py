"""What a run was asked and what it was made of: its config, and how, when and by which code it was started."""

import datetime
import json
import shlex
from collections.abc import Mapping, Sequence

from gemma3_jax import provenance
from gemma3_jax.report import history, markup
from gemma3_jax.report.shown import Shown

NOT_RECORDED = "not recorded"
LAST_SECOND = 253_402_300_800  # of the year 9999
MOST_FIELDS = 12  # that differ and are not folded away


def configs(runs: Sequence[Shown]) -> markup.Markup:
    """Every config, folded away; before them, what differs."""
    panels = []
    if differing := _differences(runs):
        head = ["field", *(one.label for one in runs)]
        table = markup.table(head, differing)
        if len(differing) > MOST_FIELDS:
            table = markup.details(f"{len(differing)} fields", table)
        panels.append(markup.element("div", markup.element("h3", "What differs"), table, class_="panel"))
    for one in runs:
        label = "Every field, as resolved" if len(runs) == 1 else f"{one.label}: every field, as resolved"
        told = json.dumps(one.run.config, indent=2, ensure_ascii=False)
        shown = markup.element("pre", told, class_="config", tabindex="0")
        panels.append(
            markup.element(
                "div",
                markup.details(label, shown) if one.run.config else markup.element("p", f"{label}: {NOT_RECORDED}."),
                class_="panel",
            )
        )
    return markup.join(panels)


def made_by(runs: Sequence[Shown]) -> markup.Markup:
    return markup.join(
        markup.element(
            "div",
            markup.element("h3", one.label) if len(runs) > 1 else None,
            _told(one.run),
            _data(one.run),
            _starts(one.run),
            class_="panel",
        )
        for one in runs
    )


def when(seconds: object) -> str:
    """A time in UTC, to the minute."""
    if not isinstance(seconds, int | float) or not 0 <= seconds < LAST_SECOND:
        return NOT_RECORDED
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _told(run: history.Run) -> markup.Markup:
    last = run.starts[-1] if run.starts else {}
    versions = last.get("versions")
    pairs = [
        ("Directory", str(run.path.resolve())),
        ("Command", _command(last)),
        ("Started", _when_started(run)),
        ("Commit", last.get("commit") or NOT_RECORDED),
        ("Versions", _versions(versions) if isinstance(versions, Mapping) else NOT_RECORDED),
        ("Config digest", run.config_digest()[:16] if run.config else NOT_RECORDED),
    ]
    return markup.element(
        "dl",
        *(
            part
            for name, value in pairs
            for part in (
                markup.element("dt", name),
                markup.element("dd", markup.element("code", value) if name != "Started" else value),
            )
        ),
        class_="told",
    )


def _versions(versions: Mapping) -> str:
    return ", ".join(f"{name} {version or '(not installed)'}" for name, version in versions.items())


def _when_started(run: history.Run) -> str:
    if not run.starts:
        return NOT_RECORDED
    first, last = when(run.starts[0].get("time")), when(run.starts[-1].get("time"))
    return first if len(run.starts) == 1 else f"{first}; {len(run.starts):,} times, the last {last}"


def _command(start: Mapping) -> str:
    command = start.get("command")
    if not isinstance(command, list):
        return NOT_RECORDED
    return f"python -m gemma3_jax {shlex.join(map(str, command))}"


def _data(run: history.Run) -> markup.Markup | None:
    """Digests of what each stage learned from."""
    told = run.starts[-1].get("data") if run.starts else None
    if not isinstance(told, Mapping) or not all(isinstance(digests, Mapping) for digests in told.values()):
        return None
    names = list(dict.fromkeys(name for digests in told.values() for name in digests))
    rows = [
        [stage, *(markup.element("code", str(digests.get(name, "–"))[:16]) for name in names)]
        for stage, digests in told.items()
    ]
    return markup.details("Digests of the data, by stage", markup.table(["stage", *names], rows))


def _starts(run: history.Run) -> markup.Markup | None:
    if len(run.starts) < 2:
        return None
    rows = [
        [
            when(start.get("time")),
            markup.element("code", str(start.get("commit") or "–")[:12]),
            markup.element("code", _command(start)),
        ]
        for start in run.starts
    ]
    return markup.details(f"All {len(rows):,} starts", markup.table(["time", "commit", "command"], rows))


def _differences(runs: Sequence[Shown]) -> list[list[object]]:
    """A row for each field that the configs do not agree in."""
    flat = [provenance.fields(one.run.config) for one in runs]
    fields = sorted({field for found in flat for field in found})
    told = [[field, *(json.dumps(found[field]) if field in found else "–" for found in flat)] for field in fields]
    return [[markup.element("code", row[0]), *row[1:]] for row in told if len(set(row[1:])) > 1]
