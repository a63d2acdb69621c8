"""Cached keys and values: all of them for global layers, a ring of one window for local layers.

A local layer's query reads a window of W keys, its own among them, so W slots are enough: a chunk of several tokens
reads the ring and itself, and its last W tokens enter the ring afterwards. Rows are padded at their start, so that
all rows write one column at a time; column c goes to slot c modulo the number of slots, and which column a slot holds
follows from the number of columns.
Source: the bytes are those of the Gemma 3 report's figures 5 and 6.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from gemma3_jax import sharding
from gemma3_jax.model import config, dense, masks

DIMS = "BSKH"  # of the keys of a layer, and of its values
EMPTY, PADDING, TEXT = -1, 0, 1  # segments; no query reads an empty slot


class KeyValues(NamedTuple):
    """Keys and values of one layer, or of a stack of layers with leading dims "L"."""

    keys: Float[Array, "*L B S K H"]
    values: Float[Array, "*L B S K H"]


class Layers(NamedTuple):
    """Keys and values of all layers, stacked as the transformer stacks them; None where it has no such layers."""

    local_layers: KeyValues | None
    global_layers: KeyValues | None
    remaining_layers: KeyValues | None


NO_LAYERS = Layers(None, None, None)


class Cache(NamedTuple):
    """A cache with `num_columns` written, of which each row's first `num_padding` are padding."""

    layers: Layers
    num_columns: Int[Array, ""]
    num_padding: Int[Array, "B"]


def shapes(model: config.Config, num_rows: int, num_slots: int, dtype: DTypeLike) -> Layers:
    """Shapes of keys and values: local layers have `sliding_window` slots, or `num_slots` if that is less."""

    def stack(slots: int, *num_layers: int) -> KeyValues | None:
        shape = (*num_layers, num_rows, slots, model.num_kv_heads, model.head_dim)
        return KeyValues(*[jax.ShapeDtypeStruct(shape, dtype)] * 2) if math.prod(num_layers) else None

    ring = min(model.sliding_window, num_slots)
    return Layers(
        stack(ring, model.num_periods, model.num_local_per_global),
        stack(num_slots, model.num_periods),
        stack(ring, model.num_remaining),
    )


def shardings(layers: Layers, mesh: sharding.AnyMesh) -> Layers:
    """Shardings of keys and values: rows over `replica` and `data`, heads over `model`, as activations are."""

    def sharding_of(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        num_stacked = len(leaf.shape) - len(DIMS)
        spec = sharding.activation_spec(DIMS, leaf.shape[num_stacked:], mesh.shape)
        return NamedSharding(mesh, PartitionSpec(*[None] * num_stacked, *spec))

    return jax.tree.map(sharding_of, layers)


def empty(layers: Layers, num_padding: Int[Array, "B"]) -> Cache:
    """A cache of these shapes with nothing written. Its slots are 0, which weights of 0 keep at 0."""
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), layers)
    return Cache(zeros, jnp.zeros((), jnp.int32), num_padding)


def next_layout(cache: Cache, num_tokens: int) -> masks.TokenLayout:
    """The layout of the next `num_tokens` tokens of every row."""
    return _layout_of(cache, cache.num_columns + jnp.arange(num_tokens))


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    layout: masks.TokenLayout,
    sliding_window: int | None,
    *,
    cache: Cache,
    layer_cache: KeyValues,
) -> tuple[Float[Array, "B T N H"], KeyValues]:
    """Attention of a chunk to a layer's cache and to the chunk itself, 0 at padding; and the chunk's keys and values.

    `layer_cache` is the part of `cache` that belongs to the layer.
    """
    cached_layout = _layout_of(cache, _columns(layer_cache.keys.shape[1], cache.num_columns))
    keys, values = (
        jnp.concatenate([old.astype(new.dtype), new], axis=1)
        for old, new in zip(layer_cache, (key, value), strict=True)
    )
    key_layout = masks.TokenLayout(
        *(jnp.concatenate(pair, axis=1) for pair in zip(cached_layout[:2], layout[:2], strict=True))
    )
    out = dense.attend(query, keys, values, layout, sliding_window, key_layout=key_layout)
    out = jnp.where((layout.segments == PADDING)[..., None, None], jnp.zeros((), out.dtype), out)
    return sharding.constrain(out, "BTNH"), KeyValues(key, value)


def append(cache: Cache, new: Layers, num_tokens: int) -> Cache:
    """The cache with the keys and values of the next `num_tokens` tokens written; a ring overwrites its oldest."""
    layers = jax.tree.map(lambda old, new: _write(old, new.astype(old.dtype), cache.num_columns), cache.layers, new)
    return Cache(layers, cache.num_columns + num_tokens, cache.num_padding)


def _write(old: jax.Array, new: jax.Array, num_columns: Int[Array, ""]) -> jax.Array:
    """Writes the next tokens [..., T, K, H] into the slots [..., S, K, H]."""
    dim, num_slots, num_tokens = old.ndim - 3, old.shape[-3], new.shape[-3]
    if num_tokens == 1:  # in place: nothing but that slot is written
        return jax.lax.dynamic_update_slice_in_dim(old, new, num_columns % num_slots, axis=dim)
    new_index = _columns(num_slots, num_columns + num_tokens) - num_columns  # of the new token that each slot gets
    taken = jnp.take(new, jnp.maximum(new_index, 0), axis=dim)
    return jnp.where((new_index >= 0)[:, None, None], taken, old)


def _columns(num_slots: int, num_columns: Int[Array, ""]) -> Int[Array, "S"]:
    """The column that each slot holds after `num_columns`: the newest that maps to it; below 0 where there is none."""
    last = num_columns - 1
    return last - (last - jnp.arange(num_slots)) % num_slots


def _layout_of(cache: Cache, columns: Int[Array, "S"]) -> masks.TokenLayout:
    """The layout of these columns in every row."""
    positions = columns[None] - cache.num_padding[:, None]
    segments = jnp.where(positions < 0, PADDING, TEXT)
    return masks.TokenLayout(jnp.where(columns[None] < 0, EMPTY, segments), positions)
