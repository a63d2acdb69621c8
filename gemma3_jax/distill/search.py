"""Searches of a vocabulary that sort none of it and add up none of it one by one: by blocks, and blocks of blocks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from gemma3_jax.losses import vocab_parallel

# Sums of 64 in float32, of 64 of those, ...: within some 3e-7 of exact ones over 262,144 numbers; one long sum, 6e-5.
BLOCK = 64


def in_blocks(values: Float[Array, "B T V"], size: int, fill: float) -> Float[Array, "B T R Z"]:
    """`values` in blocks of `size` neighbours, the last one filled up."""
    missing = -values.shape[-1] % size
    if missing:
        values = jnp.pad(values, ((0, 0), (0, 0), (0, missing)), constant_values=fill)
    return values.reshape(*values.shape[:2], -1, size)


def take_blocks(blocks: Shaped[Array, "B T R Z"], places: Int[Array, "B T M"]) -> Shaped[Array, "B T M Z"]:
    return jnp.take_along_axis(blocks, places[..., None], axis=2)


def total(values: Float[Array, "B T V"]) -> Float[Array, "B T"]:
    """Over V, by blocks."""
    return jnp.sum(jnp.sum(in_blocks(values, BLOCK, 0.0), axis=-1), axis=-1)


def largest(values: Float[Array, "B T V"], count: int) -> tuple[Float[Array, "B T M"], Int[Array, "B T M"]]:
    """The `count` largest, falling, and their places; of equals the first come first. As jax.lax.top_k, exactly.

    None of them lies outside the `count` blocks with the largest maxima: each of those has one that comes before.
    """
    if values.shape[-1] <= 2 * count * BLOCK:
        return _top_k(values, count)
    blocks = in_blocks(values, BLOCK, -jnp.inf)
    _, chosen = largest(jnp.max(blocks, axis=-1), count)
    chosen = jnp.sort(chosen, axis=-1)  # so that equals stay in the order of their places
    candidates = take_blocks(blocks, chosen).reshape(*values.shape[:2], -1)
    best, within = _top_k(candidates, count)
    return best, jnp.take_along_axis(chosen, within // BLOCK, axis=-1) * BLOCK + within % BLOCK


def _top_k(values: Float[Array, "B T V"], count: int) -> tuple[Float[Array, "B T M"], Int[Array, "B T M"]]:
    # Behind barriers: XLA knows it as a sort and a slice, and merging that with a slice of ours leaves the whole sort.
    # One each: of one around the pair XLA dies ("cannot be downcasted to HloGetTupleElementInstruction").
    best, places = map(jax.lax.optimization_barrier, jax.lax.top_k(values, count))
    return best, places


def largest_of_all(
    values: Float[Array, "B T V"], count: int, shard: vocab_parallel.Shard
) -> tuple[Float[Array, "B T M"], Int[Array, "B T M"]]:
    """`largest` over all shards, the same on each: values and ids."""
    best, places = largest(values, min(count, shard.size))
    return merge(best, places + shard.first(), count, shard)


def merge(
    values: Float[Array, "B T _"], ids: Int[Array, "B T _"], count: int, shard: vocab_parallel.Shard
) -> tuple[Float[Array, "B T M"], Int[Array, "B T M"]]:
    """The `count` largest of what every shard puts forward, falling; of equals those of the first shard come first."""
    if not shard.axes:
        return values[..., :count], ids[..., :count]
    values, ids = (joined(x, shard) for x in (values, ids))
    best, places = _top_k(values, count)
    return best, jnp.take_along_axis(ids, places, axis=-1)


def joined(x: Shaped[Array, "B T V"], shard: vocab_parallel.Shard) -> Shaped[Array, "B T M"]:
    """What all shards hold, one after the other."""
    return jnp.moveaxis(shard.of_all(x), 0, 2).reshape(*x.shape[:2], -1)


def at(
    masses: Float[Array, "B T V"], parts: Float[Array, "B T M"], shard: vocab_parallel.Shard
) -> tuple[Int[Array, "B T M"], Float[Array, "B T"]]:
    """The ids at these parts (from 0 to 1) of the mass of all shards, and that mass.

    An id is hit in proportion to its mass, and never if that is 0; where there is no mass at all, ids mean nothing.
    Parts are read to 2**-24, so ids far below that share it with their neighbours.
    """
    levels = [in_blocks(masses, BLOCK, 0.0)]
    while levels[-1].shape[2] > 1:
        levels.append(in_blocks(jnp.sum(levels[-1], axis=-1), BLOCK, 0.0))
    of_shards = jnp.moveaxis(shard.of_all(jnp.sum(levels[-1], axis=(2, 3))), 0, -1)
    mass = jnp.sum(of_shards, axis=-1)
    owner, points = _step(jnp.cumsum(of_shards, axis=-1)[:, :, None], parts * mass[..., None])
    place = jnp.zeros_like(owner)
    for level in reversed(levels):
        ends = jnp.cumsum(level, axis=-1)
        inside, points = _step(ends if ends.shape[2] == 1 else take_blocks(ends, place), points)
        place = place * BLOCK + inside
    place = jnp.minimum(place, shard.size - 1)
    return shard.sum(jnp.where(owner == shard.number(), shard.first() + place, 0)), mass


def _step(
    ends: Float[Array, "B T #M Z"], points: Float[Array, "B T M"]
) -> tuple[Int[Array, "B T M"], Float[Array, "B T M"]]:
    """Which of Z neighbours, that end where `ends` says, a point falls on, and how far into it.

    What has no mass ends where its neighbour does, and is passed over. Rounding may leave a point behind the end: it
    falls on the last that has mass.
    """
    passed = ends <= jnp.minimum(points, jnp.nextafter(ends[..., -1], -jnp.inf))[..., None]
    inside = jnp.sum(passed, axis=-1, dtype=jnp.int32)
    before = jnp.max(jnp.where(passed, ends, 0), axis=-1)
    return inside, jnp.maximum(points - before, 0)
