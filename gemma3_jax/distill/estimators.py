"""Few ids and weights in place of a teacher's probabilities of all.

The mean over draws of the weight that an id gets is its probability p, if the estimator is unbiased: then so is the
gradient of the cross-entropy, softmax minus weights. All work on a device's shard of the vocabulary, and say the same
on every shard. Where as many ids are asked for as there are, every estimator names them all, each with its p.

An exponential race stands behind those that draw distinct ids: each waits for an exponential time of rate p, and the
first M are named. These are the M largest of Gumbel-perturbed log p, as a time is e to minus one of those.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from gemma3_jax.distill import noise, search, settings
from gemma3_jax.losses import vocab_parallel

IMPOSSIBLE = -80.0  # nats from the likeliest id; what is below has p = 0, as sums lose what is no normal float32
RACED_BY_BLOCK = 1 << 15  # ids from which on blocks race first: with fewer, there are hardly more blocks than M


class Softmax(NamedTuple):
    """A teacher's probabilities, of the ids of one shard."""

    scores: Float[Array, "B T V"]  # logits over temperature
    masses: Float[Array, "B T V"]  # probabilities, but for the factor
    total: Float[Array, "B T"]  # of the masses of all shards
    largest: Float[Array, "B T"]  # score of all shards
    shard: vocab_parallel.Shard

    def mass(self, scores: Float[Array, "B T M"]) -> Float[Array, "B T M"]:
        return _mass(scores, self.largest)

    def probabilities(self, ids: Int[Array, "B T M"]) -> Float[Array, "B T M"]:
        """Of these ids, wherever they are held."""
        return self.shard.pick(self.masses, ids) / self.total[..., None]


def softmax(logits: Float[Array, "B T V"], temperature: float, shard: vocab_parallel.Shard) -> Softmax:
    """In float32, whatever the logits are in."""
    scores = logits.astype(jnp.float32)
    if temperature != 1:
        scores = scores / temperature
    largest = shard.max(jnp.max(scores, axis=-1))
    masses = _mass(scores, largest)
    return Softmax(scores, masses, shard.sum(search.total(masses)), largest, shard)


def _mass(scores: Float[Array, "B T M"], largest: Float[Array, "B T"]) -> Float[Array, "B T M"]:
    below = scores - largest[..., None]
    return jnp.where(below > IMPOSSIBLE, jnp.exp(below), 0)


class Sample(NamedTuple):
    """An id may come more than once; its weights add up."""

    ids: Int[Array, "B T M"]
    weights: Float[Array, "B T M"]
    is_new: Bool[Array, "B T M"]  # whether no slot before it names the id


def check(samples: settings.Samples, vocab_size: int) -> None:
    """Raises: ValueError if there are not so many ids."""
    if samples.estimator != settings.WHOLE and samples.num_samples > vocab_size:
        raise ValueError(
            f"samples.num_samples is {samples.num_samples}, of a vocabulary of {vocab_size} ids; it must be at most "
            f"{vocab_size}"
        )


def estimate(teacher: Softmax, keys: Key[Array, "B T"], samples: settings.Samples) -> Sample:
    """By the estimator that was asked for. `keys` are of the tokens (noise.token_keys)."""
    vocab_size = num_ids(teacher.shard)
    check(samples, vocab_size)
    if samples.num_samples == vocab_size:
        return everything(teacher)
    return BY_NAME[samples.estimator](teacher, keys, samples.num_samples)


def num_ids(shard: vocab_parallel.Shard) -> int:
    """Of all shards, inside `vocabulary.mapped`."""
    return shard.size * math.prod(jax.lax.axis_size(axis) for axis in shard.axes)


def everything(teacher: Softmax) -> Sample:
    """Exact: every id with its probability."""
    weights = search.joined(teacher.masses, teacher.shard) / teacher.total[..., None]
    return _distinct(jax.lax.broadcasted_iota(jnp.int32, weights.shape, 2), weights)


