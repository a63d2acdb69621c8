"""Softmax over a vocabulary that is split over devices, with its entropy and log-probabilities."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gemma3_jax.losses import blocks, vocab_parallel

IMPOSSIBLE = -80.0  # nats below the most probable id, where p becomes 0: float32 sums lose what is smaller


class Softmax(NamedTuple):
    """Probabilities of the ids of one shard, and what they share with the other shards."""

    scores: Float[Array, "B T V"]  # logits / temperature
    masses: Float[Array, "B T V"]  # probabilities times `total_mass`
    total_mass: Float[Array, "B T"]  # sum of the masses of all shards
    max_score: Float[Array, "B T"]  # over all shards
    shard: vocab_parallel.Shard

    def masses_of(self, scores: Float[Array, "B T M"]) -> Float[Array, "B T M"]:
        """Masses of ids with these scores."""
        return _masses(scores, self.max_score)

    def probabilities_of(self, ids: Int[Array, "B T M"]) -> Float[Array, "B T M"]:
        """Probabilities of these ids, whichever shard holds them."""
        return self.shard.pick(self.masses, ids) / self.total_mass[..., None]


def of_logits(logits: Float[Array, "B T V"], temperature: float, shard: vocab_parallel.Shard) -> Softmax:
    """Softmax of logits / temperature in float32, whatever the dtype of the logits."""
    scores = logits.astype(jnp.float32)
    if temperature != 1:
        scores = scores / temperature
    max_score = shard.max(jnp.max(scores, axis=-1))
    masses = _masses(scores, max_score)
    return Softmax(scores, masses, shard.sum(blocks.total(masses)), max_score, shard)


def _masses(scores: Float[Array, "B T M"], max_score: Float[Array, "B T"]) -> Float[Array, "B T M"]:
    below = scores - max_score[..., None]
    return jnp.where(below > IMPOSSIBLE, jnp.exp(below), 0)


def entropy(dist: Softmax) -> Float[Array, "B T"]:
    """Entropy over the whole vocabulary, in nats."""
    below = dist.scores - dist.max_score[..., None]
    parts = blocks.total(jnp.where(dist.masses > 0, dist.masses * below, 0))
    return jnp.log(dist.total_mass) - dist.shard.sum(parts) / dist.total_mass


def log_prob(dist: Softmax, ids: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Log-probability of one id for each token, in nats."""
    return dist.shard.pick_one(dist.scores, ids) - dist.max_score - jnp.log(dist.total_mass)
