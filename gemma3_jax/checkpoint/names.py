"""The table of names: what each parameter is called, and how it is laid out, in every format that is read or written.

A layout is a string of dims as einops reads it: "(N H) D" is a matrix of N*H rows and D columns. Expected shapes, and
the transposes in both directions, follow from the layouts alone.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import einops
import numpy as np

from gemma3_jax.model import config


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """A parameter: its path below its layer (or the root) in our tree, and its name and layout in other formats.

    `published_index` is its index in the published tensor, if that stacks two parameters.
    """

    path: str
    layout: str
    hf: str
    hf_layout: str
    published: str
    published_layout: str
    published_index: int | None = None


# Sources: huggingface/transformers modeling_gemma3.py; google-deepmind/gemma gm/nn/_modules.py and gm/ckpts.
ROOT = (
    ParamSpec("embedder/table", "V D", "embed_tokens.weight", "V D", "embedder/input_embedding", "V D"),
    ParamSpec("final_norm/scale", "D", "norm.weight", "D", "final_norm/scale", "D"),
)
LAYER = (
    ParamSpec("pre_attention_norm/scale", "D", "input_layernorm.weight", "D", "pre_attention_norm/scale", "D"),
    ParamSpec("attention/query", "D N H", "self_attn.q_proj.weight", "(N H) D", "attn/q_einsum/w", "N D H"),
    ParamSpec("attention/key", "D K H", "self_attn.k_proj.weight", "(K H) D", "attn/kv_einsum/w", "K D H", 0),
    ParamSpec("attention/value", "D K H", "self_attn.v_proj.weight", "(K H) D", "attn/kv_einsum/w", "K D H", 1),
    ParamSpec("attention/query_norm/scale", "H", "self_attn.q_norm.weight", "H", "attn/_query_norm/scale", "H"),
    ParamSpec("attention/key_norm/scale", "H", "self_attn.k_norm.weight", "H", "attn/_key_norm/scale", "H"),
    ParamSpec("attention/output", "N H D", "self_attn.o_proj.weight", "D (N H)", "attn/attn_vec_einsum/w", "N H D"),
    ParamSpec(
        "post_attention_norm/scale", "D", "post_attention_layernorm.weight", "D", "post_attention_norm/scale", "D"
    ),
    ParamSpec("pre_mlp_norm/scale", "D", "pre_feedforward_layernorm.weight", "D", "pre_ffw_norm/scale", "D"),
    ParamSpec("mlp/gate", "D F", "mlp.gate_proj.weight", "F D", "mlp/gating_einsum/w", "F D", 0),
    ParamSpec("mlp/up", "D F", "mlp.up_proj.weight", "F D", "mlp/gating_einsum/w", "F D", 1),
    ParamSpec("mlp/down", "F D", "mlp.down_proj.weight", "D F", "mlp/linear/w", "F D"),
    ParamSpec("post_mlp_norm/scale", "D", "post_feedforward_layernorm.weight", "D", "post_ffw_norm/scale", "D"),
)

# Names in GGUF, whose layouts are those of Hugging Face.
# Source: ggml-org/llama.cpp gguf-py/gguf/constants.py.
GGUF = {
    "embedder/table": "token_embd",
    "final_norm/scale": "output_norm",
    "pre_attention_norm/scale": "attn_norm",
    "attention/query": "attn_q",
    "attention/key": "attn_k",
    "attention/value": "attn_v",
    "attention/query_norm/scale": "attn_q_norm",
    "attention/key_norm/scale": "attn_k_norm",
    "attention/output": "attn_output",
    "post_attention_norm/scale": "post_attention_norm",
    "pre_mlp_norm/scale": "ffn_norm",
    "mlp/gate": "ffn_gate",
    "mlp/up": "ffn_up",
    "mlp/down": "ffn_down",
    "post_mlp_norm/scale": "post_ffw_norm",
}


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where a parameter of one layer is in our tree: in the stacked array at `path`, at `index` of its "L" dims."""

    path: tuple[str, ...]
    index: tuple[int, ...]
    spec: ParamSpec
    layer: int | None


def slots(model: config.Config) -> Iterator[Slot]:
    """Yields every parameter of every layer, in the order of the layers."""
    yield Slot(tuple(ROOT[0].path.split("/")), (), ROOT[0], None)
    for layer in range(model.num_layers):
        period, layer_in_period = divmod(layer, model.period)
        if period == model.num_periods:
            stack, index = ("remaining_layers",), (layer_in_period,)
        elif model.is_global(layer):
            stack, index = ("periods", "global_layer"), (period,)
        else:
            stack, index = ("periods", "local_layers"), (period, layer_in_period)
        for spec in LAYER:
            yield Slot((*stack, *spec.path.split("/")), index, spec, layer)
    yield Slot(tuple(ROOT[1].path.split("/")), (), ROOT[1], None)


def hf_name(slot: Slot, prefix: str = "model.") -> str:
    """Returns the name of a slot's tensor in a Hugging Face checkpoint, below the `prefix` of its text model."""
    return prefix + (slot.spec.hf if slot.layer is None else f"layers.{slot.layer}.{slot.spec.hf}")


def gguf_name(slot: Slot) -> str:
    """Returns the name of a slot's tensor in a GGUF file."""
    name = f"{GGUF[slot.spec.path]}.weight"
    return name if slot.layer is None else f"blk.{slot.layer}.{name}"


def dim_sizes(model: config.Config, *, padded: bool = False) -> dict[str, int]:
    """Returns the size of each dim by its letter; `padded` counts the extra rows of a Hugging Face table in V."""
    return {
        "V": model.vocab_size + (model.vocab_padding if padded else 0),
        "D": model.embed_dim,
        "F": model.mlp_dim,
        "N": model.num_heads,
        "K": model.num_kv_heads,
        "H": model.head_dim,
    }


def shape_of(layout: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """Returns the shape of a layout: (8, 4) for "(N H) D" with N = 2, H = 4, D = 4."""
    groups = layout.replace("(", " ( ").replace(")", " ) ").split()
    shape, inside = [], None
    for token in groups:
        if token == "(":
            inside = []
        elif token == ")":
            shape.append(math.prod(inside))
            inside = None
        elif inside is not None:
            inside.append(sizes[token])
        else:
            shape.append(sizes[token])
    return tuple(shape)


def relayout(x: np.ndarray, source: str, target: str, sizes: dict[str, int]) -> np.ndarray:
    """Returns `x` of layout `source` in layout `target`; a view if no copy is needed."""
    used = {letter: size for letter, size in sizes.items() if letter in source}
    return einops.rearrange(x, f"{source} -> {target}", **used)


def get(tree: dict, path: tuple[str, ...]):
    """Returns the leaf at `path` of a nested dict."""
    return functools.reduce(lambda node, key: node[key], path, tree)


def flatten(tree: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields every leaf of a nested dict with its path. Only dicts are opened, whatever else JAX takes for a tree."""
    for key, node in tree.items():
        if isinstance(node, dict):
            yield from flatten(node, (*path, key))
        else:
            yield (*path, key), node
