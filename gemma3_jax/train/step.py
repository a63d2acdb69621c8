"""One step: gradient accumulation, and an update that is applied only if the spike guard accepts it.

Knows neither the model nor the data: a loss is a function of parameters and a batch that returns sums.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gemma3_jax.train import optimizer, settings

# What is logged in addition to the loss, as sums over targets; "loss" replaces what is minimized, where they differ.
Sums = dict[str, jax.Array]
# loss(params, batch) -> (summed loss in nats, number of targets, sums)
Loss = Callable[[dict, object], tuple[jax.Array, jax.Array, Sums]]


class LossStats(NamedTuple):
    """Running mean and variance of (loss, gradient norm) over the accepted steps, for the spike guard."""

    mean: Float[Array, "2"]
    variance: Float[Array, "2"]
    num_seen: Int[Array, ""]
    num_skipped: Int[Array, ""]
    num_skipped_in_a_row: Int[Array, ""]


class State(NamedTuple):
    """All that a step changes; also a tree of its shapes, or of its shardings."""

    step: Int[Array, ""]  # steps of the stage, skipped ones too
    params: dict
    opt_state: object
    ema_params: dict | None  # exponential moving average of the parameters; None: there is none
    loss_stats: LossStats

    def other_parts(self) -> dict:
        """Returns all fields but the parameters, by name."""
        return {name: value for name, value in self._asdict().items() if name != "params"}


def init(params: dict, optimize: optimizer.Optimizer, *, ema: bool = False) -> State:
    """Returns the state before the first step."""
    counts = [jnp.zeros((), jnp.int32) for _ in range(4)]  # separate buffers, as each is donated
    loss_stats = LossStats(jnp.zeros(2), jnp.zeros(2), *counts[1:])
    ema_params = jax.tree.map(jnp.copy, params) if ema else None
    return State(counts[0], params, optimize.transform.init(params), ema_params, loss_stats)


def shardings(state: State, optimize: optimizer.Optimizer, param_shardings: dict) -> State:
    """Returns the shardings of a state: optimizer state and average as their parameters, the rest replicated.

    `state` may be shapes and dtypes alone.
    """
    replicated = NamedSharding(jax.tree.leaves(param_shardings)[0].mesh, PartitionSpec())
    opt_state = optax.tree.map_params(
        optimize.transform,
        lambda _, sharding: sharding,
        state.opt_state,
        param_shardings,
        transform_non_params=lambda _: replicated,
    )
    loss_stats = jax.tree.map(lambda _: replicated, state.loss_stats)
    ema_params = None if state.ema_params is None else param_shardings
    return State(replicated, param_shardings, opt_state, ema_params, loss_stats)


def make(
    loss: Loss,
    optimize: optimizer.Optimizer,
    *,
    grad_accum_steps: int = 1,
    spike_guard: settings.SpikeGuard = settings.SpikeGuard(),  # noqa: B008 (frozen)
    ema_decay: float = 0.9999,
) -> Callable[[State, object, object], tuple[State, Sums]]:
    """Returns `step(state, batch, hyperparameters) -> (next state, logged)`, to be jitted with `state` donated.

    The gradient is that of the summed loss over the number of targets in the whole batch, however the targets are
    spread over the parts that are accumulated. A step whose loss, gradient norm or update norm is not finite, or whose
    loss or gradient norm spikes, changes nothing but the counts.
    """

    def step(state: State, batch, hyperparameters) -> tuple[State, Sums]:
        transform = optimize.transform_of(hyperparameters)
        total, num_targets, sums, gradients = accumulate(loss, state.params, batch, grad_accum_steps)
        mean = total / jnp.maximum(num_targets, 1)
        gradients = jax.tree.map(lambda gradient: gradient / jnp.maximum(num_targets, 1), gradients)
        norm = optax.tree.norm(gradients)
        updates, opt_state = transform.update(gradients, state.opt_state, state.params)
        update_norm = optax.tree.norm(updates)
        accepted, loss_stats = check_spike(spike_guard, state.loss_stats, jnp.stack([mean, norm]), update_norm)
        params = optax.apply_updates(state.params, updates)
        ema_params = None
        if state.ema_params is not None:
            ema_params = optax.incremental_update(params, state.ema_params, 1 - ema_decay)
        updated = (params, opt_state, ema_params)
        params, opt_state, ema_params = _where(accepted, updated, (state.params, state.opt_state, state.ema_params))
        # Skipped steps do not count as updates, nor move the learning-rate schedule.
        num_updates = state.step - state.loss_stats.num_skipped
        logged = {"loss": mean} | {name: value / jnp.maximum(num_targets, 1) for name, value in sums.items()}
        logged |= {
            "learning_rate": jnp.asarray(optimize.learning_rate(hyperparameters, num_updates), jnp.float32),
            "num_targets": num_targets,
            "gradient_norm": norm,
            "update_norm": update_norm,
            "parameter_norm": optax.tree.norm(params),
            "skipped": ~accepted,
            "num_skipped": loss_stats.num_skipped,
            "num_skipped_in_a_row": loss_stats.num_skipped_in_a_row,
        }
        return State(state.step + 1, params, opt_state, ema_params, loss_stats), logged

    return step


def accumulate(loss: Loss, params: dict, batch, grad_accum_steps: int):
    """Returns loss, number of targets, sums and float32 gradients, each summed over the parts of the batch."""

    def one(params, batch):
        total, num_targets, sums = loss(params, batch)
        return total, (num_targets, sums)

    def gradient(batch):
        (total, (num_targets, sums)), gradients = jax.value_and_grad(one, has_aux=True)(params, batch)
        return total, num_targets, sums, jax.tree.map(lambda g: g.astype(jnp.float32), gradients)

    if grad_accum_steps == 1:
        return gradient(batch)
    parts = jax.tree.map(lambda x: split(x, grad_accum_steps), batch)
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, gradient(part)), None

    return jax.lax.scan(add, zeros, parts)[0]


def split(x: jax.Array, num_parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]: every n-th sequence together, so that none leaves its device.

    Raises: ValueError if the batch does not split evenly.
    """
    if x.shape[0] % num_parts:
        raise ValueError(
            f"a batch of {x.shape[0]} sequences does not split into grad_accum_steps = {num_parts} parts; make the "
            "first a multiple of the second"
        )
    return jnp.swapaxes(x.reshape(-1, num_parts, *x.shape[1:]), 0, 1)


