"""Rows of ids that go on: prompts are read a chunk at a time, and ids are drawn in one compiled loop.

Host code decides how long a stretch of that loop is: text is shown, and asked whether it ends, between two stretches.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gemma3_jax import sharding
from gemma3_jax.inference import sampling
from gemma3_jax.model import config, execution, kv_cache, parameters

NOT_DRAWN = -1
STRETCH = 32  # ids of each row that the loop writes before host code looks at them


class Draws(NamedTuple):
    """What makes a draw, beside how many the row has had."""

    seed: int | jax.Array
    numbers: np.ndarray | jax.Array  # [B], of the rows


class State(NamedTuple):
    """Rows in the middle of being written."""

    cached: kv_cache.Cache
    logits: Float[Array, "B V"]  # of the next id; -inf where it may never be
    is_done: Bool[Array, "B"]
    num_drawn: Int[Array, ""]


class Programs:
    """What is compiled of a model on a mesh: to begin rows, to read, to write."""

    def __init__(
        self, model: config.Config, *, mesh: jax.sharding.Mesh, execute: execution.Execution, never: np.ndarray
    ):
        """`never`: bool[V], ids that are not written, however probable."""
        self.model, self.mesh, self._execute = model, mesh, execute
        self._never = np.asarray(never)
        self._whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._begin: dict[tuple[int, int], Callable] = {}
        self._read = jax.jit(self._read_chunk, donate_argnums=1)
        self._write = jax.jit(self._write_stretch, donate_argnums=1, static_argnames="how")

    def cache_shapes(self, num_rows: int, num_slots: int) -> kv_cache.Layers:
        return kv_cache.shapes(self.model, num_rows, num_slots, execution.DTYPES[self._execute.dtype])

    def begin(self, num_padding: np.ndarray, num_slots: int, is_done: np.ndarray) -> State:
        """Rows of which nothing was read: room for so many tokens each, `num_padding` [B] of them padding.

        Rows that are done [B] from the start fill up a batch.
        """
        size = len(num_padding), num_slots
        if size not in self._begin:
            self._begin[size] = self._beginning(*size)
        return self._begin[size](np.asarray(num_padding, np.int32), np.asarray(is_done))

    def _beginning(self, num_rows: int, num_slots: int) -> Callable:
        layers, whole = self.cache_shapes(num_rows, num_slots), self._whole
        places = kv_cache.Cache(kv_cache.shardings(layers, self.mesh), whole, whole)

        def make(num_padding, is_done):
            logits = jnp.zeros((num_rows, self.model.vocab_size), jnp.float32)
            return State(kv_cache.empty(layers, num_padding), logits, is_done, jnp.zeros((), jnp.int32))

        return jax.jit(make, out_shardings=State(places, whole, whole, whole))

    def read(self, params: dict, state: State, tokens: np.ndarray) -> State:
        """The state after so many more tokens [B, T] of every row, of which none is drawn."""
        with jax.set_mesh(self.mesh):
            return self._read(params, state, np.asarray(tokens, np.int32))

    def write(
        self,
        params: dict,
        state: State,
        *,
        at_most: int,
        how: sampling.Sampling,
        draws: Draws,
        ends: np.ndarray,
        allowed: np.ndarray | None = None,
    ) -> tuple[np.ndarray, State]:
        """At most so many ids of each row, and no more than a stretch [B, _], and the state after them.

        A row is done with the first of the ids `ends`; what follows is NOT_DRAWN. `allowed` [B, V]: which ids
        the one that is drawn may be.
        """
        assert at_most == 1 or (allowed is None and at_most <= STRETCH), at_most
        with jax.set_mesh(self.mesh):
            draws = Draws(np.uint32(draws.seed), np.asarray(draws.numbers, np.uint32))
            ids, state = self._write(params, state, draws, ends, at_most, allowed, how=how)
        return np.asarray(ids)[:, :at_most], state

    def _read_chunk(self, params: dict, state: State, tokens: Int[Array, "B T"]) -> State:
        transformer = parameters.bind(self.model, params)
        hidden, cached = transformer.extend(tokens, state.cached, execute=self._execute)
        logits = sharding.constrain(transformer.logits(hidden[:, -1:])[:, 0], "BV")
        return state._replace(cached=cached, logits=jnp.where(self._never[None], -jnp.inf, logits))

    def _write_stretch(self, params, state: State, draws: Draws, ends, at_most, allowed, *, how: sampling.Sampling):
        of_rows = keys(draws.seed, draws.numbers)

        def going_on(carry):
            state, _, number = carry
            return (number < at_most) & ~jnp.all(state.is_done)

        def step(carry):
            state, ids, number = carry
            logits = state.logits if allowed is None else jnp.where(allowed, state.logits, -jnp.inf)
            of_draw = jax.vmap(functools.partial(jax.random.fold_in, data=state.num_drawn))(of_rows)
            drawn = sampling.draw(of_draw, logits, how)
            ids = ids.at[:, number].set(jnp.where(state.is_done, NOT_DRAWN, drawn))
            is_done = state.is_done | jnp.isin(drawn, ends)
            state = state._replace(is_done=is_done, num_drawn=state.num_drawn + 1)
            return self._read_chunk(params, state, drawn[:, None]), ids, number + 1

        ids = jnp.full((of_rows.shape[0], STRETCH), NOT_DRAWN, jnp.int32)
        state, ids, _ = jax.lax.while_loop(going_on, step, (state, ids, jnp.zeros((), jnp.int32)))
        # Host code looks at these, on every host.
        ids, is_done = (jax.lax.with_sharding_constraint(x, self._whole) for x in (ids, state.is_done))
        return ids, state._replace(is_done=is_done)


def keys(seed: int | jax.Array, numbers: np.ndarray | jax.Array) -> jax.Array:
    """A key for each row of these numbers: what a row draws depends on no other row."""
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.asarray(numbers, jnp.uint32))
