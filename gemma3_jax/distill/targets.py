"""Soft targets drawn from a teacher's logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gemma3_jax.distill import estimators, noise, search, settings
from gemma3_jax.losses import soft_targets, softmax, vocab_parallel

LOGITS_PER_PART = 1 << 21  # on a CPU, where 8 MiB of float32 stay in a cache


def draw(
    shard: vocab_parallel.Shard,
    logits: Float[Array, "B T V"],
    labels: Int[Array, "B T"],
    words: noise.Words,
    *,
    samples: settings.Samples,
) -> soft_targets.SparseTargets:
    """Draws targets from a device's shard of the teacher's logits; the result is the same on every shard.

    Draws are a function of the words of each token (noise.token_words), so a restart draws the same again.
    """

    def draw_all(logits, labels, words):
        teacher = softmax.of_logits(logits, samples.temperature, shard)
        ids, weights, is_new = estimators.estimate(teacher, noise.keys_of(words), samples)
        untempered = teacher if samples.temperature == 1 else softmax.of_logits(logits, 1.0, shard)
        return soft_targets.SparseTargets(
            ids=ids,
            weights=weights,
            captured_mass=jnp.sum(jnp.where(is_new & (weights > 0), teacher.probabilities_of(ids), 0), axis=-1),
            entropy=softmax.entropy(teacher),
            label_log_prob=softmax.log_prob(untempered, labels),
            best_id=search.largest_over_shards(teacher.scores, 1, shard)[1][..., 0],
        )

    num_rows, num_tokens, num_ids = logits.shape
    part = vocab_parallel.largest_divisor(num_tokens, max(1, LOGITS_PER_PART // (num_rows * num_ids)))
    if part == num_tokens:
        return draw_all(logits, labels, words)

    def draw_in_parts(*tokens):
        def draw_part(first):
            return draw_all(*jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, part, axis=1), tokens))

        drawn = jax.lax.map(draw_part, jnp.arange(0, num_tokens, part))
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(*labels.shape, *x.shape[3:]), drawn)

    return jax.lax.platform_dependent(logits, labels, words, cpu=draw_in_parts, default=draw_all)