def check_spike(
    guard: settings.SpikeGuard, stats: LossStats, latest: Float[Array, "2"], update_norm: Float[Array, ""]
) -> tuple[Bool[Array, ""], LossStats]:
    """Returns whether (loss, gradient norm) of a step is accepted, and the statistics with it."""
    finite = jnp.all(jnp.isfinite(latest)) & jnp.isfinite(update_norm)
    too_far = latest > stats.mean + guard.num_deviations * jnp.sqrt(stats.variance)
    accepted = finite & ~((stats.num_seen >= guard.num_steps_before) & jnp.any(too_far))
    # A plain mean of the first steps, until it is longer than the memory.
    fraction = jnp.maximum(1 - guard.memory, 1 / (stats.num_seen + 1))
    mean = stats.mean + fraction * (latest - stats.mean)
    variance = (1 - fraction) * (stats.variance + fraction * jnp.square(latest - stats.mean))
    skipped = (~accepted).astype(jnp.int32)
    return accepted, LossStats(
        mean=jnp.where(accepted, mean, stats.mean),
        variance=jnp.where(accepted, variance, stats.variance),
        num_seen=stats.num_seen + 1 - skipped,
        num_skipped=stats.num_skipped + skipped,
        num_skipped_in_a_row=(stats.num_skipped_in_a_row + 1) * skipped,
    )


def _where(condition: jax.Array, yes, no):
    return jax.tree.map(lambda y, n: jnp.where(condition, y, n), yes, no)
