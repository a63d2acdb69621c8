"""The soft targets of one chunk of tokens, and how its logits are scored against them."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gemma3_jax.losses import soft_targets, softmax, vocab_parallel
from gemma3_jax.model import matmul

TEACHER_METRICS = ("captured_mass", "teacher_entropy", "teacher_cross_entropy")


class Scores(NamedTuple):
    """Logits of a student, scored against the targets of each token."""

    mean_logit: Float[Array, "B T"]  # sum of weight times logit
    label_logit: Float[Array, "B T"]
    agrees: Bool[Array, "B T"]  # whether the teacher's best id has the largest logit; False without a teacher


class SparseChunk(NamedTuple):
    """Weights on few ids: sampled from a teacher, or 1 on the label."""

    ids: Int[Array, "B T M"]
    weights: Float[Array, "B T M"]
    best_id: Int[Array, "B T"] | None  # the teacher's; None without a teacher
    metrics: dict[str, Float[Array, "B T"]]  # TEACHER_METRICS, or empty
    shard: vocab_parallel.Shard

    def total_weight(self) -> Float[Array, "B T"]:
        return jnp.sum(self.weights, axis=-1)

    def score(self, logits: Float[Array, "B T V"], labels: Int[Array, "B T"], top: Float[Array, "B T"]) -> Scores:
        """`top` is the largest logit of each token."""
        ids = [self.ids, labels[..., None], *([] if self.best_id is None else [self.best_id[..., None]])]
        picked = self.shard.pick(logits, jnp.concatenate(ids, axis=-1))  # all at once: one sum over the shards
        num_soft = self.ids.shape[-1]
        mean = jnp.sum(self.weights * picked[..., :num_soft], axis=-1)
        agrees = jnp.zeros(top.shape, bool) if self.best_id is None else picked[..., -1] == top
        return Scores(mean, picked[..., num_soft], agrees)

    def subtract_from(self, grad_logits: Float[Array, "B T V"], factor: Float[Array, "B T"]) -> Float[Array, "B T V"]:
        """`grad_logits` minus factor * weight at each id."""
        return self.shard.add(grad_logits, self.ids, -factor[..., None] * self.weights)


class DenseChunk(NamedTuple):
    """A teacher's probabilities of all ids, with the methods of SparseChunk."""

    teacher: softmax.Softmax
    metrics: dict[str, Float[Array, "B T"]]

    def probabilities(self) -> Float[Array, "B T V"]:
        return self.teacher.masses / self.teacher.total_mass[..., None]

    def total_weight(self) -> Float[Array, "B T"]:
        return jnp.ones_like(self.teacher.total_mass)

    def score(self, logits: Float[Array, "B T V"], labels: Int[Array, "B T"], top: Float[Array, "B T"]) -> Scores:
        shard = self.teacher.shard
        mean = shard.sum(jnp.sum(self.probabilities() * logits, axis=-1))
        at_top = jnp.where(logits == top[..., None], self.teacher.scores, -jnp.inf)
        agrees = shard.max(jnp.max(at_top, axis=-1)) == self.teacher.max_score
        return Scores(mean, shard.pick(logits, labels[..., None])[..., 0], agrees)

    def subtract_from(self, grad_logits: Float[Array, "B T V"], factor: Float[Array, "B T"]) -> Float[Array, "B T V"]:
        return grad_logits - factor[..., None] * self.probabilities()


def of_labels(labels: Int[Array, "B T"], shard: vocab_parallel.Shard) -> SparseChunk:
    """A weight of 1 on each label."""
    return SparseChunk(labels[..., None], jnp.ones((*labels.shape, 1), jnp.float32), None, {}, shard)


def of_sparse(
    targets: soft_targets.SparseTargets, mask: Bool[Array, "B T"], shard: vocab_parallel.Shard
) -> SparseChunk:
    """Weights sampled from a teacher."""
    values = targets.captured_mass, targets.entropy, -targets.label_log_prob
    metrics = dict(zip(TEACHER_METRICS, values, strict=True))
    weights = jnp.where(mask[..., None], targets.weights, 0)  # weights of a masked token may not be finite
    return SparseChunk(targets.ids, weights, targets.best_id, metrics, shard)


def of_dense(
    targets: soft_targets.DenseTargets,
    labels: Int[Array, "B T"],
    temperature: float,
    shard: vocab_parallel.Shard,
) -> DenseChunk:
    """All probabilities of a teacher, from its hidden states and the shard's part of its table."""
    logits = matmul.einsum("BTD,VD->BTV", targets.hidden, targets.table, jnp.float32)
    teacher = softmax.of_logits(logits, temperature, shard)
    untempered = teacher if temperature == 1 else softmax.of_logits(logits, 1.0, shard)
    label_log_prob = softmax.log_prob(untempered, labels)
    values = jnp.ones(labels.shape), softmax.entropy(teacher), -label_log_prob
    return DenseChunk(teacher, dict(zip(TEACHER_METRICS, values, strict=True)))
