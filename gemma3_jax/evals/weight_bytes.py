"""Bytes of a model's weights in every format, and of its KV cache, compared with the report's Table 3."""

import dataclasses
import math
from collections.abc import Sequence

import jax

from gemma3_jax.model import config, parameters
from gemma3_jax.quant import formats, view

# Format of the matrices -> that of the embedding table, as `convert` writes them; norms are float32.
STORED = {"bfloat16": "bfloat16", "int4": "float16", "q4_0": "float16", "sfp8": "float16"}
CACHED = {"bfloat16": 2, "int8": 1}  # bytes of an element
# What local layers cache: a window, as this implementation does, or everything, as global layers do.
LAYOUTS = ("window", "full")
# Gemma 3 report, Table 3: GB of weights in the formats of STORED, and of the cache at REPORT_CONTEXT tokens.
REPORT_CONTEXT = 32_768
REPORT = {
    "1b": ((2.0, 0.5, 0.7, 1.0), 0.9),
    "4b": ((8.0, 2.6, 2.9, 4.4), 4.7),
    "12b": ((24.0, 6.6, 7.1, 12.4), 14.9),
    "27b": ((54.0, 14.1, 15.3, 27.4), 18.7),
}
NOTE = (
    "The report's weights have the nominal size, vision included, and fewer bits for the embedding too. It describes "
    "its cache as 8 bits, but it is not 8 bits at batch 1: at every size it is some 12 bytes for each element that "
    "the windowed layout caches, or more than 2 if all layers cached all tokens. 12 sequences would come near."
)


def weights(model: config.Config, format: str) -> int | None:
    """Bytes of the parameters, scales included; None if the format has blocks that a matrix does not divide into."""
    dims, total = parameters.dims(model), 0
    leaves = jax.tree_util.tree_leaves_with_path(dims, is_leaf=lambda node: isinstance(node, tuple))
    for (path, letters), leaf in zip(leaves, jax.tree.leaves(parameters.shapes(model)), strict=True):
        kind = "/".join(step.key for step in path[-2:])
        sizes = list(zip(letters, leaf.shape, strict=True))
        contracted = math.prod(size for letter, size in sizes if letter in view.CONTRACTED.get(kind, ""))
        num_matrices = math.prod(size for letter, size in sizes if letter == "L")
        leaf_format = STORED[format] if kind == view.TABLE else format if kind in view.CONTRACTED else "float32"
        if leaf_format in formats.BLOCK_FORMATS and contracted % formats.BLOCK:
            return None
        total += num_matrices * formats.num_bytes(leaf_format, leaf.size // (num_matrices * contracted), contracted)
    return total


def cached(model: config.Config, context: int, layout: str) -> int:
    """Elements in the keys and values of one sequence."""
    num_slots = (
        context if layout == "full" or model.is_global(layer) else min(context, model.sliding_window)
        for layer in range(model.num_layers)
    )
    return 2 * model.num_kv_heads * model.head_dim * sum(num_slots)


def table(model: config.Config, contexts: Sequence[int]) -> dict:
    """Bytes of weights by format and of the cache by context, layout and dtype; the report's GB for its sizes."""
    result = {
        "weights": {format: weights(model, format) for format in STORED},
        "embedding": STORED,
        "cache": {
            str(context): {
                layout: {name: size * cached(model, context, layout) for name, size in CACHED.items()}
                for layout in LAYOUTS
            }
            for context in contexts
        },
    }
    published_models = {
        name: dataclasses.replace(config.SIZES[name], vocab_padding=model.vocab_padding) for name in REPORT
    }
    size = next((name for name, published in published_models.items() if published == model), None)
    if size:
        report_weights, cache = REPORT[size]
        weights_gb = dict(zip(STORED, report_weights, strict=True))
        result["report"] = {"size": size, "weights_gb": weights_gb, "cache_gb": cache, "context": REPORT_CONTEXT}
        result["note"] = NOTE
    return result


def lines(model: config.Config, table: dict) -> list[str]:
    """The table in GB, for people."""
    report = table.get("report", {})
    rows = [
        (f"weights {format}, embedding {STORED[format]}", size, report.get("weights_gb", {}).get(format))
        for format, size in table["weights"].items()
    ]
    for context, layouts in table["cache"].items():
        for layout, sizes in layouts.items():
            for dtype, size in sizes.items():
                is_in_report = (context, dtype, layout) == (str(report.get("context")), "int8", "window")
                extent = f"a window of {model.sliding_window}" if layout == "window" else "all tokens"
                name = f"cache {dtype}, {context} tokens, local layers cache {extent}"
                rows.append((name, size, report.get("cache_gb") if is_in_report else None))
    width = max(len(name) for name, *_ in rows)
    output = [f"{'GB':<{width}}  {'here':>8}" + ("  report" if report else "")]
    for name, size, reported in rows:
        here = "-" if size is None else format(size / 1e9, ".3f")
        output.append(f"{name:<{width}}  {here:>8}" + (f"  {reported:6.1f}" if reported else ""))
    return [*output, *([table["note"]] if report else [])]
