"""Dense attention, with the whole score matrix: the reference that every other path must equal."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gemma3_jax import sharding
from gemma3_jax.model import masks, matmul

MASKED = -2.3819763e38  # finite: a row with no key left would turn -inf into NaN


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    layout: masks.TokenLayout,
    sliding_window: int | None,
    *,
    key_layout: masks.TokenLayout | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax-weighted values, in O(T * S) time and memory; query head n reads key head n // (N / K).

    `query` is already scaled. `key_layout` is that of keys which do not belong to the queries' own tokens. Where `seq`
    splits the row, every device gathers all keys and values.
    """
    key, value = (sharding.constrain(x, "BSKH") for x in (key, value))
    q_BTKGH = query.reshape(*query.shape[:2], key.shape[2], -1, query.shape[3])
    q_BKGTH = jnp.moveaxis(q_BTKGH, 1, 3)  # else XLA's CPU backend transposes the scores, S / H times as large
    scores = matmul.einsum("BKGTH,BSKH->BKGTS", q_BKGTH, key, jnp.float32)
    probs = masked_softmax(scores, masks.visible(layout, key_layout or layout, sliding_window)[:, None, None])
    return matmul.einsum("BKGTS,BSKH->BTKGH", probs.astype(value.dtype), value).reshape(query.shape)


def masked_softmax(scores: Float[Array, "*dims T S"], mask: Bool[Array, "*#dims T S"]) -> Float[Array, "*dims T S"]:
    """Softmax in float32 over the keys that `mask` allows."""
    return jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)
