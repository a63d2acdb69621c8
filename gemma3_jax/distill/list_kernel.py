"""The ids that pages.weigh gives a weight, as lists: a TPU kernel without a sort, search, gather or scatter.

Each id has a slot, in the order of pages, columns and lines. How many slots are taken up to an id only rises in that
order, so that a slot's page is the one whose first slots are not above it while the next one's are, its column is
the number of columns of that page which end at or before it, and its line is found like that too. The numbers of one
page, or of one column, are picked for all slots of a token by a product with ones and zeros. They are at most 128 on
either side of a group of 128 slots, which bfloat16 holds exactly.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from gemma3_jax.distill import page_kernels, pages

TOKENS, ROWS = 16, 8  # of a block, and at a time
SLOTS = pages.NUM_COLUMNS  # of a group
NUM_PARTS = 3  # bfloat16 numbers that add up to a float32


class Lists(NamedTuple):
    """Of each token, over the ids of one shard; -1 in a slot that has an id of another shard, or none."""

    exact_ids: Int[Array, "T _"]  # indices in the shard
    below: Float[Array, "T _"]  # nats: their scores minus `max_score`, from pages.IMPOSSIBLE on
    drawn_ids: Int[Array, "T _"]  # once for each draw
    captured_mass: Float[Array, "T"]  # the probability of all ids in the lists


def listed(
    logits: Float[Array, "T V"],
    draw: pages.Draw,
    first_exact: Int[Array, "T"],
    *,
    temperature: float,
    num_exact: int,
    num_draws: int,
    interpret: bool = False,
) -> Lists:
    """Lists the ids of the shard, those with their probability from slot `first_exact` on."""
    num_tokens, num_ids = logits.shape
    grid, block = page_kernels.grid_of(logits, TOKENS)
    num_pages = block.block_shape[1] // page_kernels.PAGE
    widths = [-(-count // SLOTS) * SLOTS for count in (num_exact, num_exact, num_draws)]
    dtypes = jnp.int32, jnp.float32, jnp.int32
    outputs = [(width, dtype) for width, dtype in zip(widths, dtypes, strict=True) if width]
    outputs.append((pages.NUM_COLUMNS, jnp.float32))
    inputs = [*draw, first_exact]
    call = pl.pallas_call(
        functools.partial(
            _list, temperature=temperature, num_exact=num_exact, num_draws=num_draws, unroll=not interpret
        ),
        grid=grid,
        in_specs=[*(page_kernels.by_token(TOKENS, 1) for _ in inputs), block],
        out_specs=[page_kernels.by_token(TOKENS, width) for width, _ in outputs],
        out_shape=[jax.ShapeDtypeStruct((num_tokens, width), dtype) for width, dtype in outputs],
        scratch_shapes=jax.tree.leaves(_scratch(num_pages)),
        compiler_params=page_kernels.COMPILER_PARAMS,
        interpret=interpret,
        name="teacher_list",
    )
    *exact, drawn_ids, captured = call(*(x[:, None] for x in inputs), logits)
    exact_ids, below = exact or (jnp.zeros((num_tokens, 0), jnp.int32), jnp.zeros((num_tokens, 0), jnp.float32))
    return Lists(exact_ids[:, :num_exact], below[:, :num_exact], drawn_ids[:, :num_draws], captured[:, 0])


class _Scratch(NamedTuple):
    """In vector memory. What is of each page or line has the tokens of a block one below the other for each."""

    start: jax.Array  # units before the page at hand
    slot: jax.Array  # slots of exact ids before it
    captured: jax.Array
    draws: jax.Array  # up to each id
    page_draws: tuple[jax.Array, jax.Array]  # up to the start and up to the end of each page
    exact: jax.Array  # exact ids up to each column
    page_exact: tuple[jax.Array, jax.Array]
    exact_line: jax.Array
    below: jax.Array


def _scratch(num_pages: int) -> _Scratch:
    """The shapes for blocks of so many pages."""
    columns = (TOKENS, pages.NUM_COLUMNS)
    of_pages = pltpu.VMEM((num_pages * TOKENS, pages.NUM_COLUMNS), jnp.float32)
    return _Scratch(
        start=pltpu.VMEM(columns, jnp.int32),
        slot=pltpu.VMEM(columns, jnp.int32),
        captured=pltpu.VMEM(columns, jnp.float32),
        draws=pltpu.VMEM((pages.NUM_LINES * num_pages * TOKENS, pages.NUM_COLUMNS), jnp.float32),
        page_draws=(of_pages, of_pages),
        exact=of_pages,
        page_exact=(of_pages, of_pages),
        exact_line=of_pages,
        below=of_pages,
    )


def _list(*refs, temperature: float, num_exact: int, num_draws: int, unroll: bool) -> None:
    num_inputs, layout = len(pages.Draw._fields) + 2, jax.tree.structure(_scratch(1))
    *draw_refs, first_exact_ref, logits_ref = refs[:num_inputs]
    draw_refs = pages.Draw(*draw_refs)
    *exact_refs, drawn_ref, totals_ref = refs[num_inputs : -layout.num_leaves]
    scratch = jax.tree.unflatten(layout, refs[-layout.num_leaves :])
    block = pl.program_id(1)

    @pl.when(block == 0)
    def _():
        scratch.start[...] = jnp.broadcast_to(draw_refs.start[...], scratch.start.shape)
        scratch.slot[...] = jnp.broadcast_to(first_exact_ref[...], scratch.slot.shape)
        scratch.captured[...] = jnp.zeros(scratch.captured.shape, jnp.float32)
        for ref in (*exact_refs, drawn_ref):
            ref[...] = jnp.full(ref.shape, -1, ref.dtype)

    def number_rows(index, _):
        rows = pl.ds(pl.multiple_of(index * ROWS, ROWS), ROWS)
        _number_rows(rows, logits_ref, draw_refs, scratch, temperature, num_exact, num_draws)

    jax.lax.fori_loop(0, TOKENS // ROWS, number_rows, None)

    first_page = block * (logits_ref.shape[1] // page_kernels.PAGE)

    def over_tokens(f, *args):
        jax.lax.fori_loop(0, TOKENS, lambda token, _: f(token, first_page, *args, scratch), None, unroll=unroll)

    over_tokens(_list_drawn, drawn_ref)
    if exact_refs:
        over_tokens(_list_exact, exact_refs)

    @pl.when(block == pl.num_programs(1) - 1)
    def _():
        total = jnp.sum(scratch.captured[...], axis=1, keepdims=True) * draw_refs.weight_of_mass[...]
        totals_ref[...] = jnp.broadcast_to(total, totals_ref.shape)


def _number_rows(rows, logits_ref, draw_refs, scratch: _Scratch, temperature, num_exact, num_draws) -> None:
    """Writes how many slots are taken up to each id, for some rows of tokens."""
    shape = (rows.size, pages.NUM_COLUMNS)
    column = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    draw = pages.Draw(*(jnp.broadcast_to(ref[rows, :], shape) for ref in draw_refs))
    draw = draw._replace(dither=pages.column_dither(draw.dither, column))
    bits = pages.spacing_bits(num_draws)

    def write(ref, index, values):
        at = pl.multiple_of(index * TOKENS + rows.start, ROWS)
        ref[pl.ds(at, rows.size), :] = values.astype(ref.dtype)

    def number(page, carry):
        start, slot, captured = carry
        stretches = pages.stretches_of(page_kernels.lines_of(logits_ref, rows, page, temperature), draw)
        units = functools.reduce(jnp.add, stretches.units)
        ends = page_kernels.cumulative(units, column)
        passed = pages.draws_before(stretches, start + ends - units, num_draws)
        for line, (mass, before, after) in enumerate(zip(stretches.masses, passed, passed[1:], strict=False)):
            write(scratch.draws, page * pages.NUM_LINES + line, after)
            captured += jnp.where((after > before) | (stretches.exact_line == line), mass, 0.0)
        next_start = start + jnp.broadcast_to(ends[:, -1:], shape)
        for ref, value in zip(scratch.page_draws, (start, next_start), strict=True):
            write(ref, page, value >> bits)
        if not num_exact:
            return next_start, slot, captured
        exact = slot + page_kernels.cumulative((stretches.exact_line >= 0).astype(jnp.int32), column)
        next_slot = jnp.broadcast_to(exact[:, -1:], shape)
        for ref, value in zip(scratch.page_exact, (slot, next_slot), strict=True):
            write(ref, page, value)
        write(scratch.exact, page, exact)
        write(scratch.exact_line, page, stretches.exact_line)
        write(scratch.below, page, jnp.maximum(stretches.maxima - draw.max_score, pages.IMPOSSIBLE))
        return next_start, next_slot, captured

    carry = scratch.start[rows, :], scratch.slot[rows, :], scratch.captured[rows, :]
    carry = jax.lax.fori_loop(0, logits_ref.shape[1] // page_kernels.PAGE, number, carry)
    scratch.start[rows, :], scratch.slot[rows, :], scratch.captured[rows, :] = carry


class _SlotPosition(NamedTuple):
    """Of each of a group of slots of one token."""

    in_page: jax.Array  # [pages, SLOTS]: 1 for the page of the slot, else 0
    is_here: jax.Array  # [1, SLOTS]: whether one of these pages has it
    page: jax.Array
    column: jax.Array
    of_column: jax.Array  # [NUM_COLUMNS, SLOTS] in bfloat16: 1 for the column of the slot, else 0


def _rows_of(ref, token) -> jax.Array:
    """What the pages, or lines, have of one token."""
    return ref[pl.ds(token, ref.shape[0] // TOKENS, stride=TOKENS), :]


def _product(left: jax.Array, right: jax.Array, contracted: tuple[int, int] = (1, 0)) -> jax.Array:
    left_dim, right_dim = contracted
    return jax.lax.dot_general(
        left.astype(jnp.bfloat16),
        right.astype(jnp.bfloat16),
        (((left_dim,), (right_dim,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


def _count(condition: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(condition, 1.0, 0.0), axis=0, keepdims=True)


def _relative(slots: jax.Array, group: int) -> jax.Array:
    """Numbers of slots relative to a group of them: none but those within it compare differently."""
    return slots if group == 0 else slots - group * SLOTS


def _locate(token, group: int, num_groups: int, column_ends: jax.Array, bounds) -> _SlotPosition:
    starts, ends = (_relative(_rows_of(ref, token), group) for ref in bounds)
    slot = jax.lax.broadcasted_iota(jnp.int32, starts.shape, 1).astype(jnp.float32)
    in_page = jnp.where((starts <= slot) & (slot < ends), 1.0, 0.0)
    page_index = jax.lax.broadcasted_iota(jnp.int32, in_page.shape, 0).astype(jnp.float32)
    page = jnp.sum(in_page * page_index, axis=0, keepdims=True)
    ends_in_page = _product(_bounded(_relative(column_ends, group), num_groups), in_page, (0, 0))
    slot, column_index = (
        jax.lax.broadcasted_iota(jnp.int32, ends_in_page.shape, dim).astype(jnp.float32) for dim in (1, 0)
    )
    column = _count(ends_in_page <= slot)
    of_column = jnp.where(column_index == column, 1.0, 0.0).astype(jnp.bfloat16)
    return _SlotPosition(in_page, jnp.sum(in_page, axis=0, keepdims=True) > 0, page, column, of_column)


def _bounded(relative: jax.Array, num_groups: int) -> jax.Array:
    """Beyond a group's slots on either side all numbers compare alike. Those of one or two groups bfloat16 holds."""
    return relative if num_groups <= 2 else jnp.clip(relative, 0.0, float(SLOTS))


