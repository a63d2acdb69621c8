"""Soft targets of a batch: the teacher's distribution over each next token, sampled or complete."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int


class SparseTargets(NamedTuple):
    """Weights on few ids for each token. An id may appear more than once; its weights add up."""

    ids: Int[Array, "B T M"]
    weights: Float[Array, "B T M"]
    captured_mass: Float[Array, "B T"]  # the teacher's probability of all listed ids, each counted once
    entropy: Float[Array, "B T"]  # nats, of the teacher's whole distribution
    label_log_prob: Float[Array, "B T"]  # nats: the teacher's log-probability of the label, at temperature 1
    best_id: Int[Array, "B T"]  # the teacher's most probable id


class DenseTargets(NamedTuple):
    """The teacher's probabilities of all ids, as the two factors of its logits: no array of [B, T, V] is stored."""

    hidden: Float[Array, "B T _"]
    table: Float[Array, "V _"]


class DrawnWeights(NamedTuple):
    """Weights on ids of a shard, drawn in the pass that scores a student; the other fields are as in SparseTargets.

    Over all shards the weights of a token add up to 1, apart from rounding.
    """

    # weigh(logits, gradient, *per_token, dtype=) -> id_weights.Weighed, with gradient(logits, weights, ids, *per_token)
    # elementwise, or None; `ids` count from the first of the shard.
    weigh: jax.tree_util.Partial
    entropy: Float[Array, "*B"]
    label_log_prob: Float[Array, "*B"]
    best_id: Int[Array, "*B"]


SoftTargets = SparseTargets | DenseTargets
