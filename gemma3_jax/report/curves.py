"""Curves over the length of the context: what longer contexts are worth, and what they cost."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib.axes
import matplotlib.figure
import matplotlib.ticker
import numpy as np

from gemma3_jax.evals import weight_bytes
from gemma3_jax.model import config
from gemma3_jax.report import drawing, history, markup, quantities, shown
from gemma3_jax.report.shown import Shown

# Names of numbers of an evaluation, and in them the length, or the first position of a bin: 64 or 64-127.
LAST = r"context/by_length/(\d+)/nats"
POSITION = r"context/by_position/(\d+)(?:-\d+)?"
CONTEXTS = tuple(float(1 << power) for power in range(10, 18))  # 1K to 128K tokens
TICKS = (1_024.0, 32_768.0, 65_536.0, 98_304.0, 131_072.0)
# The model of the report's figures 5 and 6 is said to be of 2B, and its cache to be of 8 bits: these are the columns of
# the model of that size which came before, with 5 local layers to a global one. The others do not change the cache.
FIGURE_6 = config.Config(
    num_layers=26, embed_dim=2304, mlp_dim=9216, num_heads=8, num_kv_heads=4, head_dim=256, sliding_window=1024,
    query_scale=256**-0.5, rope_scale=1.0,
)  # fmt: skip
NAMES = {"window": "local layers keep a window", "full": "all layers keep all tokens"}


@dataclasses.dataclass(frozen=True)
class Line:
    label: str
    role: str  # of its colour
    dash: object
    x: Sequence[float]
    y: Sequence[float]


def last_tokens(runs: Sequence[Shown]) -> drawing.Chart | None:
    """Loss of the last tokens against context length, at the end of each stage; None if it was never measured."""
    return _of_evaluations(
        runs,
        LAST,
        name="context-last",
        title="Last tokens against context",
        axis="tokens of context",
        caption="Lower to the right if more context helps; a rise beyond the length a stage was trained at (dotted) is "
        "what extension has to undo.",
    )


def positions(runs: Sequence[Shown]) -> drawing.Chart | None:
    """Loss by position in the document; None if it was never measured."""
    return _of_evaluations(
        runs,
        POSITION,
        name="context-position",
        title="Loss by position",
        axis="position in the document, to twice as far, tokens",
        caption="The mean over a bin of positions, from each to its double: it falls as long as a model makes use of "
        "what came before, and beyond the trained length (dotted) only an extended model keeps it low.",
    )


def _of_evaluations(
    runs: Sequence[Shown], pattern: str, *, name: str, title: str, axis: str, caption: str
) -> drawing.Chart | None:
    lines: list[Line] = []
    trained: set[int] = set()
    for one in runs:
        for mine, row in enumerate(one.run.last_evaluations(pattern)):
            points = _points(row, pattern)
            # A run keeps its colour, and its stages have dashes; of one run alone, each stage has its own colour.
            role = drawing.role_of(mine if len(runs) == 1 else one.number)
            label = shown.name(runs, one, f"after {row['stage']}")
            lines.append(Line(label, role, drawing.dash_of(mine), *zip(*points, strict=True)))
            if length := trained_length(one.run, row["stage"]):
                trained.add(length)
    if not lines:
        return None

    def draw(figure: matplotlib.figure.Figure, is_narrow: bool) -> None:
        axes = figure.add_subplot()
        drawing.place(figure, top=24)
        for length in sorted(trained):
            axes.axvline(length, color=drawing.COLOUR["muted"], linewidth=1, linestyle=(0, (1.5, 2)))
            axes.annotate(
                f"trained at {quantities.tokens(length)}",
                (length, 1),
                (-3, 4),
                xycoords=axes.get_xaxis_transform(),
                textcoords="offset points",
                ha="right",
                color=drawing.COLOUR["muted"],
            )
        for line in lines:
            axes.plot(line.x, line.y, marker="o", markersize=4, color=drawing.COLOUR[line.role], linestyle=line.dash)
        axes.set_xscale("log", base=2)
        ticks = sorted({x for line in lines for x in line.x})
        axes.set_xticks(ticks[:: -(-len(ticks) // (5 if is_narrow else 9))])
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: quantities.tokens(value))
        axes.set_xlabel(axis)
        axes.set_ylabel("nats per token")
        axes.yaxis.set_major_locator(drawing.ticks(5))

    return drawing.Chart(
        name=name,
        title=title,
        caption=caption,
        draw=draw,
        keys=_legend(lines),
        narrow_height=250,
        numbers=_numbers(lines, "tokens", quantities.tokens, lambda value: quantities.decimals(value, 4)),
    )


def _points(row: Mapping, pattern: str) -> list[tuple[float, float]]:
    """(tokens, nats), in order."""
    found = [(re.fullmatch(pattern, name), value) for name, value in row.items()]
    return sorted((float(match[1]), float(value)) for match, value in found if match and isinstance(value, int | float))


def trained_length(run: history.Run, stage: str) -> int | None:
    """Tokens of the rows that a stage learned from; None if its config does not say."""
    length = history.fields(run.config, "stages", stage).get("seq_len")
    return length if isinstance(length, int) and length > 0 else None


def model_of(run: history.Run) -> config.Config | None:
    """The model that the run's config describes; None if this version cannot read it."""
    columns = run.config.get("model")
    try:
        return config.Config(**columns)
    except (TypeError, ValueError):
        return None