def _write(ref, token, group: int, position: _SlotPosition, values: jax.Array) -> None:
    at = pl.ds(token, 1), pl.ds(group * SLOTS, SLOTS)
    ref[at] = jnp.where(position.is_here, values.astype(ref.dtype), ref[at])


def _list_drawn(token, first_page, ids_ref, scratch: _Scratch) -> None:
    draws = _rows_of(scratch.draws, token)
    num_pages = draws.shape[0] // pages.NUM_LINES
    last_lines = pl.ds((pages.NUM_LINES - 1) * TOKENS + token, num_pages, stride=pages.NUM_LINES * TOKENS)
    num_groups = ids_ref.shape[1] // SLOTS
    for group in range(num_groups):
        position = _locate(token, group, num_groups, scratch.draws[last_lines, :], scratch.page_draws)
        up_to_line = _product(_bounded(_relative(draws, group), num_groups), position.of_column)
        slot = jax.lax.broadcasted_iota(jnp.int32, up_to_line.shape, 1).astype(jnp.float32)
        line = _count(up_to_line <= slot).astype(jnp.int32)  # counted over all pages: those before have all lines
        ids = (first_page * pages.NUM_LINES + line) * pages.NUM_COLUMNS + position.column.astype(jnp.int32)
        _write(ids_ref, token, group, position, ids)


def _list_exact(token, first_page, refs, scratch: _Scratch) -> None:
    ids_ref, below_ref = refs
    exact, line, below = (_rows_of(ref, token) for ref in (scratch.exact, scratch.exact_line, scratch.below))
    parts = [line]
    for _ in range(NUM_PARTS):
        parts.append(below.astype(jnp.bfloat16).astype(jnp.float32))
        below = below - parts[-1]
    parts = jnp.concatenate(parts, axis=0)
    num_groups = ids_ref.shape[1] // SLOTS
    for group in range(num_groups):
        position = _locate(token, group, num_groups, exact, scratch.page_exact)
        picked = _product(parts, position.of_column).reshape(len(refs) + 2, -1, SLOTS)
        line, *below = (jnp.sum(position.in_page * one, axis=0, keepdims=True) for one in picked)
        line += (first_page + position.page.astype(jnp.int32)).astype(jnp.float32) * pages.NUM_LINES
        ids = line.astype(jnp.int32) * pages.NUM_COLUMNS + position.column.astype(jnp.int32)
        _write(ids_ref, token, group, position, ids)
        _write(below_ref, token, group, position, functools.reduce(jnp.add, reversed(below)))