def _distinct(ids: Int[Array, "B T M"], weights: Float[Array, "B T M"]) -> Sample:
    return Sample(ids, weights, jnp.ones(ids.shape, jnp.bool))


def _is_new(rising_ids: Int[Array, "B T M"]) -> Bool[Array, "B T M"]:
    first = jnp.ones((*rising_ids.shape[:2], 1), jnp.bool)
    return jnp.concatenate([first, rising_ids[..., 1:] != rising_ids[..., :-1]], axis=-1)


def top_k(teacher: Softmax, keys: Key[Array, "B T"], num_samples: int) -> Sample:
    """The most probable ids, by falling p; weights are p over the sum of p of those named.

    Biased, and nothing is random: ids beyond the first M get nothing, and the first M all that mass on top of theirs.
    """
    del keys
    scores, ids = search.largest_of_all(teacher.scores, num_samples, teacher.shard)
    return _distinct(ids, jax.nn.softmax(scores, axis=-1))


def sampled(teacher: Softmax, keys: Key[Array, "B T"], num_samples: int) -> Sample:
    """Distinct ids drawn by p without replacement, in the order of drawing; weights are p over the sum of p of those.

    The report's wording (section 2.2), taken literally, and the most biased: the likely ids are nearly always among
    those drawn, and take the mass of all that are not.
    """
    _, ids = race(teacher, keys, num_samples)
    named = teacher.shard.pick(teacher.masses, ids)
    return _distinct(ids, named / jnp.sum(named, axis=-1, keepdims=True))


def sampled_counts(teacher: Softmax, keys: Key[Array, "B T"], num_samples: int) -> Sample:
    """Independent draws by p, each of weight 1 / M. Unbiased, down to a p of 1e-7: uniforms have 23 bits."""
    ids, _ = search.at(teacher.masses, noise.uniform(keys, num_samples), teacher.shard)
    order = jnp.argsort(ids, axis=-1)
    is_new = _is_new(jnp.take_along_axis(ids, order, axis=-1))
    is_new = jnp.take_along_axis(is_new, jnp.argsort(order, axis=-1), axis=-1)
    return Sample(ids, jnp.full(ids.shape, 1 / num_samples, jnp.float32), is_new)


def systematic(teacher: Softmax, keys: Key[Array, "B T"], num_samples: int) -> Sample:
    """The ids at (k + U) / M of the cumulative p, of one uniform U a token, each of weight 1 / M.

    Unbiased. An id is named floor(M p) or ceil(M p) times, in the order of ids.
    """
    ids, _ = search.at(teacher.masses, _steps(keys, num_samples), teacher.shard)
    return Sample(ids, jnp.full(ids.shape, 1 / num_samples, jnp.float32), _is_new(ids))


def gumbel_ht(teacher: Softmax, keys: Key[Array, "B T"], num_samples: int) -> Sample:
    """The ids of `sampled`, each of weight p / q, where q is its chance of being named, given when the next one came.

    Unbiased (Horvitz and Thompson's). Weights add up to 1 in the mean only.
    """
    times, ids = race(teacher, keys, num_samples + 1)
    ids = ids[..., :-1]
    masses = teacher.shard.pick(teacher.masses, ids)
    chances = -jnp.expm1(-masses * times[..., -1:])  # of waiting less than the last one did
    weights = masses / jnp.where(masses > 0, chances, 1)
    return _distinct(ids, weights / teacher.total[..., None])


def gumbel_ht_normalized(teacher: Softmax, keys: Key[Array, "B T"], num_samples: int) -> Sample:
    """`gumbel_ht`, its weights made to add up to 1. Less scattered, and biased by little: less with more samples."""
    ids, weights, is_new = gumbel_ht(teacher, keys, num_samples)
    return Sample(ids, weights / jnp.sum(weights, axis=-1, keepdims=True), is_new)


