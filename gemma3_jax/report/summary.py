"""The run at a glance: a card for each of its main numbers, and a table of its stages."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from gemma3_jax.model import parameters
from gemma3_jax.report import cache_memory, context_curves, formatting, labeled_run, run_data, table
from gemma3_jax.train import goodput

FINAL_ROWS = 20  # a final number is the mean of so many rows, as one step is noisy


@dataclasses.dataclass(frozen=True)
class Fact:
    """One of the main numbers of a run, with a remark on it."""

    name: str
    value: str
    remark: str = ""


def facts(run: run_data.RunData) -> list[Fact]:
    last = run.stages[-1]
    num_rows = len(_final_values(last, "loss"))
    names = " → ".join(stage.name for stage in run.stages)
    skipped_remark = "spikes, not applied" if run.skipped_steps else "every step was applied"
    candidates = [
        _model(run),
        Fact("Stages", str(len(run.stages)), names),
        Fact("Tokens seen", formatting.count(last.tokens[-1]), f"{last.columns['global_step'][-1]:,.0f} steps"),
        Fact("Final loss", _final(last, "loss"), f"nats per token, {last.name}, mean of {num_rows} rows"),
        Fact("Bits per byte", _final(last, "bits_per_byte"), f"{last.name}, mean of {num_rows} rows"),
        _wall_time(run),
        Fact("Skipped steps", f"{len(run.skipped_steps):,}", skipped_remark),
        _throughput(run),
    ]
    return [fact for fact in candidates if fact]


def comparison(runs: Sequence[labeled_run.LabeledRun]) -> table.Table:
    """The facts of several runs, with a column for each run."""
    columns = [{fact.name: fact for fact in facts(run.data)} for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column[name].value if name in column else "–" for column in columns)] for name in names]
    return table.Table(head=["", *(run.label for run in runs)], rows=rows)


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
                    _final(stage, "loss"),
                    _final(stage, "bits_per_byte"),
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


def _final_values(stage: run_data.StageMetrics, column: str) -> np.ndarray:
    values = stage.accepted(column)
    return values[np.isfinite(values)][-FINAL_ROWS:]


def _final(stage: run_data.StageMetrics, column: str) -> str:
    values = _final_values(stage, column)
    return formatting.decimals(values.mean(), 3) if len(values) else "–"


def _model(run: run_data.RunData) -> Fact | None:
    model = cache_memory.model_of(run)
    if model is None:
        return None
    shape = f"parameters, {model.num_layers} layers, dim {model.embed_dim:,}"
    return Fact("Model", formatting.scaled(parameters.count(model)), shape)


def _wall_time(run: run_data.RunData) -> Fact:
    seconds = run.seconds_by_kind
    total = sum(seconds.values())
    if total:
        lost = f", {formatting.duration(seconds[goodput.LOST])} lost" if seconds[goodput.LOST] else ""
        remark = f"{formatting.percent(seconds['step'] / total)} in steps{lost}"
        return Fact("Wall time", formatting.duration(total), remark)
    times = np.concatenate([stage.column("time") for stage in run.stages])
    return Fact("Wall time", formatting.duration(float(np.ptp(times))), "from the first row to the last")


def _throughput(run: run_data.RunData) -> Fact | None:
    last = run.stages[-1]
    tokens_per_second, mfu = last.column("tokens_per_second"), last.column("mfu")
    if not np.isfinite(tokens_per_second).any():
        return None
    remark = f"tokens per second, median of {last.name}"
    if np.isfinite(mfu).any():
        remark += f"; MFU {formatting.percent(float(np.nanmedian(mfu)))}"
    return Fact("Throughput", formatting.count(float(np.nanmedian(tokens_per_second))), remark)
