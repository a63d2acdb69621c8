"""Weights of all ids, drawn from the logits of a teacher that runs in the student's step.

They are those of estimators.py for `systematic` and `stratified`, but for the order in which ids are drawn, and for
which ids have their probability: at least num_samples // 2 leaders of columns (pages.py). Nothing is stored, neither
lists of ids nor weights: one pass over a chunk's logits of the teacher plans the draw, and a second one, over those of
the student too, draws the weights and scores the student against them.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt32

from gemma3_jax.distill import noise, page_kernels, pages, settings
from gemma3_jax.losses import id_weights, soft_targets, vocab_parallel

ESTIMATORS = ("stratified", "systematic")
DIGITS, FARTHEST_NATS = 16, 32  # of `reach`
NUM_DIGITS = 2
STEPS_PER_NAT = DIGITS**NUM_DIGITS // FARTHEST_NATS

Words = tuple[UInt32[Array, "_"], UInt32[Array, "_"]]  # of each token

LEAST_MASS = 1e-28  # relative to the most probable id: less in all is not drawn from, and no float32 overflows


def draws(samples: settings.Samples, vocab_size: int) -> bool:
    """Whether `draw` is how these samples are drawn online: not if all ids are sampled, each with its probability."""
    return samples.estimator in ESTIMATORS and samples.num_samples < vocab_size


def draw(
    shard: vocab_parallel.Shard,
    logits: Float[Array, "B T V"],
    labels: Int[Array, "B T"],
    words: noise.Words,
    *,
    samples: settings.Samples,
) -> soft_targets.DrawnWeights:
    """Plans the draw of the weights of a device's shard of the vocabulary.

    Draws are a function of the words of each token (noise.token_words), as those of targets.draw.
    """
    flat = logits.reshape(-1, logits.shape[2])
    local = labels.reshape(-1) - shard.first_id()
    plan, about_teacher = _plan(shard, flat, local, flat_words(words), samples=samples)
    weigh = jax.tree_util.Partial(functools.partial(_weigh, samples=samples), flat, plan)
    return soft_targets.DrawnWeights(weigh, **{name: x.reshape(labels.shape) for name, x in about_teacher.items()})


def flat_words(words: noise.Words) -> Words:
    """The words of all rows, one after the other."""
    # Behind barriers: XLA would compute what is one number a token in arrays [T, 1], of which each fills 128 lanes.
    first, second = (x.reshape(-1) for x in words)
    return jax.lax.optimization_barrier((first, second))


def num_exact(samples: settings.Samples) -> int:
    """How many ids have their probability for weight."""
    return samples.num_samples // 2 if samples.estimator == "stratified" else 0


def _plan(
    shard: vocab_parallel.Shard,
    logits: Float[Array, "T V"],
    labels: Int[Array, "T"],
    words: Words,
    *,
    samples: settings.Samples,
) -> tuple[pages.Draw, dict[str, jax.Array]]:
    temperature, num_draws = samples.temperature, samples.num_samples - num_exact(samples)
    local, maxima = passes(logits.shape[1], "summarize", temperature=temperature)(logits, labels)
    teacher = over_shards(jax.lax.optimization_barrier(local), temperature, shard)
    reach = _reach(teacher.max_score[:, None] - maxima.coarse, num_exact(samples), shard)
    plan = plan_draws(shard, (local, teacher), maxima.columns, reach, words, num_draws=num_draws).draw
    return plan, reported(teacher, temperature)


def _weigh(
    teacher_logits: Float[Array, "_ V"],
    plan: pages.Draw,
    logits: Float[Array, "B T V"],
    gradient: Callable | None,
    *per_token: Float[Array, "B T"],
    samples: settings.Samples,
    dtype: DTypeLike = jnp.float32,
) -> id_weights.Weighed:
    """Of the student's logits; see soft_targets.DrawnWeights."""
    options = {
        "gradient": gradient,
        "temperature": samples.temperature,
        "num_draws": samples.num_samples - num_exact(samples),
        "dtype": dtype,
    }
    run = passes(logits.shape[2], "weigh", **options)
    flat = [x.reshape(-1) for x in per_token]
    weighed = run(teacher_logits, logits.reshape(teacher_logits.shape), plan, *flat)
    return jax.tree.map(lambda x: x.reshape(*logits.shape[:2], *x.shape[1:]), weighed)


