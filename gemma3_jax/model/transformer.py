"""The Gemma 3 text transformer (section 2 of the report)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gemma3_jax.model import attention, config, execution, kv_cache, layers, masks, rope


class Block(nnx.Module):
    """Attention and MLP, each between two norms and added to the residual stream."""

    def __init__(self, model: config.Config, sliding_window: int | None, rngs: nnx.Rngs):
        norm = functools.partial(layers.RMSNorm, "D", model.embed_dim, model.norm_epsilon, rngs)
        self.pre_attention_norm = norm()
        self.attention = attention.Attention(model, sliding_window, rngs)
        self.post_attention_norm = norm()
        self.pre_mlp_norm = norm()
        self.mlp = layers.GatedMLP(model.embed_dim, model.mlp_dim, rngs)
        self.post_mlp_norm = norm()

    def __call__(
        self, x: Float[Array, "B T D"], angles: Float[Array, "B T _"], attend: attention.Attend
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Returns the residual stream after the layer, and the new keys and values from `attend`."""
        attended, new_kv = self.attention(self.pre_attention_norm(x), angles, attend)
        x += self.post_attention_norm(attended)
        x += self.post_mlp_norm(self.mlp(self.pre_mlp_norm(x)))
        return x, new_kv


class Period(nnx.Module):
    """One period of the layer pattern: the local layers, stacked, then the global one."""

    def __init__(self, model: config.Config, rngs: nnx.Rngs):
        self.local_layers = _local_stack(model, model.num_local_per_global, rngs)
        self.global_layer = Block(model, None, rngs)


class Transformer(nnx.Module):
    """Packed rows of tokens in, final hidden states out; `logits` maps those to scores over the vocabulary.

    `extend` does the same for rows that continue from a cache, as in generation. Layers are scanned: a scan over
    periods, inside it a scan over local layers and one global layer, and a scan over the local layers left at the end.
    The program has three layer bodies, whatever the depth.
    """

    def __init__(self, model: config.Config, rngs: nnx.Rngs):
        self.model = model
        self.embedder = layers.Embedder(model.vocab_size, model.embed_dim, rngs)
        self.periods = _stack(model.num_periods, lambda rngs: Period(model, rngs), rngs)
        self.remaining_layers = _local_stack(model, model.num_remaining, rngs)
        self.final_norm = layers.RMSNorm("D", model.embed_dim, model.norm_epsilon, rngs)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        layout: masks.TokenLayout,
        soft_tokens: Float[Array, "B I Q D"] | None = None,
        *,
        execute: execution.Execution = execution.REFERENCE,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm. `soft_tokens` replace the image tokens in order, whatever their ids."""
        if soft_tokens is not None:
            assert layout.images is not None, "soft tokens need layout.images: the tokens that they replace"
            tokens = jnp.where(layout.images > 0, 0, tokens)  # the placeholder's id may lie outside the table
        x = self.embedder.encode(tokens, execution.DTYPES[execute.dtype])
        if soft_tokens is not None:
            x = layers.insert_soft_tokens(x, soft_tokens, layout.images)

        def attend(query, key, value, sliding_window, layer_cache):
            return attention.attend(query, key, value, layout, sliding_window, execute.attention), None

        hidden, _ = self._scan_layers(x, layout.positions, attend, kv_cache.NO_LAYERS, execute.remat)
        return hidden

    def extend(
        self, tokens: Int[Array, "B T"], cache: kv_cache.Cache, *, execute: execution.Execution = execution.REFERENCE
    ) -> tuple[Float[Array, "B T D"], kv_cache.Cache]:
        """Hidden states of the tokens that follow those in the cache, and the cache extended by them.

        Attention is dense: each head scores T times the slots of the cache.
        """
        x = self.embedder.encode(tokens, execution.DTYPES[execute.dtype])
        layout = kv_cache.next_layout(cache, tokens.shape[1])

        def attend(query, key, value, sliding_window, layer_cache):
            return kv_cache.attend(query, key, value, layout, sliding_window, cache=cache, layer_cache=layer_cache)

        hidden, new = self._scan_layers(x, layout.positions, attend, cache.layers, "none")
        return hidden, kv_cache.append(cache, new, tokens.shape[1])

    def _scan_layers(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        attend: Callable,
        cache: kv_cache.Layers,
        remat: str,
    ) -> tuple[Float[Array, "B T D"], kv_cache.Layers]:
        """Hidden states after the final norm, and each layer's new keys and values.

        `attend(query, key, value, sliding_window, layer_cache)` returns attended values, and what to cache.
        """
        angles = functools.partial(rope.angles, positions, self.model.head_dim)
        local_angles = angles(base=self.model.rope_base_local, scale=1.0)
        global_angles = angles(base=self.model.rope_base_global, scale=self.model.rope_scale)

        def layer(x, block, angles, layer_cache):
            return block(x, angles, functools.partial(attend, layer_cache=layer_cache))

        run_local, run_global = _remat(layer, execution.REMAT_POLICIES[remat])

        @jax.named_scope("local_layer")  # the names in profiles: planning/places.py
        def local_layer(x, inputs):
            block, layer_cache = inputs
            return run_local(x, block, local_angles, layer_cache)

        def period(x, inputs):
            blocks, local_cache, global_cache = inputs
            new_local = None
            if blocks.local_layers is not None:
                x, new_local = jax.lax.scan(local_layer, x, (blocks.local_layers, local_cache))
            with jax.named_scope("global_layer"):
                x, new_global = run_global(x, blocks.global_layer, global_angles, global_cache)
            return x, (new_local, new_global)

        new_local = new_global = new_remaining = None
        if self.periods is not None:
            inputs = self.periods, cache.local_layers, cache.global_layers
            x, (new_local, new_global) = jax.lax.scan(period, x, inputs)
        if self.remaining_layers is not None:
            x, new_remaining = jax.lax.scan(local_layer, x, (self.remaining_layers, cache.remaining_layers))
        return self.final_norm(x), kv_cache.Layers(new_local, new_global, new_remaining)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Float32 scores over the vocabulary, without bias or soft cap. V is 262,144: pass few tokens at a time."""
        return self.embedder.decode(hidden)


def _remat(layer, saved_names: tuple[tuple[str, ...], ...] | None) -> tuple:
    """The layer for local and for global layers, rematerialized except for the values with `saved_names`."""
    if saved_names is None:
        return layer, layer
    policies = (jax.checkpoint_policies.save_only_these_names(*names) for names in saved_names)
    # Inside a scan nothing can merge the two computations, so the barrier against that would only cost.
    return tuple(jax.checkpoint(layer, policy=policy, prevent_cse=False) for policy in policies)


def _stack(num: int, make, rngs: nnx.Rngs):
    """`num` modules with their parameters stacked along a new first dim "L", or None for none."""
    if num == 0:
        return None
    return nnx.vmap(make, transform_metadata={nnx.PARTITION_NAME: "L"})(rngs.split(num))


def _local_stack(model: config.Config, num: int, rngs: nnx.Rngs):
    return _stack(num, lambda rngs: Block(model, model.sliding_window, rngs), rngs)
