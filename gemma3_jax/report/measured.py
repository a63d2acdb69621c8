"""What was measured beside training, as tables and texts: the last of each stage."""

import re
from collections.abc import Mapping, Sequence

from gemma3_jax.report import bars, curves, history, markup, quantities
from gemma3_jax.report.shown import Shown, name

HELD_OUT = "held-out rows"
SAMPLES = "samples"
IN_CHARTS = re.compile(rf"{curves.LAST}|{curves.POSITION}|context/by_length/\d+/standard_error")
MOST_ROWS = 24  # of a table; what comes after is folded away
MOST_COLUMNS = 4  # of a table that takes half the page
MOST_PROMPTS = 4  # that are not


def tables(runs: Sequence[Shown]) -> list[markup.Markup]:
    """A table for each kind of evaluation, but what charts of their own show; a column for each stage of each run."""
    columns = [
        (name(runs, one, stage), numbers)
        for one in runs
        for stage, numbers in _last_numbers(one.run).items()
        if numbers
    ]
    rows = dict.fromkeys(key for _, numbers in columns for key in numbers)
    tasks: dict[str, list[str]] = {}
    for key in rows:
        tasks.setdefault(key.partition("/")[0] if "/" in key else HELD_OUT, []).append(key)
    found = []
    for task, keys in tasks.items():
        having = [(label, numbers) for label, numbers in columns if any(key in numbers for key in keys)]
        head = ["", *(label for label, _ in having)]
        told = [
            [
                key.removeprefix(f"{task}/").replace("_", " "),
                *(quantities.number(numbers.get(key)) for _, numbers in having),
            ]
            for key in keys
        ]
        shown, rest = told[:MOST_ROWS], told[MOST_ROWS:]
        found.append(
            markup.element(
                "div",
                markup.element("h3", task.capitalize()),
                markup.table(head, shown),
                markup.details(f"{len(rest)} more", markup.table(head, rest)) if rest else None,
                class_="panel" if len(having) <= MOST_COLUMNS else "panel full",
            )
        )
    return found


def samples(runs: Sequence[Shown]) -> markup.Markup | None:
    """What models went on with, by prompt; None if nothing was sampled."""
    by_prompt: dict[str, list[tuple[str, str]]] = {}
    for one in runs:
        last: dict[str, list] = {}
        for row in one.run.evaluations:
            if isinstance(row.get(SAMPLES), list):
                last[row["stage"]] = row[SAMPLES]
        for stage, told in last.items():
            for sample in told:
                if isinstance(sample, Mapping):
                    prompt, text = str(sample.get("prompt", "")), str(sample.get("text", ""))
                    by_prompt.setdefault(prompt, []).append((name(runs, one, f"after {stage}"), text))
    if not by_prompt:
        return None
    panels = [_prompt(prompt, texts) for prompt, texts in by_prompt.items()]
    shown, rest = panels[:MOST_PROMPTS], panels[MOST_PROMPTS:]
    return markup.join([*shown, markup.details(f"{len(rest)} more prompts", *rest) if rest else None])


def _prompt(prompt: str, texts: Sequence[tuple[str, str]]) -> markup.Markup:
    return markup.element(
        "div",
        *(
            markup.element(
                "div",
                markup.element("h4", label),
                markup.element("p", markup.element("span", prompt, class_="prompt"), text),
                class_="sample",
            )
            for label, text in texts
        ),
        class_="panel",
    )


def _last_numbers(run: history.Run) -> dict[str, dict]:
    """Of every stage, the last value of each number that no chart shows."""
    found: dict[str, dict] = {}
    for row in run.evaluations:
        of_stage = found.setdefault(row["stage"], {})
        if bars.PRECISIONS[0] in row:
            row = {key: value for key, value in row.items() if "/" in key}
        for key, value in row.items():
            if key not in history.PLACE and key != SAMPLES and not IN_CHARTS.fullmatch(key):
                if isinstance(value, int | float):
                    of_stage[key] = value
    return found
