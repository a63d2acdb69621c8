"""A TPU kernel for weights on few ids: one pass over the logits that sums weight times logit and makes their gradient.

An id of a token is a row and a lane of an array [V / 128, 128]. The weights of all ids are a product over the samples:
of the weights where the row is theirs, [M, V / 128], and ones where the lane is, [M, 128]. Both factors are made from
the ids in vector memory, and the product never leaves it. Weights are split into two bfloat16 parts, so that 16 bits of
each count, and products are summed in float32: weights of a repeated id add up.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas
from jax.experimental.pallas import tpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from gemma3_jax import sharding

LANES = sharding.LANES
LANE_BITS = LANES.bit_length() - 1
TOKENS = 16  # of a grid step: the rows of a bfloat16 tile
ROWS = 128  # of V / 128 in a grid step: as many as the matrix unit multiplies at a time


def dot(logits: Float[Array, "B T V"], ids: Int[Array, "B T M"], weights: Float[Array, "B T M"]) -> Float[Array, "B T"]:
    """The sum of weight times logit; an id outside of 0 ... V - 1 has no weight."""
    return _run(logits, ids, weights, (), None, None)[0]


def dot_and_gradient(
    logits: Float[Array, "B T V"],
    ids: Int[Array, "B T M"],
    weights: Float[Array, "B T M"],
    gradient: Callable,
    *per_token: Float[Array, "B T"],
    dtype: DTypeLike,
) -> tuple[Float[Array, "B T"], Float[Array, "B T V"]]:
    """`dot`, and gradient(logits, weights, ids, *per_token) in `dtype`, with the weights of all ids.

    `gradient` works on a part of the tokens and ids, elementwise: `per_token` are those of each token.
    """
    return _run(logits, ids, weights, per_token, gradient, dtype)


def _run(logits, ids, weights, per_token, gradient, dtype) -> tuple:
    size, num_tokens = logits.shape[-1], ids.shape[0] * ids.shape[1]
    rows = min(ROWS, -(-size // LANES))

    def flat(x, fill=0):
        """[tokens, width] in whole tiles. Lanes without a sample have an id that is nowhere."""
        x = x.reshape(num_tokens, -1)
        return jnp.pad(x, ((0, -num_tokens % TOKENS), (0, -x.shape[1] % LANES)), constant_values=fill)

    padded_tokens = num_tokens + -num_tokens % TOKENS
    logits_spec = pallas.BlockSpec((TOKENS, rows * LANES), lambda token, row: (token, row))
    by_token = lambda width: pallas.BlockSpec((TOKENS, width), lambda token, row: (token, 0))  # noqa: E731
    inputs = [jnp.pad(logits.reshape(num_tokens, size), ((0, padded_tokens - num_tokens), (0, 0)))]
    inputs += [flat(jnp.where((ids >= 0) & (ids < size), ids, -1), -1), flat(weights)]
    specs = [logits_spec, *(by_token(x.shape[1]) for x in inputs[1:])]
    outputs, output_specs = [jax.ShapeDtypeStruct((padded_tokens, LANES), jnp.float32)], [by_token(LANES)]
    if gradient is not None:
        inputs.append(flat(jnp.stack(per_token, axis=-1)))
        specs.append(by_token(LANES))
        outputs.append(jax.ShapeDtypeStruct((padded_tokens, size), dtype))
        output_specs.append(logits_spec)
    dots, *gradients = pallas.pallas_call(
        functools.partial(_block, gradient=gradient, num_per_token=len(per_token)),
        grid=(padded_tokens // TOKENS, -(-size // (rows * LANES))),
        in_specs=specs,
        out_specs=output_specs,
        out_shape=outputs,
        scratch_shapes=[tpu.VMEM((TOKENS * rows, LANES), jnp.float32)],
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=sharding.platform() == "cpu",
        name="weights_of_few_ids",
    )(*inputs)
    dots = jnp.sum(dots, axis=-1)[:num_tokens].reshape(ids.shape[:2])
    return dots, *(x[:num_tokens].reshape(logits.shape) for x in gradients)


def _block(logits_ref, ids_ref, weights_ref, *refs, gradient: Callable | None, num_per_token: int) -> None:
    """TOKENS tokens and a block of ids: adds to the dot of each token by lane, and writes the gradient."""
    per_token_ref, dot_ref, *gradient_refs, weights_of_all = refs if gradient else (None, *refs)
    rows = weights_of_all.shape[0] // TOKENS
    first_row = pallas.program_id(1) * rows
    _write_weights(ids_ref, weights_ref, weights_of_all, first_row)

    @pallas.when(first_row == 0)
    def _():
        dot_ref[...] = jnp.zeros_like(dot_ref)

    per_token = [per_token_ref[:, i : i + 1] for i in range(num_per_token)]
    lane = jax.lax.broadcasted_iota(jnp.int32, (TOKENS, LANES), 1)

    def finish_row(row, dots):
        lanes = pallas.ds(pallas.multiple_of(row * LANES, LANES), LANES)
        part = pallas.ds(pallas.multiple_of(row * TOKENS, TOKENS), TOKENS)
        logits, weights = logits_ref[:, lanes], weights_of_all[part, :]
        for ref in gradient_refs:
            ids = lane + (first_row + row) * LANES
            ref[:, lanes] = gradient(logits, weights, ids, *per_token).astype(ref.dtype)
        # Beyond the last id the logits may be anything.
        return dots + jnp.where(weights == 0, 0.0, weights * logits)

    dot_ref[...] = _repeat(rows, finish_row, dot_ref[...])


def _repeat(times: int, f: Callable, carry):
    """f(i, carry) for i = 0 ...: unrolled for the compiler's scheduler, and a loop where the kernel is interpreted."""
    return jax.lax.fori_loop(0, times, f, carry, unroll=sharding.platform() != "cpu")


def _write_weights(ids_ref, weights_ref, out_ref, first_row: jax.Array) -> None:
    """Writes the weights of each token on LANES ids a row."""
    rows, num_samples = out_ref.shape[0] // TOKENS, ids_ref.shape[1]
    row_ids = first_row + jax.lax.broadcasted_iota(jnp.int32, (rows, num_samples), 0)
    lane_ids = jax.lax.broadcasted_iota(jnp.int32, (LANES, num_samples), 0)
    product = functools.partial(
        jax.lax.dot_general, dimension_numbers=(((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )

    def write_token(token, _):
        ids, weights = ids_ref[pallas.ds(token, 1), :], weights_ref[pallas.ds(token, 1), :]
        by_row = jnp.where(row_ids == ids >> LANE_BITS, weights, 0.0)
        high = by_row.astype(jnp.bfloat16)
        low = (by_row - high.astype(jnp.float32)).astype(jnp.bfloat16)
        by_lane = jnp.where(lane_ids == ids & (LANES - 1), 1.0, 0.0).astype(jnp.bfloat16)
        # Tokens become the rows of tiles, as in the logits: a token has every TOKENS-th row.
        out_ref[pallas.ds(token, rows, stride=TOKENS), :] = product(high, by_lane) + product(low, by_lane)

    _repeat(TOKENS, write_token, None)
