"""The targets of one chunk of tokens, on the ids of a device's shard of the vocabulary."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gemma3_jax.losses import id_weights, soft_targets, softmax, vocab_parallel
from gemma3_jax.model import matmul

TEACHER_METRICS = ("captured_mass", "teacher_entropy", "teacher_cross_entropy")


class _TeacherBest(NamedTuple):
    """The ids that have a teacher's largest score."""

    scores: Float[Array, "B T V"]
    max_score: Float[Array, "B T"]  # over all shards


class ChunkTargets(NamedTuple):
    """What logits of a student are scored against. Sums over the shards are left to the caller."""

    weights: id_weights.IdWeights | id_weights.InOnePass
    total_weight: Float[Array, "B T"]  # of all shards
    label: id_weights.IdWeights  # weight 1
    best: id_weights.IdWeights | _TeacherBest | None  # weight 1 on the teacher's best id; None without a teacher
    metrics: dict[str, Float[Array, "B T"]]  # of TEACHER_METRICS those that do not come with the weights

    def agrees(
        self, logits: Float[Array, "B T V"], top: Float[Array, "B T"], shard: vocab_parallel.Shard
    ) -> Bool[Array, "B T"]:
        """Whether the teacher's best id has `top`, the largest logit over all shards: True on one shard at most."""
        if self.best is None:
            return jnp.zeros(top.shape, bool)
        if isinstance(self.best, _TeacherBest):
            at_top = jnp.where(logits == top[..., None], self.best.scores, -jnp.inf)
            agrees = shard.max(jnp.max(at_top, axis=-1)) == self.best.max_score
            return agrees & (shard.index() == 0)
        return (self.best.total() > 0) & (self.best.dot(logits) == top)


def of_labels(labels: Int[Array, "B T"], shard: vocab_parallel.Shard) -> ChunkTargets:
    """A weight of 1 on each label."""
    label = id_weights.of_one(shard.local_ids(labels), shard.size)
    return ChunkTargets(label, jnp.ones(labels.shape, jnp.float32), label, None, {})


def of_sparse(
    targets: soft_targets.SparseTargets,
    labels: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    shard: vocab_parallel.Shard,
) -> ChunkTargets:
    """Weights sampled from a teacher."""
    weights = jnp.where(mask[..., None], targets.weights, 0)  # weights of a masked token may not be finite
    of_one = lambda ids: id_weights.of_one(shard.local_ids(ids), shard.size)  # noqa: E731
    few = id_weights.of_few(shard.local_ids(targets.ids), weights, shard.size)
    metrics = _metrics(targets.captured_mass, targets.entropy, -targets.label_log_prob)
    return ChunkTargets(few, jnp.sum(weights, axis=-1), of_one(labels), of_one(targets.best_id), metrics)


def of_drawn(drawn: soft_targets.DrawnWeights, labels: Int[Array, "B T"], shard: vocab_parallel.Shard) -> ChunkTargets:
    """Weights on ids that are drawn from a teacher. Their sum is exactly 1 but for rounding, and 1 in the mean."""
    of_one = lambda ids: id_weights.of_one(shard.local_ids(ids), shard.size)  # noqa: E731
    metrics = {"teacher_entropy": drawn.entropy, "teacher_cross_entropy": -drawn.label_log_prob}
    weights = id_weights.DrawnIds(drawn.weigh)
    return ChunkTargets(weights, jnp.ones(labels.shape, jnp.float32), of_one(labels), of_one(drawn.best_id), metrics)


def of_dense(
    targets: soft_targets.DenseTargets,
    labels: Int[Array, "B T"],
    temperature: float,
    shard: vocab_parallel.Shard,
) -> ChunkTargets:
    """All probabilities of a teacher, from its hidden states and the shard's part of its table."""
    with jax.named_scope("teacher"):
        logits = matmul.einsum("BTD,VD->BTV", targets.hidden, targets.table, jnp.float32)
    teacher = softmax.of_logits(logits, temperature, shard)
    untempered = teacher if temperature == 1 else softmax.of_logits(logits, 1.0, shard)
    metrics = _metrics(jnp.ones(labels.shape), softmax.entropy(teacher), -softmax.log_prob(untempered, labels))
    probabilities = teacher.masses / teacher.total_mass[..., None]
    weights = id_weights.AllIds(probabilities)
    label = id_weights.of_one(shard.local_ids(labels), shard.size)
    best = _TeacherBest(teacher.scores, teacher.max_score)
    return ChunkTargets(weights, jnp.ones(labels.shape, jnp.float32), label, best, metrics)


def _metrics(*values: Float[Array, "B T"]) -> dict[str, Float[Array, "B T"]]:
    return dict(zip(TEACHER_METRICS, values, strict=True))
