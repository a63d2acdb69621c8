"""Toy models that together cover every trap of the architecture, and weights that any program can generate."""

import dataclasses
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from gemma3_jax.checkpoint import names, tensor_source
from gemma3_jax.model import config, parameters

# The effect of another order of float32 sums on a toy's hidden states and logits, of size 3: some 30 roundings.
ROUNDING = 2e-5

# 8 layers: one period of the pattern and two layers left over; W < T; GQA 2; N*H != D; a query scale of its own.
TOY = config.Config(
    num_layers=8,
    embed_dim=24,
    mlp_dim=40,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    sliding_window=5,
    query_scale=12**-0.5,
    rope_scale=8.0,
    vocab_size=96,
)

# Dims that are multiples of 32, the blocks of Q4_0 and Q8_0, and heads that llama.cpp takes.
IN_BLOCKS = dataclasses.replace(TOY, embed_dim=64, mlp_dim=128, head_dim=32, sliding_window=16, query_scale=32**-0.5)

# Changes to TOY by name, one trap each and some together. The names are keys of golden/hf_logits.npz.
VARIANTS = {
    "toy": {},
    "head_width_scale": {"query_scale": 8**-0.5},
    "window_1": {"sliding_window": 1},
    "window_odd_2_layers": {"sliding_window": 7, "num_layers": 2},
    "window_beyond_row": {"sliding_window": 64, "num_layers": 6},
    "heads_alike": {"num_kv_heads": 4, "num_layers": 3},
    "one_key_head": {"num_kv_heads": 1, "num_layers": 4},
    "rope_scale_1": {"rope_scale": 1.0, "num_layers": 7},
    "one_layer": {"num_layers": 1},
    "five_layers": {"num_layers": 5},
    "nine_layers": {"num_layers": 9, "sliding_window": 3},
    "eleven_layers": {"num_layers": 11, "sliding_window": 9},
    "twelve_layers": {"num_layers": 12, "rope_scale": 4.0},
    "thirteen_layers": {"num_layers": 13, "norm_epsilon": 1e-3},
    "every_layer_global": {"num_local_per_global": 0, "num_layers": 3},
    "other_pattern_and_bases": {
        "num_local_per_global": 2,
        "num_layers": 7,
        "rope_base_local": 500.0,
        "rope_base_global": 9e4,
    },
    "wide_heads": {"num_heads": 2, "num_kv_heads": 1, "head_dim": 32},
    "padded_table": {"vocab_size": 262_144, "vocab_padding": 64, "embed_dim": 8, "mlp_dim": 16, "num_layers": 2},
}


def variant(name: str) -> config.Config:
    return dataclasses.replace(TOY, **VARIANTS[name])


def noise(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Values in (-1, 1) from the splitmix64 hash of (name, seed, index): the same on any machine and version."""
    index = np.arange(int(np.prod(shape)), dtype=np.uint64) + (
        np.uint64(zlib.crc32(name.encode()) + (seed << 33)) << 20
    )
    with np.errstate(over="ignore"):
        z = index * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (2.0 * (z >> np.uint64(11)).astype(np.float64) / 2**53 - 1.0).reshape(shape).astype(np.float32)


def hf_weights(model: config.Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights for a Hugging Face checkpoint of `model`, with norms away from 0 so that no scale hides."""
    sizes, weights = names.dim_sizes(model, padded=True), {}
    for slot in names.slots(model):
        name = names.hf_name(slot)
        shape = names.shape_of(slot.spec.hf_layout, sizes)
        spread = 0.5 if len(shape) == 1 else (3 / shape[-1]) ** 0.5
        weights[name] = noise(name, shape, seed) * np.float32(spread)
    return weights


def zero_weights(model: config.Config) -> dict[str, np.ndarray]:
    """The tensors of hf_weights, all zero: for models too large to fill with noise."""
    sizes = names.dim_sizes(model, padded=True)
    return {
        names.hf_name(slot): np.zeros(names.shape_of(slot.spec.hf_layout, sizes), np.float32)
        for slot in names.slots(model)
    }


def params(model: config.Config, seed: int = 0) -> dict:
    """The weights of hf_weights as our parameter tree."""
    weights, sizes = hf_weights(model, seed), names.dim_sizes(model)
    tree = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), parameters.shapes(model))
    for slot, x in zip(names.slots(model), weights.values(), strict=True):
        x = x[: model.vocab_size] if "V" in slot.spec.layout else x
        names.get(tree, slot.path)[slot.index] = names.relayout(x, slot.spec.hf_layout, slot.spec.layout, sizes)
    return jax.tree.map(jnp.asarray, tree)


def source(model: config.Config, seed: int = 0) -> tensor_source.TensorSource:
    """The same weights, as a checkpoint that is read one tensor at a time."""
    return tensor_source.from_params(model, params(model, seed))


def tokens(model: config.Config, num_rows: int, num_tokens: int, seed: int = 0) -> np.ndarray:
    """Random ids below V."""
    draw = (noise("tokens", (num_rows, num_tokens), seed).astype(np.float64) + 1) / 2
    return (draw * model.vocab_size).astype(np.int32)


def packed(lengths: list[int], num_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Segments and positions of one row with documents of these lengths, then padding."""
    segments, positions = np.zeros((2, 1, num_tokens), np.int32)
    ends = list(itertools.accumulate(lengths))
    for number, (end, length) in enumerate(zip(ends, lengths, strict=True), start=1):
        segments[0, end - length : end] = number
        positions[0, end - length : end] = np.arange(length)
    return segments, positions
