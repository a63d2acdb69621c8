"""Estimators of a teacher's probabilities: few ids and weights in place of all ids.

An estimator is unbiased if the mean weight of an id over draws is its probability p; then the gradient of the
cross-entropy, softmax minus weights, is unbiased too. All work on a device's shard of the vocabulary and return the
same on every shard. With as many samples as there are ids, every estimator returns them all, each with its p.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from gemma3_jax.distill import noise, search, settings
from gemma3_jax.losses import blocks, softmax

RACED_BY_BLOCK = 1 << 15  # from this many ids on, blocks race first: fewer ids hardly have more blocks than M


class Sample(NamedTuple):
    """Sampled ids and their weights. An id may appear more than once; its weights add up."""

    ids: Int[Array, "B T M"]
    weights: Float[Array, "B T M"]
    is_new: Bool[Array, "B T M"]  # whether no earlier slot holds the same id


def check(samples: settings.Samples, vocab_size: int) -> None:
    """Checks that there are at least as many ids as samples.

    Raises: ValueError if there are fewer.
    """
    if samples.estimator != settings.WHOLE and samples.num_samples > vocab_size:
        raise ValueError(
            f"samples.num_samples is {samples.num_samples}, of a vocabulary of {vocab_size} ids; it must be at most "
            f"{vocab_size}"
        )


def estimate(teacher: softmax.Softmax, keys: Key[Array, "B T"], samples: settings.Samples) -> Sample:
    """Samples by the configured estimator, with one key per token (noise.token_keys)."""
    vocab_size = teacher.shard.vocab_size()
    check(samples, vocab_size)
    if samples.num_samples == vocab_size:
        return everything(teacher)
    return BY_NAME[samples.estimator](teacher, keys, samples.num_samples)


def everything(teacher: softmax.Softmax) -> Sample:
    """Every id with its probability: exact."""
    weights = search.concatenate_shards(teacher.masses, teacher.shard) / teacher.total_mass[..., None]
    return _distinct(jax.lax.broadcasted_iota(jnp.int32, weights.shape, 2), weights)


def _distinct(ids: Int[Array, "B T M"], weights: Float[Array, "B T M"]) -> Sample:
    return Sample(ids, weights, jnp.ones(ids.shape, jnp.bool))


def _is_new(sorted_ids: Int[Array, "B T M"]) -> Bool[Array, "B T M"]:
    first = jnp.ones((*sorted_ids.shape[:2], 1), jnp.bool)
    return jnp.concatenate([first, sorted_ids[..., 1:] != sorted_ids[..., :-1]], axis=-1)


def top_k(teacher: softmax.Softmax, keys: Key[Array, "B T"], num_samples: int) -> Sample:
    """The most probable ids, by falling p; their weights are p, normalized to add up to 1.

    Biased, and deterministic: the M most probable ids get the mass of all others on top of theirs.
    """
    del keys
    scores, ids = search.largest_over_shards(teacher.scores, num_samples, teacher.shard)
    return _distinct(ids, jax.nn.softmax(scores, axis=-1))


def sampled(teacher: softmax.Softmax, keys: Key[Array, "B T"], num_samples: int) -> Sample:
    """Distinct ids drawn by p without replacement, in the order of drawing; weights are p, normalized to add up to 1.

    This is the report's wording (section 2.2) taken literally, and the most biased estimator: the probable ids are
    nearly always drawn, and take the mass of all that are not.
    """
    _, ids = race(teacher, keys, num_samples)
    masses = teacher.shard.pick(teacher.masses, ids)
    return _distinct(ids, masses / jnp.sum(masses, axis=-1, keepdims=True))


def sampled_counts(teacher: softmax.Softmax, keys: Key[Array, "B T"], num_samples: int) -> Sample:
    """Independent draws by p, each of weight 1 / M. Unbiased for p down to 1e-7: uniforms have 23 bits."""
    ids, _ = search.at_quantiles(teacher.masses, noise.uniform(keys, num_samples), teacher.shard)
    order = jnp.argsort(ids, axis=-1)
    is_new = _is_new(jnp.take_along_axis(ids, order, axis=-1))
    is_new = jnp.take_along_axis(is_new, jnp.argsort(order, axis=-1), axis=-1)
    return Sample(ids, jnp.full(ids.shape, 1 / num_samples, jnp.float32), is_new)


def systematic(teacher: softmax.Softmax, keys: Key[Array, "B T"], num_samples: int) -> Sample:
    """The ids at quantiles (k + U) / M of the cumulative p, with one uniform U per token; each of weight 1 / M.

    Unbiased. An id is drawn floor(M p) or ceil(M p) times, in the order of ids.
    """
    ids, _ = search.at_quantiles(teacher.masses, _quantiles(keys, num_samples), teacher.shard)
    return Sample(ids, jnp.full(ids.shape, 1 / num_samples, jnp.float32), _is_new(ids))


def gumbel_ht(teacher: softmax.Softmax, keys: Key[Array, "B T"], num_samples: int) -> Sample:
    """The ids of `sampled`, each of weight p / q, where q is its chance to be drawn before the (M + 1)-th id arrives.

    Unbiased (Horvitz-Thompson). Weights add up to 1 in the mean only.
    """
    times, ids = race(teacher, keys, num_samples + 1)
    ids = ids[..., :-1]
    masses = teacher.shard.pick(teacher.masses, ids)
    chances = -jnp.expm1(-masses * times[..., -1:])  # to arrive before the last time
    weights = masses / jnp.where(masses > 0, chances, 1)
    return _distinct(ids, weights / teacher.total_mass[..., None])


def gumbel_ht_normalized(teacher: softmax.Softmax, keys: Key[Array, "B T"], num_samples: int) -> Sample:
    """`gumbel_ht` with weights normalized to add up to 1: less variance, and a small bias that shrinks with M."""
    ids, weights, is_new = gumbel_ht(teacher, keys, num_samples)
    return Sample(ids, weights / jnp.sum(weights, axis=-1, keepdims=True), is_new)


def stratified(teacher: softmax.Softmax, keys: Key[Array, "B T"], num_samples: int) -> Sample:
    """The M // 2 most probable ids with their p, and `systematic` draws from the rest, which share its mass equally.

    Unbiased. Weights add up to 1.
    """
    if num_samples == 1:
        return systematic(teacher, keys, 1)
    shard, num_exact = teacher.shard, num_samples // 2
    num_drawn = num_samples - num_exact
    scores, head = search.largest_over_shards(teacher.scores, num_exact, shard)
    last_score, last_id = scores[..., -1:], head[..., -1:]
    ids = shard.first_id() + jax.lax.broadcasted_iota(jnp.int32, teacher.scores.shape, 2)
    in_head = (teacher.scores > last_score) | ((teacher.scores == last_score) & (ids <= last_id))
    tail = jnp.where(in_head, 0, teacher.masses)
    drawn, tail_mass = search.at_quantiles(tail, _quantiles(keys, num_drawn), shard)
    each = jnp.broadcast_to((tail_mass / num_drawn)[..., None], drawn.shape)
    weights = jnp.concatenate([teacher.masses_of(scores), each], axis=-1) / teacher.total_mass[..., None]
    is_new = jnp.concatenate([jnp.ones(head.shape, jnp.bool), _is_new(drawn)], axis=-1)
    return Sample(jnp.concatenate([head, drawn], axis=-1), weights, is_new)


def _quantiles(keys: Key[Array, "B T"], count: int) -> Float[Array, "B T M"]:
    """(k + U) / count for k = 0 ... count - 1, with one uniform U per key."""
    return (jnp.arange(count, dtype=jnp.float32)[None, None] + noise.uniform(keys, 1)) / count


def race(
    teacher: softmax.Softmax, keys: Key[Array, "B T"], count: int
) -> tuple[Float[Array, "B T M"], Int[Array, "B T M"]]:
    """Exponential race: each id arrives after an exponential time of rate p; returns the first `count` arrivals.

    Times are rising, divided by the total mass, and infinite for an impossible id. The first `count` ids are the
    `count` largest of Gumbel-perturbed log p. Blocks race first, each with its whole mass as rate, and ids only within
    the first `count` blocks: V / 64 + 64 M times are drawn, not V. Below RACED_BY_BLOCK ids, or if shards are not whole
    blocks, each id is a block, and draws differ from those of another mesh.
    """
    shard = teacher.shard
    by_block = shard.vocab_size() >= RACED_BY_BLOCK and shard.size % blocks.SIZE == 0
    masses = blocks.split(teacher.masses, blocks.SIZE if by_block else 1, 0.0)
    num_blocks, size = masses.shape[2:]
    block_ids = shard.first_id() // size + jax.lax.broadcasted_iota(jnp.int32, masses.shape[:3], 2)
    block_noise = noise.exponential(noise.fold_in(keys, block_ids), 1)[..., 0]
    block_times = _times(block_noise, jnp.sum(masses, axis=-1))
    first_times, chosen = search.largest(-block_times, min(count, num_blocks))
    masses = search.take_blocks(masses, chosen)
    # No block has an id from vocab_size on, so the noise within a block is independent of the block's.
    inside = noise.fold_in(keys, shard.vocab_size() + jnp.take_along_axis(block_ids, chosen, axis=-1))
    waits = _times(noise.exponential(inside, size), masses)
    # How much later an id arrives than the first of its block does not depend on when that one arrives.
    times = waits - jnp.min(waits, axis=-1, keepdims=True) - first_times[..., None]
    times = jnp.where(masses > 0, times, jnp.inf).reshape(*chosen.shape[:2], -1)
    first, within = search.largest(-times, min(count, times.shape[-1]))
    ids = jnp.take_along_axis(chosen, within // size, axis=-1) * size + within % size
    times, ids = search.merge(first, ids + shard.first_id(), count, shard)
    return -times, ids


def _times(exponentials: Float[Array, "*B"], masses: Float[Array, "*B"]) -> Float[Array, "*B"]:
    return jnp.where(masses > 0, exponentials / jnp.where(masses > 0, masses, 1), jnp.inf)


BY_NAME: dict[str, Callable[[softmax.Softmax, jax.Array, int], Sample]] = {
    f.__name__: f for f in (top_k, sampled, sampled_counts, systematic, gumbel_ht, gumbel_ht_normalized, stratified)
}
