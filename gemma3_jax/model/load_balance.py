"""The queries of a causal row dealt to sequence shards so that all score as many keys; for use inside jax.shard_map.

A row that `seq` splits in order into n shards is 2n chunks, two a shard. The later a query, the more keys it reads on a
global layer: the last shard 2 - 1/n times the mean. Here every shard swaps its second chunk with its mirror, the shard
as far from the other end, and so holds chunks c and 2n - 1 - c, which read as many keys as any such pair. Half of the
queries travel, one hop of collective-permute; keys, which global layers gather anyway, and local layers, whose windows
cost the same everywhere, remain in the row's order.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from gemma3_jax import sharding

AXIS = "seq"
SCOPE = "load_balanced"  # the name, in a compiled program, of what runs on balanced queries: planning/kernels.py


def applies(num_tokens: int, num_shards: int) -> bool:
    """Whether a shard's `num_tokens` can be balanced: both of its chunks must be whole blocks of a kernel."""
    return num_shards > 1 and num_tokens % (2 * sharding.LANES) == 0


def balanced(x: Shaped[Array, "B T ..."], num_shards: int) -> Shaped[Array, "B T ..."]:
    """This shard's two chunks, the earlier one first, from its part of a row in order."""
    first, second = jnp.split(x, 2, axis=1)
    return _ordered(first, _of_mirror(second, num_shards), num_shards)


def in_order(x: Shaped[Array, "B T ..."], num_shards: int) -> Shaped[Array, "B T ..."]:
    """The inverse of `balanced`."""
    local, mirrored = jnp.split(_ordered(*jnp.split(x, 2, axis=1), num_shards), 2, axis=1)
    return jnp.concatenate([local, _of_mirror(mirrored, num_shards)], axis=1)


def _of_mirror(x: jax.Array, num_shards: int) -> jax.Array:
    return jax.lax.ppermute(x, AXIS, [(shard, num_shards - 1 - shard) for shard in range(num_shards)])


def _ordered(local: jax.Array, mirrored: jax.Array, num_shards: int) -> jax.Array:
    """Both chunks side by side; the second first in the later half of the shards, whose local chunk is later."""
    is_later = 2 * jax.lax.axis_index(AXIS) > num_shards - 1
    return jnp.where(is_later, jnp.concatenate([mirrored, local], axis=1), jnp.concatenate([local, mirrored], axis=1))
