"""What every loss shares: its signature, the student's forward pass, and the number of targets of a batch."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gemma3_jax.model import config, execution, masks, parameters

Sums = dict[str, jax.Array]  # of reported quantities, each summed over the targets
# (params, frozen, batch) -> (summed loss in nats, number of targets, sums). `frozen` holds parameters that no step
# changes, by role: {"teacher": params}, or nothing.
Loss = Callable[[dict, Mapping[str, object], object], tuple[jax.Array, jax.Array, Sums]]


def hidden_states(model: config.Config, execute: execution.Execution, params: dict, rows) -> Float[Array, "B T D"]:
    """Final hidden states of `rows`, which have tokens, segments and positions, each [B, T]."""
    transformer = parameters.bind(model, params)
    return transformer(rows.tokens, masks.TokenLayout(rows.segments, rows.positions), execute=execute)


def count_targets(rows, num_bytes: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """The number of targets in `rows`, and the bytes of their text."""
    bytes_of_targets = jnp.sum(jnp.asarray(num_bytes)[rows.labels] * rows.loss_mask)
    return jnp.sum(rows.loss_mask, dtype=jnp.int32), bytes_of_targets
