"""The run at a glance: a card for each of its main numbers, and a table of its stages."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from gemma3_jax.model import parameters
from gemma3_jax.report import cache_memory, context_curves, formatting, labeled_run, run_data, table
from gemma3_jax.train import final, goodput


@dataclasses.dataclass(frozen=True)
class Fact:
    """One of the main numbers of a run, with a remark on it."""

    name: str
    value: str
    remark: str = ""
    number: float = math.nan  # the value, of which runs differ
    digits: int = -1  # after the point, of a difference; under 0: it is a percentage


def facts(run: run_data.RunData) -> list[Fact]:
    last = run.stages[-1]
    num_rows = len(final.values(last.accepted("loss")))
    names = " → ".join(stage.name for stage in run.stages)
    skipped_remark = "spikes, not applied" if run.skipped_steps else "every step was applied"
    candidates = [
        _model(run),
        Fact("Stages", str(len(run.stages)), names),
        _tokens(last),
        _final_fact(last, "loss", "Final loss", f"nats per token, {last.name}, mean of {num_rows} rows"),
        _final_fact(last, "bits_per_byte", "Bits per byte", f"{last.name}, mean of {num_rows} rows"),
        _wall_time(run),
        Fact("Skipped steps", f"{len(run.skipped_steps):,}", skipped_remark),
        _throughput(run),
    ]
    return [fact for fact in candidates if fact]


def comparison(runs: Sequence[labeled_run.LabeledRun]) -> table.Table:
    """The facts of several runs, with a column for each run, and how the later ones differ from the first."""
    columns = [{fact.name: fact for fact in facts(run.data)} for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(_beside(column.get(name), columns[0].get(name)) for column in columns)] for name in names]
    return table.Table(head=["", *(run.label for run in runs)], rows=rows)


def headline(runs: Sequence[labeled_run.LabeledRun]) -> str:
    """What came of a run, or of several, in one sentence."""
    if len(runs) > 1:
        first, *others = (_final_fact(run.data.stages[-1], "loss", run.label, "") for run in runs)
        values = [f"{first.name} {first.value}", *(f"{other.name} {_beside(other, first)}" for other in others)]
        return f"Final loss in nats per token: {', '.join(values)}."
    last = runs[0].data.stages[-1]
    loss = formatting.decimals(_final(last, "loss"), 3)
    steps, tokens = f"{last.columns['global_step'][-1]:,.0f} steps", formatting.count(last.tokens[-1])
    return f"Final loss {loss} nats per token in {last.name}, after {steps} and {tokens} tokens."


def _beside(fact: Fact | None, first: Fact | None) -> str:
    """The value of a run, and in brackets what it is more than that of the first one, if they differ."""
    if fact is None:
        return "–"
    if first is None or fact.number == first.number or not math.isfinite(fact.number - first.number):
        return fact.value
    return f"{fact.value} ({formatting.difference(fact.number, first.number, fact.digits)})"


def stages(runs: Sequence[labeled_run.LabeledRun]) -> table.Table:
    """A row for each stage of each run."""
    head = [*(["run"] if len(runs) > 1 else []), "stage", "steps", "sequence length", "tokens", "first loss"]
    head += ["final loss", "bits per byte", "peak LR", "skipped"]
    rows = []
    for run in runs:
        for stage in run.data.stages:
            loss = stage.accepted("loss")
            loss = loss[np.isfinite(loss)]
            learning_rate = stage.column("learning_rate")
            peak_lr = float(np.max(learning_rate, initial=0.0, where=np.isfinite(learning_rate)))
            num_skipped = sum(row["stage"] == stage.name for row in run.data.skipped_steps)
            rows.append(
                [
                    *([run.label] if len(runs) > 1 else []),
                    stage.name,
                    f"{stage.column('step')[-1]:,.0f}",
                    formatting.number(context_curves.trained_length(run.data, stage.name)),
                    formatting.count(_stage_tokens(stage)),
                    formatting.decimals(loss[0] if len(loss) else np.nan, 3),
                    formatting.decimals(_final(stage, "loss"), 3),
                    formatting.decimals(_final(stage, "bits_per_byte"), 3),
                    formatting.number(peak_lr or None),
                    f"{num_skipped:,}",
                ]
            )
    return table.Table(head=head, rows=rows)


def _stage_tokens(stage: run_data.StageMetrics) -> float:
    """Tokens of the stage alone: in a run that starts at a later stage, tokens_seen includes the earlier ones."""
    steps = stage.column("step")
    if len(steps) < 2 or steps[-1] == steps[0]:
        return math.nan
    return float(stage.tokens[-1] - stage.tokens[0]) / (steps[-1] - steps[0]) * steps[-1]


def _tokens(last: run_data.StageMetrics) -> Fact:
    number, steps = float(last.tokens[-1]), last.columns["global_step"][-1]
    return Fact("Tokens seen", formatting.count(number), f"{steps:,.0f} steps", number)


def _final_fact(stage: run_data.StageMetrics, column: str, name: str, remark: str) -> Fact:
    number = _final(stage, column)
    return Fact(name, formatting.decimals(number, 3), remark, number, digits=3)


def _final(stage: run_data.StageMetrics, column: str) -> float:
    return final.mean(stage.accepted(column))


def _model(run: run_data.RunData) -> Fact | None:
    model = cache_memory.model_of(run)
    if model is None:
        return None
    shape = f"parameters, {model.num_layers} layers, dim {model.embed_dim:,}"
    number = parameters.count(model)
    return Fact("Model", formatting.scaled(number), shape, float(number))


def _wall_time(run: run_data.RunData) -> Fact:
    seconds = run.seconds_by_kind
    total = sum(seconds.values())
    if total:
        lost = f", {formatting.duration(seconds[goodput.LOST])} lost" if seconds[goodput.LOST] else ""
        remark = f"{formatting.percent(seconds['step'] / total)} in steps{lost}"
        return Fact("Wall time", formatting.duration(total), remark, total)
    times = float(np.ptp(np.concatenate([stage.column("time") for stage in run.stages])))
    return Fact("Wall time", formatting.duration(times), "from the first row to the last", times)


def _throughput(run: run_data.RunData) -> Fact | None:
    last = run.stages[-1]
    tokens_per_second, mfu = last.column("tokens_per_second"), last.column("mfu")
    if not np.isfinite(tokens_per_second).any():
        return None
    remark = f"tokens per second, median of {last.name}"
    if np.isfinite(mfu).any():
        remark += f"; MFU {formatting.percent(float(np.nanmedian(mfu)))}"
    median = float(np.nanmedian(tokens_per_second))
    return Fact("Throughput", formatting.count(median), remark, median)
