"""What a teacher says of the next token: weights on few ids, which stand for its probabilities of all."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gemma3_jax.distill import estimators, noise, search, settings
from gemma3_jax.losses import vocab_parallel

LOGITS_PER_PART = 1 << 21  # on a CPU, where 8 MiB of float32 stay in a cache


class Targets(NamedTuple):
    """Of every token of a batch. An id may come more than once; its weights add up. Ids nobody named weigh nothing."""

    ids: Int[Array, "B T M"]
    weights: Float[Array, "B T M"]
    captured_mass: Float[Array, "B T"]  # the teacher's probability of all ids named, each counted once
    entropy: Float[Array, "B T"]  # nats, of the teacher's whole distribution
    label_log_prob: Float[Array, "B T"]  # nats: what the teacher, at temperature 1, gives the token that did come
    best_id: Int[Array, "B T"]  # the teacher's most probable one


class Whole(NamedTuple):
    """Of every token of a batch all that a teacher says, still to be multiplied: hidden states times table."""

    hidden: Float[Array, "B T _"]
    table: Float[Array, "V _"]


def draw(
    shard: vocab_parallel.Shard,
    logits: Float[Array, "B T V"],
    labels: Int[Array, "B T"],
    numbers: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    *,
    samples: settings.Samples,
    seed: int,
) -> Targets:
    """Targets from a device's shard of the teacher's logits, the same on every shard.

    A function of `seed`, the number of the row in the stage, and the place in the row (not in the document): a restart
    draws the same again.
    """

    def whole(logits, labels, numbers, positions):
        teacher = estimators.softmax(logits, samples.temperature, shard)
        ids, weights, is_new = estimators.estimate(teacher, noise.token_keys(seed, numbers, positions), samples)
        untempered = teacher if samples.temperature == 1 else estimators.softmax(logits, 1.0, shard)
        return Targets(
            ids=ids,
            weights=weights,
            captured_mass=jnp.sum(jnp.where(is_new & (weights > 0), teacher.probabilities(ids), 0), axis=-1),
            entropy=entropy(teacher),
            label_log_prob=log_prob(untempered, labels),
            best_id=search.largest_of_all(teacher.scores, 1, shard)[1][..., 0],
        )

    num_rows, num_tokens, num_ids = logits.shape
    part = vocab_parallel.largest_divisor(num_tokens, max(1, LOGITS_PER_PART // (num_rows * num_ids)))
    if part == num_tokens:
        return whole(logits, labels, numbers, positions)

    def in_parts(*tokens):
        def of_part(first):
            return whole(*(jax.lax.dynamic_slice_in_dim(x, first, part, axis=1) for x in tokens))

        drawn = jax.lax.map(of_part, jnp.arange(0, num_tokens, part))
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(*labels.shape, *x.shape[3:]), drawn)

    return jax.lax.platform_dependent(logits, labels, numbers, positions, cpu=in_parts, default=whole)


def entropy(teacher: estimators.Softmax) -> Float[Array, "B T"]:
    """Nats, of all shards."""
    below = teacher.scores - teacher.largest[..., None]
    parts = search.total(jnp.where(teacher.masses > 0, teacher.masses * below, 0))
    return jnp.log(teacher.total) - teacher.shard.sum(parts) / teacher.total


def log_prob(teacher: estimators.Softmax, ids: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Nats of one id each."""
    return teacher.shard.pick(teacher.scores, ids[..., None])[..., 0] - teacher.largest - jnp.log(teacher.total)
