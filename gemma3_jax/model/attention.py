"""Gemma 3 attention: grouped heads, norms on query and key, RoPE, and the choice of how to compute it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gemma3_jax import sharding
from gemma3_jax.model import banded, config, dense, fsdp, layers, masks, rope, splash


def choose_path(attention: str, num_tokens: int, sliding_window: int | None, *, both_ways: bool, platform: str) -> str:
    """Returns 'dense', 'banded' or 'splash': the one that `attention` names, or for 'auto' the cheapest.

    On TPUs that is splash, unless a row would not fill its smallest block; elsewhere banded, if it scores at most half
    of the keys. On a global layer, which has no bands, 'banded' means dense.
    Raises: ValueError for 'splash' on a platform that cannot run it.
    """
    if attention == "splash":
        splash.check(platform)
    if attention == "auto" and platform == "tpu" and splash.fills_blocks(num_tokens):
        return "splash"
    if attention in ("dense", "splash"):
        return attention
    if sliding_window is None:
        return "dense"
    if attention == "banded":
        return "banded"
    keys = banded.keys_per_query(sliding_window, num_tokens, both_ways=both_ways)
    return "banded" if 2 * keys <= num_tokens else "dense"


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    layout: masks.TokenLayout,
    sliding_window: int | None,
    attention: str,
) -> Float[Array, "B T N H"]:
    """Softmax-weighted values by the path that `choose_path` returns; exactly 0 at padding on every path."""
    both_ways, platform = layout.images is not None, sharding.platform()
    path = choose_path(attention, query.shape[1], sliding_window, both_ways=both_ways, platform=platform)
    compute = {"dense": dense.attend, "banded": banded.attend, "splash": splash.attend}[path]
    out = compute(query, key, value, layout, sliding_window)
    out = jnp.where((layout.segments == 0)[..., None, None], jnp.zeros((), out.dtype), out)
    out = sharding.constrain(out, "BTNH")
    # The splash kernel names its output itself, before the output is laid out anew: a second name would save it twice.
    return out if path == "splash" else checkpoint_name(out, splash.CHECKPOINT_NAME)


# (query, key, value, sliding_window) -> attended values, and the new keys and values to cache: None in training.
Attend = Callable[[jax.Array, jax.Array, jax.Array, int | None], tuple[jax.Array, Any]]


class Attention(nnx.Module):
    """Self-attention of one layer; `sliding_window` is None on a global layer."""

    def __init__(self, model: config.Config, sliding_window: int | None, rngs: nnx.Rngs):
        D, N, K, H = model.embed_dim, model.num_heads, model.num_kv_heads, model.head_dim
        self.sliding_window = sliding_window
        self.query_scale = model.query_scale
        self.query = fsdp.parameter(rngs, "D N H", (D, N, H), fan_in="D")
        self.key = fsdp.parameter(rngs, "D K H", (D, K, H), fan_in="D")
        self.value = fsdp.parameter(rngs, "D K H", (D, K, H), fan_in="D")
        self.output = fsdp.parameter(rngs, "N H D", (N, H, D), fan_in="N H")
        self.query_norm = layers.RMSNorm("H", H, model.norm_epsilon, rngs)
        self.key_norm = layers.RMSNorm("H", H, model.norm_epsilon, rngs)

    def __call__(
        self, x: Float[Array, "B T D"], angles: Float[Array, "B T _"], attend: Attend
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Returns what the layer adds to the residual stream, and the new keys and values from `attend`."""
        query = fsdp.project("BTD,DNH->BTNH", x, self.query.get_value())
        key = fsdp.project("BTD,DKH->BTKH", x, self.key.get_value())
        value = checkpoint_name(fsdp.project("BTD,DKH->BTKH", x, self.value.get_value()), "value")
        # Norm, rotation and scale in float32, then one rounding to the activations' dtype.
        query = rope.rotate(self.query_norm(query.astype(jnp.float32)), angles) * self.query_scale
        key = rope.rotate(self.key_norm(key.astype(jnp.float32)), angles)
        query = checkpoint_name(query.astype(x.dtype), "query")
        # Constrained again after the cast, so that an all-gather of keys moves the narrow dtype.
        key = checkpoint_name(sharding.constrain(key.astype(x.dtype), "BTKH"), "key")
        attended, new_kv = attend(query, key, value, self.sliding_window)
        return fsdp.project("BTNH,NHD->BTD", attended, self.output.get_value()), new_kv
