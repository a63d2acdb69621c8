"""One step: gradients summed over microbatches, and an update that is taken only if nothing is wrong with it.

Knows neither the model nor the data: a loss is a function of parameters and rows that returns sums.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

Sums = dict[str, jax.Array]  # what is reported, summed as the loss is
# (parameters, rows) -> (summed loss in nats, number of targets, sums of what is reported beside it)
Loss = Callable[[dict, object], tuple[jax.Array, jax.Array, Sums]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch:
    """When a step's loss or gradient norm is too far from those before it to be believed."""

    num_deviations: float = 6.0  # standard above the running mean; infinity: only what is not finite is refused
    memory: float = 0.98  # share of the running mean and variance that a step keeps
    num_steps_before: int = 100  # believed steps to know them by, before any is refused for its size


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Normal:
    """What the watch has seen: running mean and variance of (loss, gradient norm), over the steps it believed."""

    mean: Float[Array, "2"]
    variance: Float[Array, "2"]
    num_seen: Int[Array, ""]
    num_skipped: Int[Array, ""]
    num_skipped_in_a_row: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that a step changes."""

    step: Int[Array, ""]  # steps of the stage, skipped ones too
    params: dict
    moments: object  # of the optimizer
    average: dict | None  # of the parameters, exponential; None: not kept
    normal: Normal


def init(params: dict, optimizer: optax.GradientTransformation, *, average: bool = False) -> State:
    """The state before the first step."""
    counts = [jnp.zeros((), jnp.int32) for _ in range(4)]  # buffers of their own, as each is donated
    normal = Normal(jnp.zeros(2), jnp.zeros(2), *counts[1:])
    kept = jax.tree.map(jnp.copy, params) if average else None
    return State(counts[0], params, optimizer.init(params), kept, normal)


def make(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    num_microbatches: int = 1,
    watch: Watch = Watch(),  # noqa: B008 (frozen)
    average_decay: float = 0.9999,
) -> Callable[[State, object], tuple[State, Sums]]:
    """`step(state, rows)` -> the next state and what is reported of this one; to be jitted with `state` donated.

    The gradient is that of the summed loss over the number of targets, over all microbatches: that of the whole batch,
    however its targets are spread. A step whose loss or gradient norm is not finite, or spikes, leaves everything but
    the counts as it was.
    """

    def step(state: State, rows) -> tuple[State, Sums]:
        total, num_targets, sums, gradients = _summed(loss, state.params, rows, num_microbatches)
        mean = total / jnp.maximum(num_targets, 1)
        gradients = jax.tree.map(lambda gradient: gradient / jnp.maximum(num_targets, 1), gradients)
        norm = optax.tree.norm(gradients)
        believed, normal = _look(watch, state.normal, jnp.stack([mean, norm]))
        updates, moments = optimizer.update(gradients, state.moments, state.params)
        params = optax.apply_updates(state.params, updates)
        average = None
        if state.average is not None:
            average = optax.incremental_update(params, state.average, 1 - average_decay)
        taken = (params, moments, average)
        params, moments, average = _where(believed, taken, (state.params, state.moments, state.average))
        reported = {name: value / jnp.maximum(num_targets, 1) for name, value in sums.items()}
        reported |= {
            "loss": mean,
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


def _summed(loss: Loss, params: dict, rows, num_microbatches: int):
    """Loss, targets, sums and float32 gradients, each summed over the microbatches."""

    def one(params, rows):
        total, num_targets, sums = loss(params, rows)
        return total, (num_targets, sums)

    def gradient(rows):
        (total, (num_targets, sums)), gradients = jax.value_and_grad(one, has_aux=True)(params, rows)
        return total, num_targets, sums, jax.tree.map(lambda g: g.astype(jnp.float32), gradients)

    if num_microbatches == 1:
        return gradient(rows)
    parts = jax.tree.map(lambda x: split(x, num_microbatches), rows)
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, gradient(part)), None

    return jax.lax.scan(add, zeros, parts)[0]


def split(x: jax.Array, num_microbatches: int) -> jax.Array:
    """[B, ...] -> [microbatches, B / microbatches, ...], every n-th row together: no row leaves the device it is on.

    Raises: ValueError if the rows do not split evenly.
    """
    if x.shape[0] % num_microbatches:
        raise ValueError(
            f"{x.shape[0]} rows in a step do not split into {num_microbatches} microbatches; make the first a multiple "
            "of the second"
        )
    return jnp.swapaxes(x.reshape(-1, num_microbatches, *x.shape[1:]), 0, 1)


def _look(watch: Watch, normal: Normal, seen: Float[Array, "2"]) -> tuple[Bool[Array, ""], Normal]:
    """Whether to believe a step, and what to remember of it."""
    finite = jnp.all(jnp.isfinite(seen))
    too_far = seen > normal.mean + watch.num_deviations * jnp.sqrt(normal.variance)
    believed = finite & ~((normal.num_seen >= watch.num_steps_before) & jnp.any(too_far))
    # Of the first steps a plain mean, until it is longer than the memory.
    share = jnp.maximum(1 - watch.memory, 1 / (normal.num_seen + 1))
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