def stratified(teacher: Softmax, keys: Key[Array, "B T"], num_samples: int) -> Sample:
    """The M // 2 most probable ids with their p, and `systematic` draws from the rest, which share the rest's mass.

    Unbiased. Weights add up to 1.
    """
    if num_samples == 1:
        return systematic(teacher, keys, 1)
    shard, num_exact = teacher.shard, num_samples // 2
    num_drawn = num_samples - num_exact
    scores, head = search.largest_of_all(teacher.scores, num_exact, shard)
    last, its_id = scores[..., -1:], head[..., -1:]
    ids = shard.first() + jax.lax.broadcasted_iota(jnp.int32, teacher.scores.shape, 2)
    in_head = (teacher.scores > last) | ((teacher.scores == last) & (ids <= its_id))
    drawn, mass = search.at(jnp.where(in_head, 0, teacher.masses), _steps(keys, num_drawn), shard)
    each = jnp.broadcast_to((mass / num_drawn)[..., None], drawn.shape)
    weights = jnp.concatenate([teacher.mass(scores), each], axis=-1) / teacher.total[..., None]
    is_new = jnp.concatenate([jnp.ones(head.shape, jnp.bool), _is_new(drawn)], axis=-1)
    return Sample(jnp.concatenate([head, drawn], axis=-1), weights, is_new)


def _steps(keys: Key[Array, "B T"], count: int) -> Float[Array, "B T M"]:
    return (jnp.arange(count, dtype=jnp.float32)[None, None] + noise.uniform(keys, 1)) / count


def race(teacher: Softmax, keys: Key[Array, "B T"], count: int) -> tuple[Float[Array, "B T M"], Int[Array, "B T M"]]:
    """When (times the total of the masses) the first `count` ids arrive, rising, and which; at infinity, if impossible.

    Blocks race first: the soonest of a block waits for an exponential time of rate its whole mass. The first `count`
    ids are in the first `count` blocks, and only there times are drawn for all: what each id comes later than the
    soonest of its block does not depend on when that one comes. So V / 64 + 64 M times are drawn, not V.

    With fewer ids than RACED_BY_BLOCK, each is a block of its own; so it is if shards are not whole blocks, which then
    draw other ids than the vocabulary would on another mesh.
    """
    shard = teacher.shard
    by_block = num_ids(shard) >= RACED_BY_BLOCK and shard.size % search.BLOCK == 0
    blocks = search.in_blocks(teacher.masses, search.BLOCK if by_block else 1, 0.0)
    num_blocks, size = blocks.shape[2:]
    numbers = shard.first() // size + jax.lax.broadcasted_iota(jnp.int32, blocks.shape[:3], 2)
    soonest = _waits(noise.exponential(noise.folded(keys, numbers), 1)[..., 0], jnp.sum(blocks, axis=-1))
    soonest, chosen = search.largest(-soonest, min(count, num_blocks))
    masses = search.take_blocks(blocks, chosen)
    # Numbers from num_ids on are of no block: what an id waits has nothing to do with what its block does.
    inside = noise.folded(keys, num_ids(shard) + jnp.take_along_axis(numbers, chosen, axis=-1))
    waits = _waits(noise.exponential(inside, size), masses)
    times = waits - jnp.min(waits, axis=-1, keepdims=True) - soonest[..., None]
    times = jnp.where(masses > 0, times, jnp.inf).reshape(*chosen.shape[:2], -1)
    first, within = search.largest(-times, min(count, times.shape[-1]))
    ids = jnp.take_along_axis(chosen, within // size, axis=-1) * size + within % size
    times, ids = search.merge(first, ids + shard.first(), count, shard)
    return -times, ids


def _waits(times: Float[Array, "*B"], masses: Float[Array, "*B"]) -> Float[Array, "*B"]:
    return jnp.where(masses > 0, times / jnp.where(masses > 0, masses, 1), jnp.inf)


BY_NAME: dict[str, Callable[[Softmax, jax.Array, int], Sample]] = {
    f.__name__: f for f in (top_k, sampled, sampled_counts, systematic, gumbel_ht, gumbel_ht_normalized, stratified)
}
