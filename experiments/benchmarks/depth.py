"""HLO instructions of the forward pass of 27B against 1B: the program must not grow with depth.

    python experiments/benchmarks/depth.py

Prints one JSON line per model and one with the ratios. Takes two seconds, as nothing is allocated or run. Instructions
are counted in the lowered program, before a backend fuses them. The ratio of 27B to 27B cut to the depth of 1B shows
the effect of depth alone; it is 1. 1B itself has fewer reshapes and broadcasts, as it has a single key head.
"""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp

from gemma3_jax.model import config, masks, parameters

NUM_TOKENS = 4096


def measure(name: str, model: config.Config) -> dict:
    """The number of HLO instructions of one forward pass to the logits of the last token."""

    def forward(params, tokens):
        bound = parameters.bind(model, params)
        return bound.logits(bound(tokens, masks.whole_rows(tokens))[:, -1:])

    shapes, tokens = parameters.shapes(model, jnp.bfloat16), jax.ShapeDtypeStruct((1, NUM_TOKENS), jnp.int32)
    text = jax.jit(forward).lower(shapes, tokens).as_text(dialect="hlo")
    num_instructions = len(re.findall(r"^\s+(?:ROOT )?\S+ = ", text, flags=re.MULTILINE))
    return {"benchmark": "depth", "model": name, "layers": model.num_layers, "hlo_instructions": num_instructions}


def main() -> None:
    small, large = config.SIZES["1b"], config.SIZES["27b"]
    cut = dataclasses.replace(large, num_layers=small.num_layers)
    rows = [measure("1b", small), measure("27b", large), measure("27b at the depth of 1b", cut)]
    num_small, num_large, num_cut = (row["hlo_instructions"] for row in rows)
    ratios = {
        "benchmark": "depth",
        "27b_over_1b": round(num_large / num_small, 3),
        "27b_over_27b_cut": round(num_large / num_cut, 3),
    }
    for line in (*rows, ratios):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