def reported(teacher: pages.Summary, temperature: float) -> dict[str, jax.Array]:
    """What soft targets hold of the teacher beside weights."""
    return {
        "entropy": jnp.log(teacher.mass) - teacher.mass_times_score / teacher.mass,
        "label_log_prob": temperature * (teacher.label_score - teacher.max_score) - jnp.log(teacher.untempered_mass),
        "best_id": teacher.best_id,
    }


class DrawPlan(NamedTuple):
    """What each token is drawn with."""

    draw: pages.Draw
    end: Int[Array, "T"]  # of this shard's stretch, as draw.start: where the next shard's starts


def plan_draws(
    shard: vocab_parallel.Shard,
    summaries: tuple[pages.Summary, pages.Summary],
    maxima: Float[Array, "T _"],
    reach: Float[Array, "T"],
    words: Words,
    *,
    num_draws: int,
) -> DrawPlan:
    """Lays the masses that are drawn from end to end over all shards. `summaries`: of this shard, and of all."""
    local, teacher = summaries
    gaps = teacher.max_score[:, None] - maxima
    # What is drawn from: leaders out of reach, and all that do not lead.
    rest = jnp.where(gaps < reach[:, None], 0, pages.masses_of(maxima, teacher.max_score[:, None])[0])
    scale = jnp.exp(local.max_score - teacher.max_score)
    rests = shard.all_gather(scale * local.trailing_mass + jnp.sum(rest, axis=1))
    drawn_mass = jnp.sum(rests, axis=0)
    spacing = pages.spacing_bits(num_draws)
    units_of_mass = jnp.where(drawn_mass > LEAST_MASS, (num_draws << spacing) / jnp.maximum(drawn_mass, LEAST_MASS), 0)
    shards = jax.lax.broadcasted_iota(jnp.int32, rests.shape, 0)
    uniform, dither = words[0] >> (32 - spacing), words[1] >> 16

    def units_before(index: jax.Array | int) -> Int[Array, "T"]:
        before = jnp.sum(jnp.where(shards < index, rests, 0), axis=0)
        return jnp.round(before * units_of_mass).astype(jnp.int32) + uniform.astype(jnp.int32)

    draw = pages.Draw(
        max_score=teacher.max_score,
        reach=reach,
        weight_of_mass=1 / teacher.mass,
        units_of_mass=units_of_mass,
        weight=drawn_mass / num_draws / teacher.mass,
        dither=dither.astype(jnp.float32) * 2.0**-16,
        start=units_before(shard.index()),
    )
    return jax.lax.optimization_barrier(DrawPlan(draw, units_before(shard.index() + 1)))


def passes(num_ids: int, name: str, **options):
    """A pass over the logits: on a TPU the kernel."""
    anywhere = functools.partial(getattr(pages, name), **options)
    if not page_kernels.fits(num_ids):
        return anywhere
    kernel = functools.partial(getattr(page_kernels, name), **options)
    return functools.partial(jax.lax.platform_dependent, tpu=kernel, default=anywhere)


def over_shards(local: pages.Summary, temperature: float, shard: vocab_parallel.Shard) -> pages.Summary:
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
    """The fewest nats, in steps, that have `num_exact` of all shards' gaps below them; 32 if there are not as many."""
    if not num_exact:
        return jnp.zeros(gaps.shape[0], jnp.float32)
    return (most_steps(gaps, num_exact - 1, NUM_DIGITS, shard) + 1).astype(jnp.float32) / STEPS_PER_NAT


def most_steps(gaps: Float[Array, "T _"], most: int, num_digits: int, shard: vocab_parallel.Shard) -> Int[Array, "T"]:
    """The most steps, of so many digits up to 32 nats, that have at most `most` of all shards' gaps below them.

    Digit by digit: rounds of 15 comparisons, instead of a sort.
    """
    steps, steps_per_nat = jnp.zeros(gaps.shape[0], jnp.int32), DIGITS**num_digits // FARTHEST_NATS
    for digit in reversed(range(num_digits)):
        size = DIGITS**digit
        counts = [
            jnp.sum(gaps < ((steps + i * size).astype(jnp.float32) / steps_per_nat)[:, None], axis=1, dtype=jnp.int32)
            for i in range(1, DIGITS)
        ]
        steps += size * jnp.sum(shard.sum(jnp.stack(counts)) <= most, axis=0, dtype=jnp.int32)
    return steps
