"""Gemma 3, the text transformer: section 2 of the report, in code."""

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
        self, x: Float[Array, "B T D"], angles: Float[Array, "B T _"], read: attention.Read
    ) -> tuple[Float[Array, "B T D"], Any]:
        """The stream after the layer, and what `read` keeps of its keys and values."""
        attended, kept = self.attention(self.pre_attention_norm(x), angles, read)
        x += self.post_attention_norm(attended)
        x += self.post_mlp_norm(self.mlp(self.pre_mlp_norm(x)))
        return x, kept


class Period(nnx.Module):
    """One turn of the pattern: the local layers, stacked, then the global one."""

    def __init__(self, model: config.Config, rngs: nnx.Rngs):
        self.local_layers = _local_stack(model, model.num_local_per_global, rngs)
        self.global_layer = Block(model, None, rngs)


class Transformer(nnx.Module):
    """Packed rows of tokens in, final hidden states out; `logits` turns those into scores over the vocabulary.

    `extend` is the same for rows that go on from a cache, as text does that is being written.

    The layers stand as a scan over periods, in each a scan over local layers and one global layer, and a scan over the
    local layers left at the end: three layer bodies in the program, whatever the depth.
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
        places: masks.Places,
        soft_tokens: Float[Array, "B I Q D"] | None = None,
        *,
        execute: execution.Execution = execution.REFERENCE,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm. Image places take `soft_tokens` in order; their ids are not looked up."""
        if soft_tokens is not None:
            assert places.images is not None, "soft tokens need places.images to say where they go"
            tokens = jnp.where(places.images > 0, 0, tokens)  # the placeholder's id may lie outside the table
        x = self.embedder.encode(tokens, execution.DTYPES[execute.dtype])
        if soft_tokens is not None:
            x = layers.place_soft_tokens(x, soft_tokens, places.images)

        def read(query, key, value, sliding_window, past):
            return attention.attend(query, key, value, places, sliding_window, execute.attention), None

        hidden, _ = self._through_layers(x, places.positions, read, kv_cache.NOTHING, execute.remat)
        return hidden

    def extend(
        self, tokens: Int[Array, "B T"], cached: kv_cache.Cache, *, execute: execution.Execution = execution.REFERENCE
    ) -> tuple[Float[Array, "B T D"], kv_cache.Cache]:
        """Hidden states of tokens that come after those in the cache, and the cache with them in it.

        Attention is dense: T times as many scores a head as the cache has slots.
        """
        x = self.embedder.encode(tokens, execution.DTYPES[execute.dtype])
        places = kv_cache.places_of_next(cached, tokens.shape[1])

        def read(query, key, value, sliding_window, past):
            return kv_cache.attend(query, key, value, places, sliding_window, cached=cached, past=past)

        hidden, new = self._through_layers(x, places.positions, read, cached.layers, "none")
        return hidden, kv_cache.appended(cached, new, tokens.shape[1])

    def _through_layers(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], read: Callable, past: kv_cache.Layers, remat: str
    ) -> tuple[Float[Array, "B T D"], kv_cache.Layers]:
        """Hidden states after the final norm, and what `read(query, key, value, window, past of the layer)` kept."""
        angles = functools.partial(rope.angles, positions, self.model.head_dim)
        local_angles = angles(base=self.model.rope_base_local, scale=1.0)
        global_angles = angles(base=self.model.rope_base_global, scale=self.model.rope_scale)

        def layer(x, block, angles, past):
            return block(x, angles, functools.partial(read, past=past))

        of_local, of_global = _keeping(layer, execution.REMAT_POLICIES[remat])

        def local_layer(x, of_layer):
            block, past = of_layer
            return of_local(x, block, local_angles, past)

        def period(x, of_period):
            layers_of, past_local, past_global = of_period
            new_local = None
            if layers_of.local_layers is not None:
                x, new_local = jax.lax.scan(local_layer, x, (layers_of.local_layers, past_local))
            x, new_global = of_global(x, layers_of.global_layer, global_angles, past_global)
            return x, (new_local, new_global)

        new_local = new_global = new_remaining = None
        if self.periods is not None:
            x, (new_local, new_global) = jax.lax.scan(period, x, (self.periods, past.local_layers, past.global_layers))
        if self.remaining_layers is not None:
            x, new_remaining = jax.lax.scan(local_layer, x, (self.remaining_layers, past.remaining_layers))
        return self.final_norm(x), kv_cache.Layers(new_local, new_global, new_remaining)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Float32 scores over the vocabulary: no bias, no soft cap. Ask for few tokens at a time: V is 262,144."""
        return self.embedder.decode(hidden)


def _keeping(layer, kept: tuple[tuple[str, ...], ...] | None) -> tuple:
    """The layer, once for local and once for global ones, computed again in the backward pass but for what is kept."""
    if kept is None:
        return layer, layer
    policies = (jax.checkpoint_policies.save_only_these_names(*names) for names in kept)
    # Inside a scan nothing can merge the two computations, so the barrier against it would only cost.
    return tuple(jax.checkpoint(layer, policy=policy, prevent_cse=False) for policy in policies)


def _stack(num: int, make, rngs: nnx.Rngs):
    """`num` modules with their parameters stacked along a new first dim "L", or None for none."""
    if num == 0:
        return None
    return nnx.vmap(make, transform_metadata={nnx.PARTITION_NAME: "L"})(rngs.split(num))


def _local_stack(model: config.Config, num: int, rngs: nnx.Rngs):
    return _stack(num, lambda rngs: Block(model, model.sliding_window, rngs), rngs)
