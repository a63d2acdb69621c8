"""Bytes of a model's weights in every format, and of its cache of keys and values, beside the report's Table 3."""

import dataclasses
import math
from collections.abc import Sequence

import jax

from gemma3_jax.model import config, parameters
from gemma3_jax.quant import formats, view

# Format of the matrices -> that of the table beside it, as `convert` writes them; norms are float32.
STORED = {"bfloat16": "bfloat16", "int4": "float16", "q4_0": "float16", "sfp8": "float16"}
CACHED = {"bfloat16": 2, "int8": 1}  # bytes of a number
# What local layers keep, as this model needs no more than a window, and what they would if they were global.
LAYOUTS = ("window", "full")
# Gemma 3 report, Table 3: GB of weights in the formats of STORED, and of the cache at so many tokens.
REPORT_CONTEXT = 32_768
REPORT = {
    "1b": ((2.0, 0.5, 0.7, 1.0), 0.9),
    "4b": ((8.0, 2.6, 2.9, 4.4), 4.7),
    "12b": ((24.0, 6.6, 7.1, 12.4), 14.9),
    "27b": ((54.0, 14.1, 15.3, 27.4), 18.7),
}
NOTE = (
    "The report's weights are of the nominal size, vision and all, with fewer bits for the embedding too. Its cache is "
    "said to be of 8 bits; it is not that at batch 1: at every size it is some 12 bytes for each number that layers "
    "with windows keep, and more than 2 for each if all layers kept all tokens. 12 sequences would come near."
)


def weights(model: config.Config, format: str) -> int | None:
    """Bytes of the parameters, scales included; None if the format does not hold them, being of whole blocks."""
    dims, total = parameters.dims(model), 0
    leaves = jax.tree_util.tree_leaves_with_path(dims, is_leaf=lambda node: isinstance(node, tuple))
    for (path, letters), leaf in zip(leaves, jax.tree.leaves(parameters.shapes(model)), strict=True):
        kind = "/".join(step.key for step in path[-2:])
        sizes = list(zip(letters, leaf.shape, strict=True))
        summed = math.prod(size for letter, size in sizes if letter in view.CONTRACTED.get(kind, ""))
        num_matrices = math.prod(size for letter, size in sizes if letter == "L")
        stored = STORED[format] if kind == view.TABLE else format if kind in view.CONTRACTED else "float32"
        if stored in formats.BLOCK_FORMATS and summed % formats.BLOCK:
            return None
        total += num_matrices * formats.num_bytes(stored, leaf.size // (num_matrices * summed), summed)
    return total


def cached(model: config.Config, context: int, layout: str) -> int:
    """How many numbers the keys and values of one sequence are."""
    kept = (
        context if layout == "full" or model.is_global(layer) else min(context, model.sliding_window)
        for layer in range(model.num_layers)
    )
    return 2 * model.num_kv_heads * model.head_dim * sum(kept)


def table(model: config.Config, contexts: Sequence[int]) -> dict:
    """Bytes of weights by format, and of the cache by context, layout and number; GB of the report for its sizes."""
    found = {
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
    of_size = {name: dataclasses.replace(config.SIZES[name], vocab_padding=model.vocab_padding) for name in REPORT}
    size = next((name for name, published in of_size.items() if published == model), None)
    if size:
        told, cache = REPORT[size]
        weights_gb = dict(zip(STORED, told, strict=True))
        found["report"] = {"size": size, "weights_gb": weights_gb, "cache_gb": cache, "context": REPORT_CONTEXT}
        found["note"] = NOTE
    return found


def lines(model: config.Config, found: dict) -> list[str]:
    """The table in GB, for people."""
    told = found.get("report", {})
    rows = [
        (f"weights {format}, embedding {STORED[format]}", size, told.get("weights_gb", {}).get(format))
        for format, size in found["weights"].items()
    ]
    for context, layouts in found["cache"].items():
        for layout, numbers in layouts.items():
            for number, size in numbers.items():
                is_told = (context, number, layout) == (str(told.get("context")), "int8", "window")
                kept = f"a window of {model.sliding_window}" if layout == "window" else "all tokens"
                name = f"cache {number}, {context} tokens, local layers keep {kept}"
                rows.append((name, size, told.get("cache_gb") if is_told else None))
    width = max(len(name) for name, *_ in rows)
    said = [f"{'GB':<{width}}  {'here':>8}" + ("  report" if told else "")]
    for name, size, reported in rows:
        here = "-" if size is None else format(size / 1e9, ".3f")
        said.append(f"{name:<{width}}  {here:>8}" + (f"  {reported:6.1f}" if reported else ""))
    return [*said, *([found["note"]] if told else [])]
