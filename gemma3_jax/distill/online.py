"""Weights of all ids, drawn from the logits of a teacher that runs in the student's step.

They are those of estimators.py for `systematic` and `stratified`, but for the order in which ids are drawn, and for
which ids have their probability: at least num_samples // 2 leaders of columns (pages.py). Nothing is stored, so no
list of ids is needed: two passes over the logits of a chunk make its weights.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt32

from gemma3_jax.distill import noise, page_kernels, pages, settings
from gemma3_jax.losses import soft_targets, vocab_parallel

ESTIMATORS = ("stratified", "systematic")
STEPS_PER_NAT, DIGITS, NUM_DIGITS = 8, 16, 2  # of `reach`: up to 32 nats

LEAST_MASS = 1e-28  # relative to the most probable id: less in all is not drawn from, and no float32 overflows


def draws(samples: settings.Samples, vocab_size: int) -> bool:
    """Whether `draw` is how these samples are drawn online: not if all ids are sampled, each with its probability."""
    return samples.estimator in ESTIMATORS and samples.num_samples < vocab_size


def draw(
    shard: vocab_parallel.Shard,
    logits: Float[Array, "B T V"],
    labels: Int[Array, "B T"],
    row_ids: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    *,
    samples: settings.Samples,
    seed: int,
    dtype: DTypeLike,
) -> soft_targets.DenseWeights:
    """Draws the weights, rounded to `dtype`, of a device's shard of the vocabulary.

    Draws are a function of `seed`, the row's id in the stage, and the position in the row, as those of targets.draw.
    """
    # Behind barriers: XLA would compute what is one number a token in arrays [T, 1], of which each fills 128 lanes.
    first, second = (x.reshape(-1) for x in noise.words(noise.token_keys(seed, row_ids, positions)))
    words = jax.lax.optimization_barrier((first, second))
    num_exact = samples.num_samples // 2 if samples.estimator == "stratified" else 0
    flat = logits.reshape(-1, logits.shape[2])
    local = labels.reshape(-1) - shard.first_id()
    dense = _draw(shard, flat, local, words, num_exact=num_exact, samples=samples, dtype=dtype)
    return jax.tree.map(lambda x: x.reshape(*labels.shape, *x.shape[1:]), dense)


def _draw(
    shard: vocab_parallel.Shard,
    logits: Float[Array, "T V"],
    labels: Int[Array, "T"],
    words: tuple[UInt32[Array, "T"], UInt32[Array, "T"]],
    *,
    num_exact: int,
    samples: settings.Samples,
    dtype: DTypeLike,
) -> soft_targets.DenseWeights:
    temperature, num_draws = samples.temperature, samples.num_samples - num_exact
    local, maxima = _passes(logits.shape[1], "summarize", temperature=temperature)(logits, labels)
    teacher = _over_shards(jax.lax.optimization_barrier(local), temperature, shard)
    reach = _reach(teacher.max_score[:, None] - maxima.coarse, num_exact, shard)
    gaps = teacher.max_score[:, None] - maxima.columns
    # What is drawn from: leaders out of reach, and all that do not lead.
    rest = jnp.where(gaps < reach[:, None], 0, pages.masses_of(maxima.columns, teacher.max_score[:, None])[0])
    scale = jnp.exp(local.max_score - teacher.max_score)
    rests = shard.all_gather(scale * local.trailing_mass + jnp.sum(rest, axis=1))
    drawn_mass = jnp.sum(rests, axis=0)
    spacing = pages.spacing_bits(num_draws)
    units_of_mass = jnp.where(drawn_mass > LEAST_MASS, (num_draws << spacing) / jnp.maximum(drawn_mass, LEAST_MASS), 0)
    is_before = jax.lax.broadcasted_iota(jnp.int32, rests.shape, 0) < shard.index()
    units_before = jnp.sum(jnp.where(is_before, rests, 0), axis=0) * units_of_mass
    uniform, dither, rounding = words[0], words[1] >> 16, words[1] & 0xFFFF
    plan = pages.Draw(
        max_score=teacher.max_score,
        reach=reach,
        weight_of_mass=1 / teacher.mass,
        units_of_mass=units_of_mass,
        weight=drawn_mass / num_draws / teacher.mass,
        dither=dither.astype(jnp.float32) * 2.0**-16,
        start=jnp.round(units_before).astype(jnp.int32) + (uniform >> (32 - spacing)).astype(jnp.int32),
        rounding=rounding.astype(jnp.int32),
    )
    plan = jax.lax.optimization_barrier(plan)
    drawn = _passes(logits.shape[1], "weigh", temperature=temperature, num_draws=num_draws, dtype=dtype)(logits, plan)
    total_weight, captured_mass = shard.sum((drawn.total_weight, drawn.captured_mass))
    return soft_targets.DenseWeights(
        weights=drawn.weights,
        total_weight=total_weight,
        captured_mass=captured_mass,
        entropy=jnp.log(teacher.mass) - teacher.mass_times_score / teacher.mass,
        label_log_prob=temperature * (teacher.label_score - teacher.max_score) - jnp.log(teacher.untempered_mass),
        best_id=teacher.best_id,
    )


def _passes(num_ids: int, name: str, **options):
    """A pass over the logits: on a TPU the kernel."""
    anywhere = functools.partial(getattr(pages, name), **options)
    if not page_kernels.fits(num_ids):
        return anywhere
    kernel = functools.partial(getattr(page_kernels, name), **options)
    return functools.partial(jax.lax.platform_dependent, tpu=kernel, default=anywhere)


def _over_shards(local: pages.Summary, temperature: float, shard: vocab_parallel.Shard) -> pages.Summary:
    """The summary of all ids."""
    gathered = shard.all_gather(jnp.stack([x.astype(jnp.float32) for x in local]))  # at once; float32 holds all ids
    each = pages.Summary(*(gathered[:, i] for i in range(len(local))))
    top = jnp.max(each.max_score, axis=0)
    below = each.max_score - top[None]
    scale = jnp.exp(below)
    ids = each.best_id.astype(jnp.int32)
    ids = ids + shard.size * jax.lax.broadcasted_iota(jnp.int32, ids.shape, 0)
    return pages.Summary(
        max_score=top,
        mass=jnp.sum(scale * each.mass, axis=0),
        trailing_mass=jnp.sum(scale * each.trailing_mass, axis=0),
        mass_times_score=jnp.sum(scale * (each.mass_times_score + jnp.maximum(below, -1e30) * each.mass), axis=0),
        untempered_mass=jnp.sum(jnp.exp(temperature * below) * each.untempered_mass, axis=0),
        label_score=jnp.sum(each.label_score, axis=0),
        best_id=jnp.min(jnp.where(below == 0, ids, jnp.iinfo(jnp.int32).max), axis=0),
    )


def _reach(gaps: Float[Array, "T _"], num_exact: int, shard: vocab_parallel.Shard) -> Float[Array, "T"]:
    """The fewest nats, in steps, that have `num_exact` of all shards' gaps below them; 32 if there are not as many.

    Digit by digit: two rounds of 15 comparisons, instead of a sort.
    """
    if not num_exact:
        return jnp.zeros(gaps.shape[0], jnp.float32)
    steps = jnp.zeros(gaps.shape[0], jnp.int32)
    for digit in reversed(range(NUM_DIGITS)):
        size = DIGITS**digit
        counts = [
            jnp.sum(gaps < ((steps + i * size).astype(jnp.float32) / STEPS_PER_NAT)[:, None], axis=1, dtype=jnp.int32)
            for i in range(1, DIGITS)
        ]
        steps += size * jnp.sum(shard.sum(jnp.stack(counts)) < num_exact, axis=0, dtype=jnp.int32)
    return (steps + 1).astype(jnp.float32) / STEPS_PER_NAT
