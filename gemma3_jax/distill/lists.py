"""Lists of ids and weights, drawn from a teacher's logits on a TPU without a sort, search, gather or scatter.

They have the weights of online.py, apart from the threshold of the exact half, which is as fine as a 128th of a nat:
at most num_samples // 2 leaders of columns are exact, and slots that are left over have no weight.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gemma3_jax import sharding
from gemma3_jax.distill import list_kernel, noise, online, page_kernels, pages, settings
from gemma3_jax.losses import soft_targets, vocab_parallel

NUM_DIGITS = 3  # of `reach`: 4,096 steps up to 32 nats


def draws(samples: settings.Samples, vocab_size: int) -> bool:
    """Whether `draw` can draw these samples on the current mesh."""
    return online.draws(samples, vocab_size) and page_kernels.fits(vocab_parallel.shard_of(vocab_size).size)


def draw(
    shard: vocab_parallel.Shard,
    logits: Float[Array, "B T V"],
    labels: Int[Array, "B T"],
    words: noise.Words,
    *,
    samples: settings.Samples,
) -> soft_targets.SparseTargets:
    """Draws targets from a device's shard of the teacher's logits; the result is the same on every shard.

    Draws are a function of the words of each token (noise.token_words), as those of targets.draw.
    """
    local_labels = labels.reshape(-1) - shard.first_id()
    drawn = _draw(shard, logits.reshape(-1, logits.shape[2]), local_labels, online.flat_words(words), samples=samples)
    return jax.tree.map(lambda x: x.reshape(*labels.shape, *x.shape[1:]), drawn)


def _draw(
    shard: vocab_parallel.Shard,
    logits: Float[Array, "T V"],
    labels: Int[Array, "T"],
    words: online.Words,
    *,
    samples: settings.Samples,
) -> soft_targets.SparseTargets:
    temperature, num_exact = samples.temperature, online.num_exact(samples)
    num_draws = samples.num_samples - num_exact
    local, maxima = online.passes(logits.shape[1], "summarize", temperature=temperature)(logits, labels)
    teacher = online.over_shards(jax.lax.optimization_barrier(local), temperature, shard)
    gaps = teacher.max_score[:, None] - maxima.columns
    reach = jnp.zeros(labels.shape)
    if num_exact:
        steps = online.most_steps(gaps, num_exact, NUM_DIGITS, shard)
        reach = steps.astype(jnp.float32) / (online.DIGITS**NUM_DIGITS // online.FARTHEST_NATS)
    plan = online.plan_draws(shard, (local, teacher), maxima.columns, reach, words, num_draws=num_draws)
    num_here = shard.all_gather(jnp.sum(gaps < reach[:, None], axis=1, dtype=jnp.int32))
    is_before = jax.lax.broadcasted_iota(jnp.int32, num_here.shape, 0) < shard.index()
    first_exact = jnp.sum(jnp.where(is_before, num_here, 0), axis=0)
    lists = list_kernel.listed(
        logits,
        plan.draw,
        first_exact,
        temperature=temperature,
        num_exact=num_exact,
        num_draws=num_draws,
        interpret=sharding.platform() == "cpu",
    )
    ids, weights = over_shards(lists, plan, shard, teacher.best_id)
    return soft_targets.SparseTargets(
        ids=ids, weights=weights, captured_mass=shard.sum(lists.captured_mass), **online.reported(teacher, temperature)
    )


def over_shards(
    lists: list_kernel.Lists, plan: online.DrawPlan, shard: vocab_parallel.Shard, best_id: Int[Array, "T"]
) -> tuple[Int[Array, "T M"], Float[Array, "T M"]]:
    """The slots of all shards. One without an id gets the best id: without weight, if it is of the exact half."""
    num_draws = lists.drawn_ids.shape[1]
    slot = jax.lax.broadcasted_iota(jnp.int32, lists.drawn_ids.shape, 1)
    # Rounding may have the masses of a shard end beyond the start of the next one's, or before it.
    is_before_end = slot < (plan.end >> pages.spacing_bits(num_draws))[:, None]
    ids = jnp.concatenate([lists.exact_ids, jnp.where(is_before_end, lists.drawn_ids, -1)], axis=1)
    is_here = ids >= 0
    weight_of_mass, weight = plan.draw.weight_of_mass[:, None], plan.draw.weight[:, None]
    exact = jnp.where(lists.exact_ids >= 0, jnp.exp(lists.below) * weight_of_mass, 0)
    # Of ids one more than they are, so that 0 is none.
    ids, exact = shard.sum((jnp.where(is_here, ids + shard.first_id() + 1, 0), exact))
    num_exact = exact.shape[1]
    drawn = ids[:, num_exact:]
    drawn = jnp.where(drawn > 0, drawn, jnp.pad(drawn, ((0, 0), (1, 0)))[:, :-1])  # the draw falls on the id before
    ids = jnp.concatenate([ids[:, :num_exact], drawn], axis=1)
    weights = jnp.concatenate([exact, jnp.broadcast_to(weight, drawn.shape)], axis=1)
    return jnp.where(ids > 0, ids - 1, best_id[:, None]), weights
