"""Tokens that a device needs of a row that `seq` splits, fetched from its neighbors; for use inside jax.shard_map.

Gradients travel the other way: each goes back to the device that sent the token, and is summed there.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from gemma3_jax import sharding

AXIS = "seq"


def first_token(num_tokens: int, num_shards: int) -> jax.Array | int:
    """The index in the row where this device's part of `num_tokens` begins."""
    return 0 if num_shards == 1 else jax.lax.axis_index(AXIS) * num_tokens


def gather_row(x: Shaped[Array, "B T ..."], num_shards: int) -> Shaped[Array, "B S ..."]:
    """The parts of all devices, in order; their gradients are summed in float32."""
    return x if num_shards == 1 else _gather(x)


@jax.custom_vjp
def _gather(x: jax.Array) -> jax.Array:
    return jax.lax.all_gather(x, AXIS, axis=1, tiled=True)


def _gather_forward(x: jax.Array) -> tuple[jax.Array, None]:
    return _gather(x), None


def _gather_backward(_, grad: jax.Array) -> tuple[jax.Array]:
    return (sharding.reduce_scatter(grad.astype(jnp.float32), AXIS, 1).astype(grad.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


def with_halo(x: Shaped[Array, "B T ..."], before: int, after: int, num_shards: int) -> Shaped[Array, "B S ..."]:
    """This device's part with the `before` tokens that precede it in the row, and the `after` tokens that follow.

    Only these tokens travel, from as many neighbors as needed. Beyond the row's ends there are zeros.
    """
    num_local = x.shape[1]
    left = [_shift(x[:, -size:], hop, num_shards) for hop, size in _hops(before, num_local, num_shards)]
    right = [_shift(x[:, :size], -hop, num_shards) for hop, size in _hops(after, num_local, num_shards)]
    halo = jnp.concatenate([*reversed(left), x, *right], axis=1)
    missing = before - sum(part.shape[1] for part in left), after - sum(part.shape[1] for part in right)
    return jnp.pad(halo, ((0, 0), missing) + ((0, 0),) * (x.ndim - 2))


def _hops(num_tokens: int, num_local: int, num_shards: int) -> list[tuple[int, int]]:
    """(distance in devices, number of tokens) for each device on one side that holds some of the nearest tokens."""
    sizes = [(hop, min(num_local, num_tokens - (hop - 1) * num_local)) for hop in range(1, num_shards)]
    return [(hop, size) for hop, size in sizes if size > 0]


def _shift(x: jax.Array, by: int, num_shards: int) -> jax.Array:
    """The `x` of the device `by` steps before this one; zeros where there is none."""
    pairs = [(source, source + by) for source in range(num_shards) if 0 <= source + by < num_shards]
    return jax.lax.ppermute(x, AXIS, pairs)
