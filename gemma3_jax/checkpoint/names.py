"""One table of names: what each parameter is called, and how it is laid out, in every format we read or write.

A layout is a string of dims as einops reads it: "(N H) D" is a matrix of N*H rows and D columns. From the layouts come
the expected shapes, the transposes in both directions, and nothing else is written down anywhere.
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
class Row:
    """One parameter: path below its layer (or the root) here, and its name and layout elsewhere.

    `published_index` says which slice of the published tensor it is, where that stacks two parameters in one.
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
    Row("embedder/table", "V D", "embed_tokens.weight", "V D", "embedder/input_embedding", "V D"),
    Row("final_norm/scale", "D", "norm.weight", "D", "final_norm/scale", "D"),
)
LAYER = (
    Row("pre_attention_norm/scale", "D", "input_layernorm.weight", "D", "pre_attention_norm/scale", "D"),
    Row("attention/query", "D N H", "self_attn.q_proj.weight", "(N H) D", "attn/q_einsum/w", "N D H"),
    Row("attention/key", "D K H", "self_attn.k_proj.weight", "(K H) D", "attn/kv_einsum/w", "K D H", 0),
    Row("attention/value", "D K H", "self_attn.v_proj.weight", "(K H) D", "attn/kv_einsum/w", "K D H", 1),
    Row("attention/query_norm/scale", "H", "self_attn.q_norm.weight", "H", "attn/_query_norm/scale", "H"),
    Row("attention/key_norm/scale", "H", "self_attn.k_norm.weight", "H", "attn/_key_norm/scale", "H"),
    Row("attention/output", "N H D", "self_attn.o_proj.weight", "D (N H)", "attn/attn_vec_einsum/w", "N H D"),
    Row("post_attention_norm/scale", "D", "post_attention_layernorm.weight", "D", "post_attention_norm/scale", "D"),
    Row("pre_mlp_norm/scale", "D", "pre_feedforward_layernorm.weight", "D", "pre_ffw_norm/scale", "D"),
    Row("mlp/gate", "D F", "mlp.gate_proj.weight", "F D", "mlp/gating_einsum/w", "F D", 0),
    Row("mlp/up", "D F", "mlp.up_proj.weight", "F D", "mlp/gating_einsum/w", "F D", 1),
    Row("mlp/down", "F D", "mlp.down_proj.weight", "D F", "mlp/linear/w", "F D"),
    Row("post_mlp_norm/scale", "D", "post_feedforward_layernorm.weight", "D", "post_ffw_norm/scale", "D"),
)

# The same in GGUF, where the layouts are those of Hugging Face.
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
    """Where one layer's parameter lives in our tree: the stacked array at `path`, at `index` of its "L" dims."""

    path: tuple[str, ...]
    index: tuple[int, ...]
    row: Row
    layer: int | None


def slots(model: config.Config) -> Iterator[Slot]:
    """Every parameter of every layer, in the order of the layers."""
    yield Slot(tuple(ROOT[0].path.split("/")), (), ROOT[0], None)
    for layer in range(model.num_layers):
        period, place = divmod(layer, model.period)
        if period == model.num_periods:
            stack, index = ("remaining_layers",), (place,)
        elif model.is_global(layer):
            stack, index = ("periods", "global_layer"), (period,)
        else:
            stack, index = ("periods", "local_layers"), (period, place)
        for row in LAYER:
            yield Slot((*stack, *row.path.split("/")), index, row, layer)
    yield Slot(tuple(ROOT[1].path.split("/")), (), ROOT[1], None)


def hf_name(slot: Slot, prefix: str = "model.") -> str:
    """The slot's tensor in a Hugging Face checkpoint whose text model stands under `prefix`."""
    return prefix + (slot.row.hf if slot.layer is None else f"layers.{slot.layer}.{slot.row.hf}")


def gguf_name(slot: Slot) -> str:
    """The slot's tensor in a GGUF file."""
    name = f"{GGUF[slot.row.path]}.weight"
    return name if slot.layer is None else f"blk.{slot.layer}.{name}"


def dim_sizes(model: config.Config, *, padded: bool = False) -> dict[str, int]:
    """How many elements each letter stands for; `padded` counts a Hugging Face table's extra rows in V."""
    return {
        "V": model.vocab_size + (model.vocab_padding if padded else 0),
        "D": model.embed_dim,
        "F": model.mlp_dim,
        "N": model.num_heads,
        "K": model.num_kv_heads,
        "H": model.head_dim,
    }


def shape_of(layout: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape a layout has: (8, 4) for "(N H) D" with N = 2, H = 4, D = 4."""
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
    """`x` of layout `source` in layout `target`; a view where no copy is needed."""
    used = {letter: size for letter, size in sizes.items() if letter in source}
    return einops.rearrange(x, f"{source} -> {target}", **used)


def get(tree: dict, path: tuple[str, ...]):
    """The leaf at `path` of a nested dict."""
    return functools.reduce(lambda node, key: node[key], path, tree)


def flatten(tree: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every leaf of a nested dict with its path. Only dicts are opened, whatever JAX takes the leaves for."""
    for key, node in tree.items():
        if isinstance(node, dict):
            yield from flatten(node, (*path, key))
        else:
            yield (*path, key), node