def cache_of_runs(runs: Sequence[Shown]) -> drawing.Chart | None:
    """Bytes of a bfloat16 cache against context, of each run whose model is known; None if none is."""
    models: dict[config.Config, list[str]] = {}
    for one in runs:
        if model := model_of(one.run):
            models.setdefault(dataclasses.replace(model, rope_scale=1.0, query_scale=1.0), []).append(one.label)
    if not models:
        return None
    names = {} if len(models) == 1 else {model: ", ".join(labels) for model, labels in models.items()}
    told = ", ".join(
        f"{(names[model] + ': ') if names else ''}{model.num_layers} layers, {model.num_kv_heads} key "
        f"head{'s' * (model.num_kv_heads > 1)} of {model.head_dim}, windows of {model.sliding_window:,}"
        for model in models
    )
    return _cache(
        [(f"{names[model]}: " if names else "", model) for model in models],
        bytes_each=weight_bytes.CACHED["bfloat16"],
        name="cache-run",
        title="Cache of this model" if len(models) == 1 else "Cache of these models",
        caption=f"Keys and values of one sequence in bfloat16 ({told}): past the window, local layers cost no more.",
    )


def cache_of_figure_6() -> drawing.Chart:
    """The report's figure 6, by formula, of a model of the size it names."""
    ratio = weight_bytes.cached(FIGURE_6, 131_072, "full") / weight_bytes.cached(FIGURE_6, 131_072, "window")
    return _cache(
        [("", FIGURE_6)],
        bytes_each=weight_bytes.CACHED["int8"],
        name="cache-figure-6",
        title="The same for the report’s figure 6",
        caption="A stand-in of 2.6B for the report's 2B model (26 layers, 4 key heads of 256, 8 bits, 5 local layers "
        f"with windows of 1,024 to a global one): at 128K the cache is {ratio:.1f} times smaller.",
    )


def _cache(
    models: Sequence[tuple[str, config.Config]], *, bytes_each: int, name: str, title: str, caption: str
) -> drawing.Chart:
    lines = []
    for prefix, model in models:
        for layout in weight_bytes.LAYOUTS:
            sizes = [float(bytes_each * weight_bytes.cached(model, int(context), layout)) for context in CONTEXTS]
            number = len(lines)
            label = f"{prefix}{NAMES[layout]}"
            lines.append(Line(label, drawing.role_of(number), drawing.dash_of(number), CONTEXTS, sizes))
    biggest = max(max(line.y) for line in lines)
    unit, scale = ("GB", 1e9) if biggest >= 1e10 else ("MB", 1e6) if biggest >= 1e6 else ("kB", 1e3)

    def draw(figure: matplotlib.figure.Figure, is_narrow: bool) -> None:
        axes = figure.add_subplot()
        for line in lines:
            axes.plot(line.x, np.array(line.y) / scale, color=drawing.COLOUR[line.role], linestyle=line.dash)
        drawing.place(figure)
        axes.set_xticks(TICKS[::2] if is_narrow else TICKS)
        axes.xaxis.set_major_formatter(lambda value, _: quantities.tokens(value))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
        axes.yaxis.set_major_locator(drawing.ticks(5))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens of context")
        axes.set_ylabel(f"{unit} of cache")

    numbers = _numbers(lines, "context", quantities.tokens, quantities.size)
    return drawing.Chart(
        name=name, title=title, caption=caption, draw=draw, keys=_legend(lines), narrow_height=250, numbers=numbers
    )


def _legend(lines: Sequence[Line]) -> list[drawing.Key]:
    return [drawing.Key(label=line.label, role=line.role, dash=line.dash) for line in lines]


def _numbers(
    lines: Sequence[Line], head: str, of_x: Callable[[float], str], of_y: Callable[[float], str]
) -> markup.Markup:
    """A row for each x that any line has."""
    found = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    rows = [
        [of_x(x), *(of_y(points[x]) if x in points else None for points in found)]
        for x in sorted({x for points in found for x in points})
    ]
    return markup.table([head, *(line.label for line in lines)], rows)
