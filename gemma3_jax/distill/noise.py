"""Random numbers of single tokens: the same on any mesh, in any chunks, and after any number of restarts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key, UInt32

Words = tuple[UInt32[Array, "B T"], UInt32[Array, "B T"]]
Seed = int | np.uint32 | Integer[Array, ""]


def token_words(seed: Seed, row_ids: Int[Array, "B T"], positions: Int[Array, "B T"]) -> Words:
    """Two uniform words for each token: its key itself, which is a hash. All draws for the token follow from them."""
    data = jax.random.key_data(token_keys(seed, row_ids, positions))
    return data[..., 0], data[..., 1]


def keys_of(words: Words) -> Key[Array, "B T"]:
    """The keys that have these words. Not to be used beside draws from the words."""
    return jax.random.wrap_key_data(jnp.stack(words, axis=-1), impl="threefry2x32")


def token_keys(seed: Seed, row_ids: Int[Array, "B T"], positions: Int[Array, "B T"]) -> Key[Array, "B T"]:
    """A key for each token, from the seed, the row's id in the stage and the token's position in the row."""
    root = jax.random.key(seed, impl="threefry2x32")
    return _vmap(lambda row_id, position: jax.random.fold_in(jax.random.fold_in(root, row_id), position), 2)(
        row_ids, positions
    )


def uniform(keys: Key[Array, "B T"], count: int) -> Float[Array, "B T M"]:
    """Uniform draws in [0, 1). The first draws do not depend on `count`."""
    return _vmap(lambda key: jax.random.uniform(key, (count,), jnp.float32), 2)(keys)


def fold_in(keys: Key[Array, "B T"], data: Int[Array, "B T M"]) -> Key[Array, "B T M"]:
    """M keys for each key."""
    return _vmap(jax.vmap(jax.random.fold_in, (None, 0)), 2)(keys, data)


def exponential(keys: Key[Array, "B T M"], count: int) -> Float[Array, "B T M Z"]:
    """`count` waiting times of rate 1 for each key, from 1e-10 to 17."""
    bits = _vmap(lambda key: jax.random.bits(key, (count,), jnp.uint32), 3)(keys)
    # The smallest times draw the rarest ids, so all 32 bits count: with the 23 of jax.random.exponential no time would
    # be below 1e-7.
    below_one = jnp.minimum((bits.astype(jnp.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    return -jnp.log1p(-below_one)


def _vmap(f: Callable, num_dims: int) -> Callable:
    for _ in range(num_dims):
        f = jax.vmap(f)
    return f
