"""Keys and values of what was read: all of it for global layers, a ring of one window for local ones.

A local layer's query reads a window of W keys, its own among them, so W slots are enough. A chunk of several tokens
reads itself beside the ring, which takes its last W tokens only when the chunk is through: no chunk needs a longer one.

Rows that begin with padding end together, so that one column of all rows is written at a time: column c goes to slot c
modulo the number of slots. Which slot has which column need not be stored; it follows from how many columns there were.
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
EMPTY, PADDING, TEXT = -1, 0, 1  # segments: nobody reads what is empty


class Stored(NamedTuple):
    """Of one layer, or of a stack of them, whose dims "L" come first."""

    keys: Float[Array, "*L B S K H"]
    values: Float[Array, "*L B S K H"]


class Layers(NamedTuple):
    """As the transformer has its layers; None where it has none of a kind."""

    local_layers: Stored | None
    global_layers: Stored | None
    remaining_layers: Stored | None


NOTHING = Layers(None, None, None)


class Cache(NamedTuple):
    """`num_columns` were written, of which each row's first `num_padding` mean nothing."""

    layers: Layers
    num_columns: Int[Array, ""]
    num_padding: Int[Array, "B"]


def shapes(model: config.Config, num_rows: int, num_slots: int, dtype: DTypeLike) -> Layers:
    """Shapes of keys and values: local layers have `window` slots, or `num_slots` if that is less."""

    def of(slots: int, *num_layers: int) -> Stored | None:
        shape = (*num_layers, num_rows, slots, model.num_kv_heads, model.head_dim)
        return Stored(*[jax.ShapeDtypeStruct(shape, dtype)] * 2) if math.prod(num_layers) else None

    ring = min(model.sliding_window, num_slots)
    return Layers(
        of(ring, model.num_periods, model.num_local_per_global),
        of(num_slots, model.num_periods),
        of(ring, model.num_remaining),
    )


def shardings(layers: Layers, mesh: sharding.AnyMesh) -> Layers:
    """Where they rest: rows over `replica` and `data`, heads over `model`, as activations do."""

    def place(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        num_stacked = len(leaf.shape) - len(DIMS)
        spec = sharding.activation_spec(DIMS, leaf.shape[num_stacked:], mesh.shape)
        return NamedSharding(mesh, PartitionSpec(*[None] * num_stacked, *spec))

    return jax.tree.map(place, layers)


def empty(layers: Layers, num_padding: Int[Array, "B"]) -> Cache:
    """Nothing written yet. Unwritten slots are 0: a weight of 0 times them is 0."""
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), layers)
    return Cache(zeros, jnp.zeros((), jnp.int32), num_padding)


def places_of_next(cached: Cache, num_tokens: int) -> masks.Places:
    """Where the next so many tokens of every row stand."""
    return _places(cached, cached.num_columns + jnp.arange(num_tokens))


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    places: masks.Places,
    sliding_window: int | None,
    *,
    cached: Cache,
    past: Stored,
) -> tuple[Float[Array, "B T N H"], Stored]:
    """What queries read of a layer's past and of their own chunk, 0 at padding; and the chunk's keys and values."""
    before = _places(cached, _columns(past.keys.shape[1], cached.num_columns))
    keys, values = (
        jnp.concatenate([old.astype(new.dtype), new], axis=1) for old, new in zip(past, (key, value), strict=True)
    )
    of_keys = masks.Places(*(jnp.concatenate(pair, axis=1) for pair in zip(before[:2], places[:2], strict=True)))
    out = dense.attend(query, keys, values, places, sliding_window, key_places=of_keys)
    out = jnp.where((places.segments == PADDING)[..., None, None], jnp.zeros((), out.dtype), out)
    return sharding.constrain(out, "BTNH"), Stored(key, value)


def appended(cached: Cache, new: Layers, num_tokens: int) -> Cache:
    """The cache with the keys and values of the next so many tokens in it, over the oldest ones where it is a ring."""
    layers = jax.tree.map(lambda old, new: _written(old, new.astype(old.dtype), cached.num_columns), cached.layers, new)
    return Cache(layers, cached.num_columns + num_tokens, cached.num_padding)


def _written(old: jax.Array, new: jax.Array, num_columns: Int[Array, ""]) -> jax.Array:
    """[..., S, K, H] with what comes next, [..., T, K, H]."""
    dim, num_slots, num_tokens = old.ndim - 3, old.shape[-3], new.shape[-3]
    if num_tokens == 1:  # in place, and no more than that slot
        return jax.lax.dynamic_update_slice_in_dim(old, new, num_columns % num_slots, axis=dim)
    of_new = _columns(num_slots, num_columns + num_tokens) - num_columns  # which of the new tokens each slot gets
    taken = jnp.take(new, jnp.maximum(of_new, 0), axis=dim)
    return jnp.where((of_new >= 0)[:, None, None], taken, old)


def _columns(num_slots: int, num_columns: Int[Array, ""]) -> Int[Array, "S"]:
    """Which column each slot has after so many: the newest that falls on it, under 0 where there was none."""
    last = num_columns - 1
    return last - (last - jnp.arange(num_slots)) % num_slots


def _places(cached: Cache, columns: Int[Array, "S"]) -> masks.Places:
    """Where the tokens of these columns stand in every row."""
    positions = columns[None] - cached.num_padding[:, None]
    segments = jnp.where(positions < 0, PADDING, TEXT)
    return masks.Places(jnp.where(columns[None] < 0, EMPTY, segments), positions)
