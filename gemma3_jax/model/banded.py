"""Attention of local layers in blocks: every query meets only the blocks its window reaches."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gemma3_jax.model import dense, masks, matmul


def block_size(sliding_window: int, num_tokens: int) -> int:
    """Tokens per block: a quarter of the window, but at least 128 and at most the row.

    Smaller blocks score fewer keys outside the window and copy more keys into bands. For a window of 512 over 4,096
    tokens on a CPU, blocks of 128, 256 and 512 took 0.33, 0.40 and 0.64 s (experiments/benchmarks/attention.py).
    """
    return min(max(sliding_window // 4, 128), num_tokens)


def reach(sliding_window: int, num_tokens: int) -> int:
    """Blocks before its own that a query of a block may see; never more than the row has."""
    block = block_size(sliding_window, num_tokens)
    return min(-(-(sliding_window - 1) // block), -(-num_tokens // block) - 1)


def keys_per_query(sliding_window: int, num_tokens: int, *, both_ways: bool) -> int:
    """Keys whose score is computed for each query, allowed or not: the cost of this path, where dense pays S."""
    return block_size(sliding_window, num_tokens) * (1 + reach(sliding_window, num_tokens) * (2 if both_ways else 1))


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    places: masks.Places,
    sliding_window: int,
) -> Float[Array, "B T N H"]:
    """What dense.attend returns for a window, padding aside: O(T * window) time and memory, any row length and window.

    Rows are cut into R blocks of Z tokens; a block of queries meets its own block of keys and the ones `window`
    reaches: before it, and after it too when there are images, whose tokens see each other both ways. What lies beyond
    either end of a row is filled with zeros, and so is padding: segment 0.
    """
    num_tokens, num_kv_heads = key.shape[1:3]
    block = block_size(sliding_window, num_tokens)
    blocks_back = reach(sliding_window, num_tokens)
    offsets = range(-blocks_back, blocks_back + 1 if places.images is not None else 1)

    def band(x: jax.Array) -> jax.Array:
        return jnp.concatenate([_shifted(x, -offset) for offset in offsets], axis=2)

    q_BRTNH, k_BRSKH, v_BRSKH = (_blocks(x, block) for x in (query, key, value))
    query_places = jax.tree.map(lambda x: _blocks(x, block), places)
    key_places = jax.tree.map(band, query_places)
    q_BRTKGH = q_BRTNH.reshape(*q_BRTNH.shape[:3], num_kv_heads, -1, query.shape[3])
    q_BRKGTH = jnp.moveaxis(q_BRTKGH, 2, 4)  # as dense does
    scores = matmul.einsum("BRKGTH,BRSKH->BRKGTS", q_BRKGTH, band(k_BRSKH), jnp.float32)
    mask = masks.visible(query_places, key_places, sliding_window)
    probs = dense.masked_softmax(scores, mask[:, :, None, None]).astype(value.dtype)
    out = matmul.einsum("BRKGTS,BRSKH->BRTKGH", probs, band(v_BRSKH))
    return out.reshape(out.shape[0], -1, *query.shape[2:])[:, :num_tokens]


def _blocks(x: jax.Array, block: int) -> jax.Array:
    """[B, T, ...] -> [B, R, Z, ...], the last block filled up with zeros."""
    fill = -x.shape[1] % block
    x = jnp.pad(x, ((0, 0), (0, fill)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(x.shape[0], -1, block, *x.shape[2:])


def _shifted(x: jax.Array, by: int) -> jax.Array:
    """[B, R, ...] with block r holding what block r - `by` held; zeros where there was none."""
    num_blocks = x.shape[1]
    x = jnp.pad(x, ((0, 0), (max(by, 0), max(-by, 0))) + ((0, 0),) * (x.ndim - 2))
    return x[:, max(-by, 0) :][:, :num_blocks]
