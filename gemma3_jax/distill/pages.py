"""Weights of all ids of a vocabulary, drawn without looking for an id: no sort, search, gather or scatter.

A page is 2,048 neighboring ids, in 16 lines of 128; a column is the 16 ids of a page that are 128 apart, and its
leader the largest of them, the first of equals. Two passes read the scores. The first (`summarize`) leaves sums and
the maxima of the columns, from which follows how far below the best id a leader still gets its probability as weight.
The second (`weigh`) draws from all other ids: their masses, as whole numbers of units, lie end to end, page by page
and in a page column by column, and an id is drawn once for each multiple of the spacing on its stretch. Sums of whole
numbers are exact in any order, so that within a shard no draw is lost or doubled where two stretches meet. It scores a
student against the weights while they are there.

The functions of lines work on one page or many: here on all pages at once, on a TPU on one in a kernel
(page_kernels.py).
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from gemma3_jax.losses import id_weights

NUM_LINES, NUM_COLUMNS = 16, 128  # of a page. A TPU's vectors hold 128 ids of 8 tokens.
PAGES_IN_GROUP = 4
LOWEST = float(jnp.finfo(jnp.float32).min)
IMPOSSIBLE = -120.0  # nats
GOLDEN_RATIO = 0.6180339887  # its multiples, modulo 1, are spread evenly


class Summary(NamedTuple):
    """Of each token, over the ids of one shard. Masses are relative to `max_score`."""

    max_score: Float[Array, "T"]
    mass: Float[Array, "T"]
    trailing_mass: Float[Array, "T"]  # of the ids that lead no column
    mass_times_score: Float[Array, "T"]  # sum of mass times (score - max_score)
    untempered_mass: Float[Array, "T"]  # at temperature 1
    label_score: Float[Array, "T"]  # 0 where another shard has the label
    best_id: Int[Array, "T"]  # index in the shard


class Maxima(NamedTuple):
    """Of each token."""

    columns: Float[Array, "T _"]
    coarse: Float[Array, "T _"]  # of the same column of all pages of a group


class Draw(NamedTuple):
    """What each token is drawn with: the same on every shard, but for `start`."""

    max_score: Float[Array, "*B"]  # over all shards
    reach: Float[Array, "*B"]  # nats: leaders less than this below max_score get their probability
    weight_of_mass: Float[Array, "*B"]  # 1 over the mass of all ids
    units_of_mass: Float[Array, "*B"]  # num_draws * 2**spacing_bits over the mass that is drawn from
    weight: Float[Array, "*B"]  # of one draw
    dither: Float[Array, "*B"]  # uniform in [0, 1): units, which are whole, are right in the mean
    start: Int[Array, "*B"]  # of this shard's stretch in units, plus a uniform part of the spacing


def shape(num_ids: int) -> tuple[int, int]:
    """Lines and columns of the pages of a shard. One that is not whole pages is a single line: every id leads."""
    return (NUM_LINES, NUM_COLUMNS) if num_ids % (NUM_LINES * NUM_COLUMNS) == 0 else (1, num_ids)


def num_together(num_ids: int) -> int:
    """Pages in a group."""
    return PAGES_IN_GROUP if num_ids % (PAGES_IN_GROUP * NUM_LINES * NUM_COLUMNS) == 0 else 1


def spacing_bits(num_draws: int) -> int:
    """The spacing is 2**spacing_bits units: that of all draws is at most 2**29, which leaves int32 room for two."""
    return 29 - (num_draws - 1).bit_length()


def masses_of(scores: jax.Array, max_score: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Masses, and scores minus `max_score`, from -120 nats on: there the mass is 0 in float32."""
    below = jnp.maximum(scores - max_score, IMPOSSIBLE)
    return jnp.exp(below), below


def maxima_of(lines: Sequence[jax.Array]) -> jax.Array:
    """The maximum of each column."""
    while len(lines) > 1:  # in pairs: no long chain of steps that wait for each other
        lines = [functools.reduce(jnp.maximum, lines[i : i + 2]) for i in range(0, len(lines), 2)]
    return lines[0]


def sums_of(lines: Sequence[jax.Array], max_score: jax.Array, temperature: float) -> list[jax.Array]:
    """The masses of Summary of each column, in its order."""
    # Of two ids of a column the smaller one does not lead: 15 of 16 are that once, and the leader never.
    largest, trailing = lines[0], []
    for line in lines[1:]:
        trailing.append(jnp.minimum(largest, line))
        largest = jnp.maximum(largest, line)
    mass, below = masses_of(largest, max_score)
    trailing_mass, times_score = jnp.zeros_like(mass), mass * below
    untempered = _untempered(largest, max_score, mass, temperature)
    for scores in trailing:
        mass_of_one, below = masses_of(scores, max_score)
        trailing_mass += mass_of_one
        times_score += mass_of_one * below
        untempered += _untempered(scores, max_score, mass_of_one, temperature)
    mass += trailing_mass
    return [mass, trailing_mass, times_score, mass if temperature == 1 else untempered]


def _untempered(scores: jax.Array, max_score: jax.Array, mass: jax.Array, temperature: float) -> jax.Array:
    return mass if temperature == 1 else jnp.exp(jnp.maximum(temperature * (scores - max_score), IMPOSSIBLE))


class Stretches(NamedTuple):
    """The lines of pages as they are drawn from."""

    masses: list[jax.Array]
    maxima: jax.Array  # of each column
    exact_line: jax.Array  # of each column: the line whose weight is the probability; -1 if there is none
    units: list[jax.Array]  # int32, 0 on `exact_line`


