"""Searches of a vocabulary by blocks, and blocks of blocks: no sort of all of V, and no cumulative sum over it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from gemma3_jax.losses import blocks, vocab_parallel


def take_blocks(values: Shaped[Array, "B T R Z"], indices: Int[Array, "B T M"]) -> Shaped[Array, "B T M Z"]:
    return jnp.take_along_axis(values, indices[..., None], axis=2)


def largest(values: Float[Array, "B T V"], count: int) -> tuple[Float[Array, "B T M"], Int[Array, "B T M"]]:
    """The `count` largest values, falling, and their indices; exactly as jax.lax.top_k, ties in order of index.

    All of them lie in the `count` blocks with the largest maxima: each of those holds a value that comes before any
    value elsewhere.
    """
    if values.shape[-1] <= 2 * count * blocks.SIZE:
        return _top_k(values, count)
    split = blocks.split(values, blocks.SIZE, -jnp.inf)
    _, chosen = largest(jnp.max(split, axis=-1), count)
    chosen = jnp.sort(chosen, axis=-1)  # so that ties stay in order of index
    candidates = take_blocks(split, chosen).reshape(*values.shape[:2], -1)
    best, within = _top_k(candidates, count)
    return best, jnp.take_along_axis(chosen, within // blocks.SIZE, axis=-1) * blocks.SIZE + within % blocks.SIZE


def _top_k(values: Float[Array, "B T V"], count: int) -> tuple[Float[Array, "B T M"], Int[Array, "B T M"]]:
    # Behind barriers: XLA sees top_k as a sort and a slice, and merging that with a later slice leaves the whole sort.
    # One barrier each: with one around the pair XLA fails ("cannot be downcasted to HloGetTupleElementInstruction").
    best, indices = map(jax.lax.optimization_barrier, jax.lax.top_k(values, count))
    return best, indices


def largest_over_shards(
    values: Float[Array, "B T V"], count: int, shard: vocab_parallel.Shard
) -> tuple[Float[Array, "B T M"], Int[Array, "B T M"]]:
    """The `count` largest values over all shards and their ids, the same on each shard."""
    best, indices = largest(values, min(count, shard.size))
    return merge(best, indices + shard.first_id(), count, shard)


def merge(
    values: Float[Array, "B T _"], ids: Int[Array, "B T _"], count: int, shard: vocab_parallel.Shard
) -> tuple[Float[Array, "B T M"], Int[Array, "B T M"]]:
    """The `count` largest of the candidates of all shards, falling; ties in order of shard."""
    if not shard.axes:
        return values[..., :count], ids[..., :count]
    values, ids = (concatenate_shards(x, shard) for x in (values, ids))
    best, indices = _top_k(values, count)
    return best, jnp.take_along_axis(ids, indices, axis=-1)


def concatenate_shards(x: Shaped[Array, "B T V"], shard: vocab_parallel.Shard) -> Shaped[Array, "B T M"]:
    """The values of all shards, one after the other."""
    return jnp.moveaxis(shard.all_gather(x), 0, 2).reshape(*x.shape[:2], -1)


def at_quantiles(
    masses: Float[Array, "B T V"], quantiles: Float[Array, "B T M"], shard: vocab_parallel.Shard
) -> tuple[Int[Array, "B T M"], Float[Array, "B T"]]:
    """The ids at these quantiles (0 to 1) of the cumulative mass over all shards, and the total mass.

    An id is hit in proportion to its mass, and never if that is 0; ids mean nothing where the total is 0. Quantiles
    resolve 2**-24 of the total, so ids far below that share it with their neighbors.
    """
    levels = [blocks.split(masses, blocks.SIZE, 0.0)]
    while levels[-1].shape[2] > 1:
        levels.append(blocks.split(jnp.sum(levels[-1], axis=-1), blocks.SIZE, 0.0))
    shard_masses = jnp.moveaxis(shard.all_gather(jnp.sum(levels[-1], axis=(2, 3))), 0, -1)
    mass = jnp.sum(shard_masses, axis=-1)
    owner, points = _descend(jnp.cumsum(shard_masses, axis=-1)[:, :, None], quantiles * mass[..., None])
    index = jnp.zeros_like(owner)
    for level in reversed(levels):
        ends = jnp.cumsum(level, axis=-1)
        inside, points = _descend(ends if ends.shape[2] == 1 else take_blocks(ends, index), points)
        index = index * blocks.SIZE + inside
    index = jnp.minimum(index, shard.size - 1)
    return shard.sum(jnp.where(owner == shard.index(), shard.first_id() + index, 0)), mass


def _descend(
    ends: Float[Array, "B T #M Z"], points: Float[Array, "B T M"]
) -> tuple[Int[Array, "B T M"], Float[Array, "B T M"]]:
    """Which of Z neighbors, whose cumulative masses are `ends`, each point falls on, and how far into it.

    A neighbor without mass ends where the one before it does, and is passed over. A point that rounding leaves beyond
    the end falls on the last neighbor with mass.
    """
    passed = ends <= jnp.minimum(points, jnp.nextafter(ends[..., -1], -jnp.inf))[..., None]
    inside = jnp.sum(passed, axis=-1, dtype=jnp.int32)
    before = jnp.max(jnp.where(passed, ends, 0), axis=-1)
    return inside, jnp.maximum(points - before, 0)
