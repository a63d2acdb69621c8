"""Banded attention of local layers: each block of queries is scored against the blocks within its window."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gemma3_jax.model import dense, masks, matmul


def block_size(sliding_window: int, num_tokens: int) -> int:
    """Tokens per block: a quarter of the window, but at least 128 and at most the row.

    Smaller blocks score fewer keys outside the window, and copy more keys into bands. For a window of 512 over 4,096
    tokens on a CPU, blocks of 128, 256 and 512 took 0.33, 0.40 and 0.64 s (experiments/benchmarks/attention.py).
    """
    return min(max(sliding_window // 4, 128), num_tokens)


def reach(sliding_window: int, num_tokens: int) -> int:
    """Blocks before its own that a query's window may reach into; never more than the row has."""
    block = block_size(sliding_window, num_tokens)
    return min(-(-(sliding_window - 1) // block), -(-num_tokens // block) - 1)


def keys_per_query(sliding_window: int, num_tokens: int, *, both_ways: bool) -> int:
    """Keys scored for each query, visible or not: the cost of this path, where that of dense is S."""
    return block_size(sliding_window, num_tokens) * (1 + reach(sliding_window, num_tokens) * (2 if both_ways else 1))


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    layout: masks.TokenLayout,
    sliding_window: int,
) -> Float[Array, "B T N H"]:
    """dense.attend with a window, except at padding, in O(T * window) time and memory; any row length and window.

    Rows are cut into R blocks of Z tokens. A block of queries is scored against its own block of keys and those that
    the window reaches: before it and, if there are images, whose tokens see each other both ways, after it. Beyond
    either end of a row there are zeros, which count as padding: segment 0.
    """
    num_tokens, num_kv_heads = key.shape[1:3]
    block = block_size(sliding_window, num_tokens)
    blocks_back = reach(sliding_window, num_tokens)
    offsets = range(-blocks_back, blocks_back + 1 if layout.images is not None else 1)

    def band(x: jax.Array) -> jax.Array:
        return jnp.concatenate([_shift(x, -offset) for offset in offsets], axis=2)

    q_BRTNH, k_BRSKH, v_BRSKH = (_blocks(x, block) for x in (query, key, value))
    query_layout = jax.tree.map(lambda x: _blocks(x, block), layout)
    key_layout = jax.tree.map(band, query_layout)
    q_BRTKGH = q_BRTNH.reshape(*q_BRTNH.shape[:3], num_kv_heads, -1, query.shape[3])
    q_BRKGTH = jnp.moveaxis(q_BRTKGH, 2, 4)  # as dense does
    scores = matmul.einsum("BRKGTH,BRSKH->BRKGTS", q_BRKGTH, band(k_BRSKH), jnp.float32)
    mask = masks.visible(query_layout, key_layout, sliding_window)
    probs = dense.masked_softmax(scores, mask[:, :, None, None]).astype(value.dtype)
    out = matmul.einsum("BRKGTS,BRSKH->BRTKGH", probs, band(v_BRSKH))
    return out.reshape(out.shape[0], -1, *query.shape[2:])[:, :num_tokens]


def _blocks(x: jax.Array, block: int) -> jax.Array:
    """[B, T, ...] -> [B, R, Z, ...], the last block padded with zeros."""
    fill = -x.shape[1] % block
    x = jnp.pad(x, ((0, 0), (0, fill)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(x.shape[0], -1, block, *x.shape[2:])


def _shift(x: jax.Array, by: int) -> jax.Array:
    """[B, R, ...] with block r - `by` of `x` at r, and zeros where there is none."""
    num_blocks = x.shape[1]
    x = jnp.pad(x, ((0, 0), (max(by, 0), max(-by, 0))) + ((0, 0),) * (x.ndim - 2))
    return x[:, max(-by, 0) :][:, :num_blocks]
