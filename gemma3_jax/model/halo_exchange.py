"""What a device needs of a row that `seq` splits, and others hold: for use inside jax.shard_map.

Gradients go back the way the numbers came: of what was sent, to the one that sent it, and summed there.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from gemma3_jax import sharding

AXIS = "seq"


def first_token(num_tokens: int, num_shards: int) -> jax.Array | int:
    """Where in its row this device's part of `num_tokens` begins."""
    return 0 if num_shards == 1 else jax.lax.axis_index(AXIS) * num_tokens


def whole_row(x: Shaped[Array, "B T ..."], num_shards: int) -> Shaped[Array, "B S ..."]:
    """The parts of all devices, in order; gradients of all are summed in float32."""
    return x if num_shards == 1 else _gathered(x)


@jax.custom_vjp
def _gathered(x: jax.Array) -> jax.Array:
    return jax.lax.all_gather(x, AXIS, axis=1, tiled=True)


def _gathered_forward(x: jax.Array) -> tuple[jax.Array, None]:
    return _gathered(x), None


def _gathered_backward(_, grad: jax.Array) -> tuple[jax.Array]:
    return (sharding.sum_scattered(grad.astype(jnp.float32), AXIS, 1).astype(grad.dtype),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def with_halo(x: Shaped[Array, "B T ..."], before: int, after: int, num_shards: int) -> Shaped[Array, "B S ..."]:
    """This device's part between the `before` tokens that come before it in the row, and the `after` that follow.

    Only these travel, from as many neighbours as it takes. Zeros stand for what is beyond the row's ends.
    """
    own = x.shape[1]
    left = [_sent(x[:, -size:], hop, num_shards) for hop, size in _hops(before, own, num_shards)]
    right = [_sent(x[:, :size], -hop, num_shards) for hop, size in _hops(after, own, num_shards)]
    halo = jnp.concatenate([*reversed(left), x, *right], axis=1)
    missing = before - sum(part.shape[1] for part in left), after - sum(part.shape[1] for part in right)
    return jnp.pad(halo, ((0, 0), missing) + ((0, 0),) * (x.ndim - 2))


def _hops(num_tokens: int, own: int, num_shards: int) -> list[tuple[int, int]]:
    """(how many devices away, how many of its tokens) of all on one side that hold some of the nearest `num_tokens`."""
    sizes = [(hop, min(own, num_tokens - (hop - 1) * own)) for hop in range(1, num_shards)]
    return [(hop, size) for hop, size in sizes if size > 0]


def _sent(x: jax.Array, by: int, num_shards: int) -> jax.Array:
    """What the device `by` places before this one gave as `x`; zeros where there is none."""
    pairs = [(giver, giver + by) for giver in range(num_shards) if 0 <= giver + by < num_shards]
    return jax.lax.ppermute(x, AXIS, pairs)
