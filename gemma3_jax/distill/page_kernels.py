"""The two passes of pages.py as TPU kernels: each reads logits once, and keeps all else in vector memory.

As XLA compiles pages.py for a TPU, most of its steps would be passes of their own over [tokens, vocabulary], some with
a change of layout. A kernel takes a block of tokens and ids, and walks it page by page, some rows at a time; what
follows from all ids before, a block of the vocabulary leaves to the next one. The second kernel takes the student's
logits too, and makes their gradient.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from gemma3_jax.distill import pages
from gemma3_jax.losses import id_weights

TOKENS = 32  # of a block
LARGEST_BLOCK = 1 << 14  # ids of a block: 2 MiB of float32, twice, as the next one is fetched meanwhile
PAGE = pages.NUM_LINES * pages.NUM_COLUMNS
_COLUMN_BITS = pages.NUM_COLUMNS.bit_length() - 1
NOWHERE = 1 << 20  # no line
_SUMMARY, _TOTALS = len(pages.Summary._fields), 2


def fits(num_ids: int) -> bool:
    """Whether a shard is whole pages, which the kernels need."""
    return num_ids % PAGE == 0


def summarize(
    logits: Float[Array, "T V"], labels: Int[Array, "T"], *, temperature: float, interpret: bool = False
) -> tuple[pages.Summary, pages.Maxima]:
    """pages.summarize, as a kernel."""
    num_tokens, num_ids = logits.shape
    grid, block = grid_of(logits, TOKENS)
    per_maximum = pages.NUM_LINES, pages.NUM_LINES * pages.num_together(num_ids)
    columns = pltpu.VMEM((TOKENS, pages.NUM_COLUMNS), jnp.float32)
    call = pl.pallas_call(
        functools.partial(_summarize, temperature=temperature),
        grid=grid,
        in_specs=[by_token(TOKENS, 1), block],
        out_specs=[
            by_token(TOKENS, pages.NUM_COLUMNS),
            *(pl.BlockSpec((TOKENS, block.block_shape[1] // size), _both) for size in per_maximum),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((num_tokens, size), jnp.float32)
            for size in (pages.NUM_COLUMNS, *(num_ids // size for size in per_maximum))
        ],
        scratch_shapes=[columns] * (_SUMMARY - 1) + [pltpu.VMEM((TOKENS, pages.NUM_COLUMNS), jnp.int32)],
        compiler_params=COMPILER_PARAMS,
        cost_estimate=_cost(logits, num_tokens * num_ids // pages.NUM_LINES * 4),
        interpret=interpret,
        name="teacher_summary",
    )
    stats, *maxima = call(labels[:, None], logits)
    *floats, best_id = (stats[:, i] for i in range(_SUMMARY))
    return pages.Summary(*floats, best_id.astype(jnp.int32)), pages.Maxima(*maxima)


def weigh(
    teacher_logits: Float[Array, "T V"],
    logits: Float[Array, "T V"],
    draw: pages.Draw,
    *per_token: Float[Array, "T"],
    gradient: Callable | None,
    temperature: float,
    num_draws: int,
    dtype: DTypeLike = jnp.float32,
    interpret: bool = False,
) -> id_weights.Weighed:
    """pages.weigh, as a kernel. The weights stay in vector memory."""
    num_tokens, num_ids = logits.shape
    grid, block = grid_of(logits, TOKENS)
    by_column = by_token(TOKENS, pages.NUM_COLUMNS)
    outputs = [(by_column, jax.ShapeDtypeStruct((num_tokens, pages.NUM_COLUMNS), jnp.float32))]
    if gradient is not None:
        outputs.append((block, jax.ShapeDtypeStruct((num_tokens, num_ids), dtype)))
    columns = (TOKENS, pages.NUM_COLUMNS)
    inputs = *draw, *per_token
    num_written_bytes = 0 if gradient is None else logits.size * jnp.dtype(dtype).itemsize
    call = pl.pallas_call(
        functools.partial(_weigh, gradient=gradient, temperature=temperature, num_draws=num_draws),
        grid=grid,
        in_specs=[*(by_token(TOKENS, 1) for _ in inputs), block, block],
        out_specs=[spec for spec, _ in outputs],
        out_shape=[shape for _, shape in outputs],
        scratch_shapes=[pltpu.VMEM(columns, jnp.int32), *[pltpu.VMEM(columns, jnp.float32)] * _TOTALS],
        compiler_params=COMPILER_PARAMS,
        cost_estimate=_cost(logits, logits.size * logits.dtype.itemsize + num_written_bytes),
        interpret=interpret,
        name="teacher_weights",
    )
    totals, *gradients = call(*(x[:, None] for x in inputs), teacher_logits, logits)
    return id_weights.Weighed(totals[:, 0], gradients[0] if gradients else None, totals[:, 1])


COMPILER_PARAMS = pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"))


def grid_of(logits: jax.Array, tokens: int) -> tuple[tuple[int, int], pl.BlockSpec]:
    num_tokens, num_ids = logits.shape
    size = math.gcd(num_ids, LARGEST_BLOCK)
    return (pl.cdiv(num_tokens, tokens), num_ids // size), pl.BlockSpec((tokens, size), _both)


def _both(token: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    return token, ids


def by_token(tokens: int, num_columns: int) -> pl.BlockSpec:
    return pl.BlockSpec((tokens, num_columns), lambda token, ids: (token, 0))


def _cost(logits: jax.Array, num_written_bytes: int) -> pl.CostEstimate:
    return pl.CostEstimate(
        flops=0,  # of products
        transcendentals=logits.size,
        bytes_accessed=logits.size * logits.dtype.itemsize + num_written_bytes,
    )


def lines_of(logits_ref, rows: pl.Slice, page: jax.Array | int, temperature: float) -> list[jax.Array]:
    """The scores of one page, a line each."""
    first = page * PAGE
    lines = [
        logits_ref[rows, pl.ds(_multiple(first + line * pages.NUM_COLUMNS), pages.NUM_COLUMNS)]
        for line in range(pages.NUM_LINES)
    ]
    return [line if temperature == 1 else line * (1 / temperature) for line in lines]


def _multiple(start):
    return start if isinstance(start, int) else pl.multiple_of(start, pages.NUM_COLUMNS)


def _columns_of(page: int) -> slice:
    return slice(page * pages.NUM_COLUMNS, (page + 1) * pages.NUM_COLUMNS)


def _over_rows(num_rows: int, body) -> None:
    """body(rows) for each `num_rows` of a block's tokens."""

    def step(index, _):
        body(pl.ds(pl.multiple_of(index * num_rows, num_rows), num_rows))

    jax.lax.fori_loop(0, TOKENS // num_rows, step, None)


def _summarize(labels_ref, logits_ref, stats_ref, maxima_ref, coarse_ref, top_ref, *refs, temperature: float) -> None:
    *sum_refs, label_ref, best_ref = refs
    block, num_pages = pl.program_id(1), logits_ref.shape[1] // PAGE

    @pl.when(block == 0)
    def _():
        top_ref[...] = jnp.full(top_ref.shape, pages.LOWEST)
        best_ref[...] = jnp.zeros(best_ref.shape, jnp.int32)
        for ref in (*sum_refs, label_ref):
            ref[...] = jnp.zeros(ref.shape, jnp.float32)

    def of_rows(rows):
        before = top_ref[rows, :]
        columns, together = before, coarse_ref.shape[1] // pages.NUM_COLUMNS
        for group in range(together):
            parts = []
            for page in range(group * num_pages // together, (group + 1) * num_pages // together):
                parts.append(pages.maxima_of(lines_of(logits_ref, rows, page, temperature)))
                maxima_ref[rows, _columns_of(page)] = parts[-1]
            parts = pages.maxima_of(parts)
            coarse_ref[rows, _columns_of(group)] = parts
            columns = jnp.maximum(columns, parts)
        top = jnp.broadcast_to(jnp.max(columns, axis=1, keepdims=True), columns.shape)
        column = jax.lax.broadcasted_iota(jnp.int32, columns.shape, 1)
        label = labels_ref[rows, :]
        # Lines are counted over all pages of the shard.
        label_line = jnp.where(column == label & (pages.NUM_COLUMNS - 1), label >> _COLUMN_BITS, -1)

        def add(page, carry):
            sums, label_score, best_line = carry
            lines = lines_of(logits_ref, rows, page, temperature)
            sums = [x + y for x, y in zip(sums, pages.sums_of(lines, top, temperature), strict=True)]
            first = (block * num_pages + page) * pages.NUM_LINES
            label_in_page, best_in_page = label_line - first, jnp.full(columns.shape, pages.NUM_LINES)
            for index, line in enumerate(lines):
                label_score = jnp.where(label_in_page == index, line, label_score)
            for index, line in reversed([*enumerate(lines)]):
                best_in_page = jnp.where(line == top, index, best_in_page)
            found = jnp.where(best_in_page < pages.NUM_LINES, first + best_in_page, NOWHERE)
            return sums, label_score, jnp.minimum(best_line, found)

        zeros = jnp.zeros(columns.shape, jnp.float32)
        carry = [zeros] * len(sum_refs), label_ref[rows, :], jnp.full(columns.shape, NOWHERE)
        sums, label_ref[rows, :], best_line = jax.lax.fori_loop(0, num_pages, add, carry)
        best_ref[rows, :] = jnp.where(top > before, best_line, best_ref[rows, :])
        top_ref[rows, :] = top
        _add_moved(sum_refs, rows, sums, before, top, temperature)

    _over_rows(8, of_rows)

    @pl.when(block == pl.num_programs(1) - 1)
    def _():
        column = jax.lax.broadcasted_iota(jnp.int32, stats_ref.shape, 1)
        best = jnp.min((best_ref[...] * pages.NUM_COLUMNS + column).astype(jnp.float32), axis=1, keepdims=True)
        sums = [jnp.sum(ref[...], axis=1, keepdims=True) for ref in (*sum_refs, label_ref)]
        stats = top_ref[:, :1], *sums, best
        stats_ref[...] = sum(jnp.where(column == index, x, 0.0) for index, x in enumerate(stats))


def _add_moved(sum_refs, rows: pl.Slice, sums: list[jax.Array], before: jax.Array, top: jax.Array, temperature: float):
    """Adds sums relative to `top` to those of earlier blocks, which are relative to `before`."""
    mass_ref, trailing_ref, times_score_ref, untempered_ref = sum_refs
    factor = jnp.exp(before - top)
    times_score_ref[rows, :] = (
        factor * (times_score_ref[rows, :] + jnp.maximum(before - top, -1e30) * mass_ref[rows, :]) + sums[2]
    )
    mass_ref[rows, :] = factor * mass_ref[rows, :] + sums[0]
    trailing_ref[rows, :] = factor * trailing_ref[rows, :] + sums[1]
    untempered_ref[rows, :] = jnp.exp(temperature * (before - top)) * untempered_ref[rows, :] + sums[3]


def _weigh(*refs, gradient: Callable | None, temperature: float, num_draws: int) -> None:
    num_gradients, num_draw_refs = 0 if gradient is None else 1, len(pages.Draw._fields)
    *refs, start_ref, dot_ref, captured_ref = refs
    inputs, (totals_ref, *gradient_refs) = refs[: -1 - num_gradients], refs[-1 - num_gradients :]
    *per_token_refs, teacher_ref, logits_ref = inputs[num_draw_refs:]
    draw_refs = pages.Draw(*inputs[:num_draw_refs])
    block, num_ids = pl.program_id(1), logits_ref.shape[1]
    num_rows = 8 * 4 // min([4, *(ref.dtype.itemsize for ref in gradient_refs)])  # of one tile of all arrays

    @pl.when(block == 0)
    def _():
        start_ref[...] = jnp.broadcast_to(draw_refs.start[...], start_ref.shape)
        for ref in (dot_ref, captured_ref):
            ref[...] = jnp.zeros(ref.shape, jnp.float32)

    def of_rows(rows):
        column = jax.lax.broadcasted_iota(jnp.int32, (num_rows, pages.NUM_COLUMNS), 1)
        draw = pages.Draw(*(jnp.broadcast_to(ref[rows, :], column.shape) for ref in draw_refs))
        draw = draw._replace(dither=pages.column_dither(draw.dither, column))
        per_token = [ref[rows, :] for ref in per_token_refs]

        def weigh(page, carry):
            start, dot, captured = carry
            stretches = pages.stretches_of(lines_of(teacher_ref, rows, page, temperature), draw)
            units = functools.reduce(jnp.add, stretches.units)
            ends = cumulative(units, column)
            weights = pages.weights_of(stretches, start + ends - units, draw, num_draws)
            student = lines_of(logits_ref, rows, page, 1.0)
            for index, (weight, mass, logits) in enumerate(zip(weights, stretches.masses, student, strict=True)):
                first = page * PAGE + index * pages.NUM_COLUMNS
                for ref in gradient_refs:
                    ids = column + (block * num_ids + first)
                    of_line = pl.ds(_multiple(first), pages.NUM_COLUMNS)
                    ref[rows, of_line] = gradient(logits, weight, ids, *per_token).astype(ref.dtype)
                dot += jnp.where(weight > 0, weight * logits, 0.0)
                captured += jnp.where(weight > 0, mass, 0.0)
            return start + jnp.broadcast_to(ends[:, -1:], ends.shape), dot, captured

        carry = start_ref[rows, :], dot_ref[rows, :], captured_ref[rows, :]
        carry = jax.lax.fori_loop(0, num_ids // PAGE, weigh, carry)
        start_ref[rows, :], dot_ref[rows, :], captured_ref[rows, :] = carry

    _over_rows(num_rows, of_rows)

    @pl.when(block == pl.num_programs(1) - 1)
    def _():
        column = jax.lax.broadcasted_iota(jnp.int32, totals_ref.shape, 1)
        dot = jnp.sum(dot_ref[...], axis=1, keepdims=True)
        captured = jnp.sum(captured_ref[...], axis=1, keepdims=True) * draw_refs.weight_of_mass[...]
        totals_ref[...] = jnp.where(column == 0, dot, captured)


def cumulative(units: jax.Array, column: jax.Array) -> jax.Array:
    """Sums of the columns up to each, by doubling."""
    step = 1
    while step < pages.NUM_COLUMNS:
        units = units + jnp.where(column >= step, pltpu.roll(units, step, 1), 0)
        step *= 2
    return units
