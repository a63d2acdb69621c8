"""Randomness of single tokens: the same whatever the mesh, the chunks and the number of restarts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def token_keys(seed: int, numbers: Int[Array, "B T"], positions: Int[Array, "B T"]) -> Key[Array, "B T"]:
    """Of the seed, the number of the row in the stage, and the place in the row."""
    root = jax.random.key(seed, impl="threefry2x32")
    return _each(lambda number, position: jax.random.fold_in(jax.random.fold_in(root, number), position), 2)(
        numbers, positions
    )


def uniform(keys: Key[Array, "B T"], count: int) -> Float[Array, "B T M"]:
    """At least 0 and under 1. The first few of many are those of few."""
    return _each(lambda key: jax.random.uniform(key, (count,), jnp.float32), 2)(keys)


def folded(keys: Key[Array, "B T"], numbers: Int[Array, "B T M"]) -> Key[Array, "B T M"]:
    return _each(jax.vmap(jax.random.fold_in, (None, 0)), 2)(keys, numbers)


def exponential(keys: Key[Array, "B T M"], count: int) -> Float[Array, "B T M Z"]:
    """Waiting times of rate 1, `count` for each key: from 1e-10 to 17."""
    bits = _each(lambda key: jax.random.bits(key, (count,), jnp.uint32), 3)(keys)
    # All 32 bits: rare ids are drawn by the smallest times. 23, as of jax.random.exponential, have no time below 1e-7.
    below_one = jnp.minimum((bits.astype(jnp.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    return -jnp.log1p(-below_one)


def _each(f: Callable, num_dims: int) -> Callable:
    for _ in range(num_dims):
        f = jax.vmap(f)
    return f
