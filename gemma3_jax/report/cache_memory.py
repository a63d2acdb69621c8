"""Size of the KV cache over the length of the context, of a run's model and of the report's figure 6."""

import dataclasses
from collections.abc import Sequence

import matplotlib.figure
import numpy as np

from gemma3_jax import renamed
from gemma3_jax.evals import weight_bytes
from gemma3_jax.model import config
from gemma3_jax.report import chart, formatting, labeled_run, lines, run_data

CONTEXTS = tuple(float(1 << power) for power in range(10, 18))  # 1K to 128K tokens
TICKS = (1_024.0, 32_768.0, 65_536.0, 98_304.0, 131_072.0)
# Figures 5 and 6 of the report are of a 2B model with an 8-bit cache; its shape is not published. This is the shape of
# Gemma 2 of that size, with 5 local layers per global layer. The other fields do not change the cache.
FIGURE_6 = config.Config(
    num_layers=26, embed_dim=2304, mlp_dim=9216, num_heads=8, num_kv_heads=4, head_dim=256, sliding_window=1024,
    query_scale=256**-0.5, rope_scale=1.0,
)  # fmt: skip
LAYOUT_LABELS = dict(
    zip(weight_bytes.LAYOUTS, ("local layers cache a window", "all layers cache all tokens"), strict=True)
)


def of_runs(runs: Sequence[labeled_run.LabeledRun]) -> chart.Chart | None:
    """Bytes of a bfloat16 cache over context, for each model among the runs; None if no model is known."""
    labels_by_model: dict[config.Config, list[str]] = {}
    for run in runs:
        if model := model_of(run.data):
            # Runs whose models differ in these alone have the same cache.
            model = dataclasses.replace(model, rope_scale=1.0, query_scale=1.0)
            labels_by_model.setdefault(model, []).append(run.label)
    if not labels_by_model:
        return None
    is_single = len(labels_by_model) == 1
    prefixes = {model: "" if is_single else f"{', '.join(labels)}: " for model, labels in labels_by_model.items()}
    shapes = ", ".join(
        f"{prefix}{model.num_layers} layers, {model.num_kv_heads} KV head{'s' * (model.num_kv_heads > 1)} of "
        f"dimension {model.head_dim}, sliding windows of {model.sliding_window:,} tokens"
        for model, prefix in prefixes.items()
    )
    return _chart(
        [(prefix, model) for model, prefix in prefixes.items()],
        bytes_per_value=weight_bytes.CACHED["bfloat16"],
        name="cache-run",
        title="KV cache of this model" if is_single else "KV cache of these models",
        caption=f"One sequence in bfloat16 ({shapes}): beyond the window, local layers need no more memory.",
    )


def of_figure_6() -> chart.Chart:
    """The report's figure 6, computed for a model of the same size."""
    windowed, full = (weight_bytes.cached(FIGURE_6, 131_072, layout) for layout in weight_bytes.LAYOUTS)
    return _chart(
        [("", FIGURE_6)],
        bytes_per_value=weight_bytes.CACHED["int8"],
        name="cache-figure-6",
        title="Figure 6 of the Gemma 3 report",
        caption="A 2.6B model in place of the report's 2B one (26 layers, 4 KV heads of dimension 256, 8 bits, 5 local "
        f"layers with windows of 1,024 tokens per global layer): at 128K its cache is {full / windowed:.1f} times "
        "smaller with windows.",
    )


def model_of(run: run_data.RunData) -> config.Config | None:
    """The model that a run's config describes; None if this version cannot read it."""
    columns = run.config.get("model")
    if not isinstance(columns, dict):
        return None
    for names in (columns, renamed.current(columns)):
        try:
            return config.Config(**names)
        except (TypeError, ValueError):
            continue
    return None


def _chart(
    models: Sequence[tuple[str, config.Config]], *, bytes_per_value: int, name: str, title: str, caption: str
) -> chart.Chart:
    """Two lines for each (prefix of its labels, model): with sliding windows and without."""
    curves: list[lines.Line] = []
    for prefix, model in models:
        for layout in weight_bytes.LAYOUTS:
            sizes = [float(bytes_per_value * weight_bytes.cached(model, int(length), layout)) for length in CONTEXTS]
            number, label = len(curves), f"{prefix}{LAYOUT_LABELS[layout]}"
            curves.append(lines.Line(label, chart.series_role(number), chart.series_dash(number), CONTEXTS, sizes))
    largest = max(max(line.y) for line in curves)
    unit, scale = ("GB", 1e9) if largest >= 1e10 else ("MB", 1e6) if largest >= 1e6 else ("kB", 1e3)

    def draw(figure: matplotlib.figure.Figure, is_narrow: bool) -> None:
        axes = figure.add_subplot()
        for line in curves:
            axes.plot(line.x, np.array(line.y) / scale, color=chart.COLORS[line.role], linestyle=line.dash)
        chart.set_margins(figure)
        axes.set_xticks(TICKS[::2] if is_narrow else TICKS)
        axes.xaxis.set_major_formatter(lambda value, _: formatting.tokens(value))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
        axes.yaxis.set_major_locator(chart.round_ticks(5))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens of context")
        axes.set_ylabel(f"cache, {unit}")

    return chart.Chart(
        name=name,
        title=title,
        caption=caption,
        draw=draw,
        legend=lines.legend(curves),
        narrow_height=250,
        numbers=lines.numbers(curves, "context", formatting.tokens, formatting.size),
    )
