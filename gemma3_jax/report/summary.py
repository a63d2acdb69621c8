"""The run at a glance: a card for each thing one asks first, and a table of its stages."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from gemma3_jax.model import parameters
from gemma3_jax.report import curves, history, markup, quantities
from gemma3_jax.report.shown import Shown
from gemma3_jax.train import goodput

LAST_ROWS = 20  # that a final number is the mean of: one step is noisy


@dataclasses.dataclass(frozen=True)
class Fact:
    name: str
    value: str
    more: str = ""


def facts(run: history.Run) -> list[Fact]:
    """What one asks of a run first."""
    last = run.stages[-1]
    num_rows = len(_final_rows(last, "loss"))
    names = " → ".join(stage.name for stage in run.stages)
    found = [
        _model(run),
        Fact("Stages", str(len(run.stages)), names),
        Fact("Tokens seen", quantities.count(last.tokens[-1]), f"{last.columns['global_step'][-1]:,.0f} steps"),
        Fact("Final loss", _final(last, "loss"), f"nats per token, {last.name}, mean of {num_rows} rows"),
        Fact("Bits per byte", _final(last, "bits_per_byte"), f"{last.name}, mean of {num_rows} rows"),
        _time(run),
        Fact("Skipped steps", f"{len(run.skipped):,}", "not believed" if run.skipped else "every step was believed"),
        _speed(run),
    ]
    return [fact for fact in found if fact]


def cards(run: history.Run) -> markup.Markup:
    return markup.element(
        "div",
        *(
            markup.element(
                "dl",
                markup.element("dt", fact.name),
                markup.element("dd", fact.value, class_="value"),
                markup.element("dd", fact.more, class_="more"),
                class_="card",
                style="margin:0",
            )
            for fact in facts(run)
        ),
        class_="cards",
    )


def side_by_side(runs: Sequence[Shown]) -> markup.Markup:
    """A column for each run."""
    columns = [{fact.name: fact for fact in facts(one.run)} for one in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column[name].value if name in column else "–" for column in columns)] for name in names]
    return markup.table(["", *(one.label for one in runs)], rows)


def stages(runs: Sequence[Shown]) -> markup.Markup:
    """A row for each stage of each run."""
    head = [*(["run"] if len(runs) > 1 else []), "stage", "steps", "row length", "tokens", "first loss", "final loss"]
    head += ["bits per byte", "peak rate", "skipped"]
    rows = []
    for one in runs:
        for stage in one.run.stages:
            loss = stage.believed("loss")
            loss = loss[np.isfinite(loss)]
            rate = stage.column("learning_rate")
            skipped = sum(row["stage"] == stage.name for row in one.run.skipped)
            rows.append(
                [
                    *([one.label] if len(runs) > 1 else []),
                    stage.name,
                    f"{stage.column('step')[-1]:,.0f}",
                    quantities.number(curves.trained_length(one.run, stage.name)),
                    quantities.count(_tokens(stage)),
                    quantities.decimals(loss[0] if len(loss) else np.nan, 3),
                    _final(stage, "loss"),
                    _final(stage, "bits_per_byte"),
                    quantities.number(float(np.max(rate, initial=0.0, where=np.isfinite(rate))) or None),
                    f"{skipped:,}",
                ]
            )
    return markup.table(head, rows)


def _tokens(stage: history.Stage) -> float:
    """Of the stage alone: a run may begin with a later one, whose tokens are counted from where the walk begins."""
    steps = stage.column("step")
    if len(steps) < 2:
        return math.nan
    return float(stage.tokens[-1] - stage.tokens[0]) / (steps[-1] - steps[0]) * steps[-1]


def _final_rows(stage: history.Stage, column: str) -> np.ndarray:
    found = stage.believed(column)
    return found[np.isfinite(found)][-LAST_ROWS:]


def _final(stage: history.Stage, column: str) -> str:
    found = _final_rows(stage, column)
    return quantities.decimals(found.mean(), 3) if len(found) else "–"


def _model(run: history.Run) -> Fact | None:
    model = curves.model_of(run)
    if model is None:
        return None
    shape = f"parameters, {model.num_layers} layers of width {model.embed_dim:,}"
    return Fact("Model", quantities.scaled(parameters.count(model)), shape)


def _time(run: history.Run) -> Fact:
    whole = sum(run.seconds.values())
    if whole:
        lost = f", {quantities.duration(run.seconds[goodput.LOST])} lost" if run.seconds[goodput.LOST] else ""
        more = f"{quantities.share(run.seconds['step'] / whole)} in steps{lost}"
        return Fact("Wall time", quantities.duration(whole), more)
    times = np.concatenate([stage.column("time") for stage in run.stages])
    return Fact("Wall time", quantities.duration(float(np.ptp(times))), "from the first row to the last")


def _speed(run: history.Run) -> Fact | None:
    last = run.stages[-1]
    speed, mfu = last.column("tokens_per_second"), last.column("mfu")
    if not np.isfinite(speed).any():
        return None
    more = f"tokens a second, median of {last.name}"
    if np.isfinite(mfu).any():
        more += f"; MFU {quantities.share(float(np.nanmedian(mfu)))}"
    return Fact("Throughput", quantities.count(float(np.nanmedian(speed))), more)
