"""The compiled part of generation: prompts are prefilled in chunks, then tokens are decoded in one compiled loop.

The host chooses how many steps the loop takes per call: between two calls it shows text and checks whether it ends.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gemma3_jax import sharding
from gemma3_jax.inference import sampling
from gemma3_jax.model import config, execution, kv_cache, parameters

NO_TOKEN = -1  # in the ids that `decode` returns: after the end of a sequence
MAX_STEPS = 32  # tokens of each sequence that one call of `decode` draws at most
ANY_CONTEXT = 1 << 30


class RandomStream(NamedTuple):
    """What a sequence's draws depend on, besides how many it has had."""

    seed: int | jax.Array
    row_ids: np.ndarray | jax.Array  # [B]


class DecodeState(NamedTuple):
    """A batch of sequences in the middle of generation."""

    cached: kv_cache.Cache
    logits: Float[Array, "B V"]  # of the next token; -inf where it is suppressed
    is_done: Bool[Array, "B"]
    num_drawn: Int[Array, ""]


class Engine:
    """Compiled prefill and decode of one model on one mesh. Every call takes the parameters."""

    def __init__(
        self,
        model: config.Config,
        *,
        mesh: jax.sharding.Mesh,
        execute: execution.Execution = execution.REFERENCE,
        context: int = ANY_CONTEXT,
        suppressed: Sequence[int] = (),
    ):
        """`context`: tokens that a sequence may have, prompt included; `suppressed`: ids that are never drawn."""
        self.model, self.mesh, self.execute, self.context = model, mesh, execute, context
        self._is_suppressed = np.zeros(model.vocab_size, bool)
        self._is_suppressed[np.asarray(suppressed, int)] = True
        self._replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._init_state: dict[tuple[int, int], Callable] = {}
        self._prefill = jax.jit(self._forward, donate_argnums=1)
        self._decode = jax.jit(self._decode_loop, donate_argnums=1, static_argnames="sampling_options")

    def check(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Raises: ValueError naming the prompt that is empty, has an unknown id, or leaves no room in the context."""
        for number, prompt in enumerate(prompts):
            name = f"prompt {number}" if len(prompts) > 1 else "the prompt"
            if not len(prompt):
                raise ValueError(f"{name} is empty; it must have at least one token")
            unknown = [token for token in prompt if not 0 <= token < self.model.vocab_size]
            if unknown:
                raise ValueError(f"{name} has id {unknown[0]}; ids are from 0 to {self.model.vocab_size - 1}")
            if len(prompt) + max_new_tokens > self.context:
                raise ValueError(
                    f"{name} has {len(prompt)} tokens, and max_new_tokens is {max_new_tokens}; the context is "
                    f"{self.context} tokens: shorten the prompt, lower --max_new_tokens, or raise --context"
                )

    def cache_shapes(self, batch_size: int, num_slots: int) -> kv_cache.Layers:
        return kv_cache.shapes(self.model, batch_size, num_slots, execution.DTYPES[self.execute.dtype])

    def init_state(self, num_padding: np.ndarray, num_slots: int, is_done: np.ndarray) -> DecodeState:
        """The state before prefill, with room for `num_slots` tokens per sequence.

        `num_padding` [B] of these are padding at the start. `is_done` [B] marks the sequences that only fill the batch.
        """
        shape = len(num_padding), num_slots
        if shape not in self._init_state:
            self._init_state[shape] = self._compile_init(*shape)
        return self._init_state[shape](np.asarray(num_padding, np.int32), np.asarray(is_done))

    def _compile_init(self, batch_size: int, num_slots: int) -> Callable:
        layers, replicated = self.cache_shapes(batch_size, num_slots), self._replicated
        cache_shardings = kv_cache.Cache(kv_cache.shardings(layers, self.mesh), replicated, replicated)

        def make(num_padding, is_done):
            logits = jnp.zeros((batch_size, self.model.vocab_size), jnp.float32)
            return DecodeState(kv_cache.empty(layers, num_padding), logits, is_done, jnp.zeros((), jnp.int32))

        return jax.jit(make, out_shardings=DecodeState(cache_shardings, replicated, replicated, replicated))

    def prefill(self, params: dict, state: DecodeState, tokens: np.ndarray) -> DecodeState:
        """The state after the next tokens [B, T] of every prompt. Nothing is drawn."""
        with jax.set_mesh(self.mesh):
            return self._prefill(params, state, np.asarray(tokens, np.int32))

    def decode(
        self,
        params: dict,
        state: DecodeState,
        *,
        max_steps: int,
        sampling_options: sampling.Sampling,
        random: RandomStream,
        end_ids: np.ndarray,
        allowed: np.ndarray | None = None,
    ) -> tuple[np.ndarray, DecodeState]:
        """Draws at most `max_steps` (<= MAX_STEPS) tokens of each sequence: ids [B, max_steps], and the new state.

        A sequence is done after the first of `end_ids`; the ids that follow are NO_TOKEN. `allowed` [B, V] restricts
        what may be drawn, and takes max_steps=1.
        """
        assert max_steps == 1 or (allowed is None and max_steps <= MAX_STEPS), max_steps
        with jax.set_mesh(self.mesh):
            random = RandomStream(np.uint32(random.seed), np.asarray(random.row_ids, np.uint32))
            ids, state = self._decode(
                params, state, random, end_ids, max_steps, allowed, sampling_options=sampling_options
            )
        return np.asarray(ids)[:, :max_steps], state

    def _forward(self, params: dict, state: DecodeState, tokens: Int[Array, "B T"]) -> DecodeState:
        transformer = parameters.bind(self.model, params)
        hidden, cached = transformer.extend(tokens, state.cached, execute=self.execute)
        logits = sharding.constrain(transformer.logits(hidden[:, -1:])[:, 0], "BV")
        return state._replace(cached=cached, logits=jnp.where(self._is_suppressed[None], -jnp.inf, logits))

    def _decode_loop(
        self,
        params: dict,
        state: DecodeState,
        random: RandomStream,
        end_ids,
        max_steps,
        allowed,
        *,
        sampling_options: sampling.Sampling,
    ):
        keys = row_keys(random.seed, random.row_ids)

        def is_unfinished(carry):
            state, _, num_steps = carry
            return (num_steps < max_steps) & ~jnp.all(state.is_done)

        def step(carry):
            state, ids, num_steps = carry
            logits = state.logits if allowed is None else jnp.where(allowed, state.logits, -jnp.inf)
            draw_keys = jax.vmap(functools.partial(jax.random.fold_in, data=state.num_drawn))(keys)
            drawn = sampling.draw(draw_keys, logits, sampling_options)
            ids = ids.at[:, num_steps].set(jnp.where(state.is_done, NO_TOKEN, drawn))
            is_done = state.is_done | jnp.isin(drawn, end_ids)
            state = state._replace(is_done=is_done, num_drawn=state.num_drawn + 1)
            return self._forward(params, state, drawn[:, None]), ids, num_steps + 1

        ids = jnp.full((keys.shape[0], MAX_STEPS), NO_TOKEN, jnp.int32)
        state, ids, _ = jax.lax.while_loop(is_unfinished, step, (state, ids, jnp.zeros((), jnp.int32)))
        # Every host reads both.
        ids, is_done = (jax.lax.with_sharding_constraint(x, self._replicated) for x in (ids, state.is_done))
        return ids, state._replace(is_done=is_done)


def row_keys(seed: int | jax.Array, row_ids: np.ndarray | jax.Array) -> jax.Array:
    """A random key per sequence, from the seed and its id alone, so that no draw depends on the rest of the batch."""
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.asarray(row_ids, jnp.uint32))
