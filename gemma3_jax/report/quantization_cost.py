"""What quantized weights cost in perplexity, with quantization-aware training and without it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import matplotlib.axes
import matplotlib.figure

from gemma3_jax.report import chart, formatting, labeled_run, run_data, table

DTYPE_LABELS = {"bfloat16": "bf16", "float32": "f32"}
NATS = ("unquantized_nats", "rounded_nats", "trained_nats")


@dataclasses.dataclass(frozen=True)
class QuantizedEvaluation:
    """The last evaluation of a stage with quantized weights against the weights it started from."""

    run: labeled_run.LabeledRun
    row: Mapping
    format: str  # of weights; empty if unknown
    dtype: str  # of activations

    @property
    def perplexities(self) -> list[float]:
        """Of the unquantized start; of the start quantized (PTQ); of the quantization-aware trained weights (QAT)."""
        return [math.exp(min(float(self.row[name]), 700.0)) for name in NATS]

    def labels(self) -> list[str]:
        suffix = f" {self.format}" if self.format else ""
        return [self.dtype, f"PTQ{suffix}", f"QAT{suffix}"]


def evaluations(runs: Sequence[labeled_run.LabeledRun]) -> list[QuantizedEvaluation]:
    """One for each run and stage that compared its weights with their start."""
    result = []
    for run in runs:
        for row in run.data.last_evaluations(NATS[0]):
            if all(run_data.is_number(row.get(name)) for name in NATS):
                dtype = run_data.subconfig(run.data.config, "execution").get("dtype")
                quant_config = run_data.subconfig(run.data.config, "stages", row["stage"], "quant")
                format = str(quant_config.get("format", ""))
                result.append(QuantizedEvaluation(run, row, format, DTYPE_LABELS.get(str(dtype), "unquantized")))
    return result


def bars(runs: Sequence[labeled_run.LabeledRun]) -> chart.Chart | None:
    """Perplexity unquantized, with PTQ and with QAT, and the increase in percent; None if no stage quantizes."""
    quantized = evaluations(runs)
    if not quantized:
        return None
    labels, perplexities, increases, colors = [], [], [], []  # of each bar; None for no increase
    for evaluation in quantized:
        unquantized, *others = evaluation.perplexities
        labels += [labeled_run.prefixed(runs, evaluation.run, label) for label in evaluation.labels()]
        perplexities += [unquantized, *others]
        increases += [None, *(100 * (perplexity / unquantized - 1) for perplexity in others)]
        colors += [chart.COLORS[role] for role in ("muted", chart.series_role(1), chart.series_role(0))]

    def draw(figure: matplotlib.figure.Figure, is_narrow: bool) -> None:
        panels = figure.subplots(*((2, 1) if is_narrow else (1, 2)), sharey=not is_narrow)
        _draw_panel(panels[0], perplexities, [formatting.number(value) for value in perplexities], colors)
        panels[0].set_xlabel("perplexity, lower is better")
        texts = ["" if increase is None else f"{increase:+.3g} %" for increase in increases]
        _draw_panel(panels[1], [increase or 0.0 for increase in increases], texts, colors)
        panels[1].axvline(0, color=chart.COLORS["ink"], linewidth=1)
        panels[1].set_xlabel("% above unquantized")
        label_width = max(chart.label_bars(panel, labels, is_narrow) for panel in (panels if is_narrow else panels[:1]))
        chart.set_margins(figure, left=label_width, top=0, between=56 if is_narrow else 40)

    return chart.Chart(
        name="rounding-cost",
        title="Cost of quantization",
        caption="Held-out perplexity of the unquantized start, of that start quantized (PTQ), and of the weights after "
        "quantization-aware training (QAT): QAT should be closer to the unquantized bar than PTQ.",
        draw=draw,
        height=90 + 26 * len(labels),
        narrow_height=150 + 56 * len(labels),
        is_full=True,
        numbers=_numbers(runs, quantized),
    )


def _draw_panel(
    axes: matplotlib.axes.Axes, values: Sequence[float], texts: Sequence[str], colors: Sequence[str]
) -> None:
    bars = axes.barh(range(len(values)), values, 0.62, color=colors)
    axes.bar_label(bars, texts, padding=5, color=chart.COLORS["ink"])
    axes.margins(x=0.24)
    axes.xaxis.set_major_locator(chart.round_ticks(4))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    axes.grid(visible=False)


def _numbers(runs: Sequence[labeled_run.LabeledRun], quantized: Sequence[QuantizedEvaluation]) -> table.Table:
    head = [*(["run"] if len(runs) > 1 else []), "stage", "weights", "unquantized", "PTQ", "QAT"]
    head += ["perplexity recovered", "KL, PTQ", "KL, QAT"]
    rows = []
    for evaluation in quantized:
        recovered = evaluation.row.get("recovered_perplexity")
        rows.append(
            [
                *([evaluation.run.label] if len(runs) > 1 else []),
                evaluation.row["stage"],
                evaluation.format or "–",
                *(f"{perplexity:.5g}" for perplexity in evaluation.perplexities),
                formatting.percent(recovered) if isinstance(recovered, float) else "–",
                formatting.number(evaluation.row.get("rounded_kl")),
                formatting.number(evaluation.row.get("trained_kl")),
            ]
        )
    return table.Table(head=head, rows=rows, caption="Perplexity, and KL divergence from the start in nats")