def stretches_of(lines: Sequence[jax.Array], draw: Draw) -> Stretches:
    """`draw.dither` is that of each column."""
    leader, maxima = jnp.zeros(lines[0].shape, jnp.int32), lines[0]
    for index, line in enumerate(lines[1:], start=1):
        leader = jnp.where(line > maxima, index, leader)
        maxima = jnp.maximum(line, maxima)
    exact_line = jnp.where(draw.max_score - maxima < draw.reach, leader, -1)
    masses = [masses_of(line, draw.max_score)[0] for line in lines]
    units = [
        jnp.where(exact_line == index, 0, (mass * draw.units_of_mass + draw.dither).astype(jnp.int32))
        for index, mass in enumerate(masses)
    ]
    return Stretches(masses, maxima, exact_line, units)


def draws_before(stretches: Stretches, starts: jax.Array, num_draws: int) -> list[jax.Array]:
    """How many draws come before each line of a column, and before its end. `starts` are those of the columns."""
    bits = spacing_bits(num_draws)
    ends = itertools.accumulate(stretches.units, initial=starts)
    return [end >> bits for end in ends]


def weights_of(stretches: Stretches, starts: jax.Array, draw: Draw, num_draws: int) -> list[jax.Array]:
    """The weights of each line, in float32. `starts` are those of the columns, in units."""
    weights, passed = [], itertools.pairwise(draws_before(stretches, starts, num_draws))
    for index, (mass, (before, after)) in enumerate(zip(stretches.masses, passed, strict=True)):
        drawn = (after - before).astype(jnp.float32) * draw.weight
        weights.append(jnp.where(stretches.exact_line == index, mass * draw.weight_of_mass, drawn))
    return weights


def column_dither(dither: jax.Array, columns: jax.Array) -> jax.Array:
    """The dither of each column: spread evenly, so that the sum of all units is nearly what it is in the mean."""
    moved = dither + (GOLDEN_RATIO * columns.astype(jnp.float32)) % 1
    return moved - jnp.floor(moved)


def summarize(logits: Float[Array, "T V"], labels: Int[Array, "T"], *, temperature: float) -> tuple[Summary, Maxima]:
    """The summary and the maxima of each token. `labels` are indices in the shard, or outside of it."""
    lines = _lines(logits, temperature)
    maxima = maxima_of(lines)
    max_score = jnp.maximum(jnp.max(maxima, axis=(1, 2)), LOWEST)
    sums = [jnp.sum(jnp.sum(x, axis=1), axis=1) for x in sums_of(lines, max_score[:, None, None], temperature)]
    scores = _scores(logits, temperature)
    ids = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    label_score = jnp.sum(jnp.where(ids == labels[:, None], scores, 0), axis=1)
    best_id = jnp.min(jnp.where(scores == max_score[:, None], ids, scores.shape[1]), axis=1)
    coarse = jnp.max(maxima.reshape(maxima.shape[0], -1, num_together(logits.shape[1]), maxima.shape[2]), axis=2)
    maxima, coarse = (x.reshape(logits.shape[0], -1) for x in (maxima, coarse))
    return Summary(max_score, *sums, label_score, best_id), Maxima(maxima, coarse)


def weigh(
    teacher_logits: Float[Array, "T V"],
    logits: Float[Array, "T V"],
    draw: Draw,
    *per_token: Float[Array, "T"],
    gradient: Callable | None,
    temperature: float,
    num_draws: int,
    dtype: DTypeLike = jnp.float32,
) -> id_weights.Weighed:
    """Scores a student's logits against weights that are drawn from a teacher's.

    The gradient is gradient(logits, weights, ids, *per_token), elementwise, in `dtype`; `ids` are indices in the shard.
    """
    lines = _lines(teacher_logits, temperature)
    tokens = Draw(*(x[:, None, None] for x in draw))
    columns = jax.lax.broadcasted_iota(jnp.int32, (1, 1, lines[0].shape[2]), 2)
    stretches = stretches_of(lines, tokens._replace(dither=column_dither(tokens.dither, columns)))
    units = functools.reduce(jnp.add, stretches.units)
    ends = jnp.cumsum(units.reshape(units.shape[0], -1), axis=1).reshape(units.shape)
    weights = weights_of(stretches, ends - units + tokens.start, tokens, num_draws)
    captured = functools.reduce(
        jnp.add, (jnp.where(w > 0, mass, 0) for w, mass in zip(weights, stretches.masses, strict=True))
    )
    captured = jnp.sum(jnp.sum(captured, axis=1), axis=1) * draw.weight_of_mass
    # Behind a barrier, as XLA would otherwise draw twice: for the sum, and within the gradient.
    weights = jax.lax.optimization_barrier(jnp.stack(weights, axis=2).reshape(logits.shape))
    dot = jnp.sum(jnp.where(weights > 0, weights * logits, 0), axis=1)
    if gradient is None:
        return id_weights.Weighed(dot, None, captured)
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    gradients = gradient(logits, weights, ids, *(x[:, None] for x in per_token)).astype(dtype)
    return id_weights.Weighed(dot, gradients, captured)


def _lines(logits: Float[Array, "T V"], temperature: float) -> list[jax.Array]:
    """Scores [tokens, pages, columns] of each line."""
    num_lines, num_columns = shape(logits.shape[1])
    pages = _scores(logits, temperature).reshape(logits.shape[0], -1, num_lines, num_columns)
    return [pages[:, :, line] for line in range(num_lines)]


def _scores(logits: Float[Array, "T V"], temperature: float) -> Float[Array, "T V"]:
    scores = logits.astype(jnp.float32)
    return scores if temperature == 1 else scores * (1 / temperature)
