"""One step: gradients summed over microbatches, and an update that is taken only if nothing is wrong with it.

Knows neither the model nor the data: a loss is a function of parameters and rows that returns sums.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gemma3_jax.train import optimizer, settings

# What is reported beside the loss, summed as it is; "loss" is shown instead of what is minimised, where they differ.
Sums = dict[str, jax.Array]
# (parameters, rows) -> (summed loss in nats, number of targets, sums)
Loss = Callable[[dict, object], tuple[jax.Array, jax.Array, Sums]]


class Normal(NamedTuple):
    """What the spike_guard has seen: running mean and variance of (loss, gradient norm), over the steps it believed."""

    mean: Float[Array, "2"]
    variance: Float[Array, "2"]
    num_seen: Int[Array, ""]
    num_skipped: Int[Array, ""]
    num_skipped_in_a_row: Int[Array, ""]


class State(NamedTuple):
    """All that a step changes; also a tree of their shapes, or of their places."""

    step: Int[Array, ""]  # steps of the stage, skipped ones too
    params: dict
    moments: object  # of the optimizer
    average: dict | None  # of the parameters, exponential; None: not kept
    normal: Normal

    def beside_params(self) -> dict:
        """All fields but the parameters."""
        return {"step": self.step, "moments": self.moments, "average": self.average, "normal": self.normal}


def init(params: dict, optimize: optimizer.Optimizer, *, average: bool = False) -> State:
    """The state before the first step."""
    counts = [jnp.zeros((), jnp.int32) for _ in range(4)]  # buffers of their own, as each is donated
    normal = Normal(jnp.zeros(2), jnp.zeros(2), *counts[1:])
    kept = jax.tree.map(jnp.copy, params) if average else None
    return State(counts[0], params, optimize.transform.init(params), kept, normal)


def places(state: State, optimize: optimizer.Optimizer, param_shardings: dict) -> State:
    """Where everything of a state rests: moments and the average where their parameters do, the rest everywhere.

    `state` may be shapes and dtypes alone.
    """
    everywhere = NamedSharding(jax.tree.leaves(param_shardings)[0].mesh, PartitionSpec())
    moments = optax.tree.map_params(
        optimize.transform,
        lambda _, place: place,
        state.moments,
        param_shardings,
        transform_non_params=lambda _: everywhere,
    )
    normal = jax.tree.map(lambda _: everywhere, state.normal)
    return State(everywhere, param_shardings, moments, None if state.average is None else param_shardings, normal)


def make(
    loss: Loss,
    optimize: optimizer.Optimizer,
    *,
    grad_accum_steps: int = 1,
    spike_guard: settings.SpikeGuard = settings.SpikeGuard(),  # noqa: B008 (frozen)
    ema_decay: float = 0.9999,
) -> Callable[[State, object], tuple[State, Sums]]:
    """`step(state, rows)` -> the next state and what is reported of this one; to be jitted with `state` donated.

    The gradient is that of the summed loss over the number of targets, over all microbatches: that of the whole batch,
    however its targets are spread. A step whose loss or gradient norm is not finite, or spikes, leaves everything but
    the counts as it was.
    """

    def step(state: State, rows) -> tuple[State, Sums]:
        total, num_targets, sums, gradients = _summed(loss, state.params, rows, grad_accum_steps)
        mean = total / jnp.maximum(num_targets, 1)
        gradients = jax.tree.map(lambda gradient: gradient / jnp.maximum(num_targets, 1), gradients)
        norm = optax.tree.norm(gradients)
        believed, normal = _look(spike_guard, state.normal, jnp.stack([mean, norm]))
        updates, moments = optimize.transform.update(gradients, state.moments, state.params)
        params = optax.apply_updates(state.params, updates)
        average = None
        if state.average is not None:
            average = optax.incremental_update(params, state.average, 1 - ema_decay)
        taken = (params, moments, average)
        params, moments, average = _where(believed, taken, (state.params, state.moments, state.average))
        # Updates count what they took alone, and so does their schedule.
        num_updates = state.step - state.normal.num_skipped
        reported = {"loss": mean} | {name: value / jnp.maximum(num_targets, 1) for name, value in sums.items()}
        reported |= {
            "learning_rate": jnp.asarray(optimize.learning_rate(num_updates), jnp.float32),
            "num_targets": num_targets,
            "gradient_norm": norm,
            "update_norm": optax.tree.norm(updates),
            "parameter_norm": optax.tree.norm(params),
            "skipped": ~believed,
            "num_skipped": normal.num_skipped,
            "num_skipped_in_a_row": normal.num_skipped_in_a_row,
        }
        return State(state.step + 1, params, moments, average, normal), reported

    return step


def _summed(loss: Loss, params: dict, rows, grad_accum_steps: int):
    """Loss, targets, sums and float32 gradients, each summed over the microbatches."""

    def one(params, rows):
        total, num_targets, sums = loss(params, rows)
        return total, (num_targets, sums)

    def gradient(rows):
        (total, (num_targets, sums)), gradients = jax.value_and_grad(one, has_aux=True)(params, rows)
        return total, num_targets, sums, jax.tree.map(lambda g: g.astype(jnp.float32), gradients)

    if grad_accum_steps == 1:
        return gradient(rows)
    parts = jax.tree.map(lambda x: split(x, grad_accum_steps), rows)
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, gradient(part)), None

    return jax.lax.scan(add, zeros, parts)[0]


def split(x: jax.Array, grad_accum_steps: int) -> jax.Array:
    """[B, ...] -> [microbatches, B / microbatches, ...], every n-th row together: no row leaves the device it is on.

    Raises: ValueError if the rows do not split evenly.
    """
    if x.shape[0] % grad_accum_steps:
        raise ValueError(
            f"{x.shape[0]} rows in a step do not split into {grad_accum_steps} microbatches; make the first a multiple "
            "of the second"
        )
    return jnp.swapaxes(x.reshape(-1, grad_accum_steps, *x.shape[1:]), 0, 1)


def _look(spike_guard: settings.SpikeGuard, normal: Normal, seen: Float[Array, "2"]) -> tuple[Bool[Array, ""], Normal]:
    """Whether to believe a step, and what to remember of it."""
    finite = jnp.all(jnp.isfinite(seen))
    too_far = seen > normal.mean + spike_guard.num_deviations * jnp.sqrt(normal.variance)
    believed = finite & ~((normal.num_seen >= spike_guard.num_steps_before) & jnp.any(too_far))
    # Of the first steps a plain mean, until it is longer than the memory.
    share = jnp.maximum(1 - spike_guard.memory, 1 / (normal.num_seen + 1))
    mean = normal.mean + share * (seen - normal.mean)
    variance = (1 - share) * (normal.variance + share * jnp.square(seen - normal.mean))
    skipped = (~believed).astype(jnp.int32)
    return believed, Normal(
        mean=jnp.where(believed, mean, normal.mean),
        variance=jnp.where(believed, variance, normal.variance),
        num_seen=normal.num_seen + 1 - skipped,
        num_skipped=normal.num_skipped + skipped,
        num_skipped_in_a_row=(normal.num_skipped_in_a_row + 1) * skipped,
    )


def _where(condition: jax.Array, yes, no):
    return jax.tree.map(lambda y, n: jnp.where(condition, y, n), yes, no)
