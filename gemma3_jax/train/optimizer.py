"""AdamW and its schedule, from optax: warm-up and decay, a clip by the global norm, weights that do not decay."""

import dataclasses
import re

import jax
import optax

from gemma3_jax.train import settings


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A transformation of gradients (float32, of the mean loss) into updates, and the rate it takes them at."""

    transform: optax.GradientTransformation
    learning_rate: optax.Schedule  # of update 0, 1, ...


def schedule(adamw: settings.AdamW, num_steps: int) -> optax.Schedule:
    """Learning rate of step 0, 1, ...: the first step of a warm-up of n takes 1/n of the peak, the n-th all of it.

    Raises: ValueError if warm-up and decay do not fit into so many steps.
    """
    adamw.check_fits(num_steps)
    peak, final = adamw.peak_lr, adamw.peak_lr * adamw.final_lr_fraction
    num_after = num_steps - adamw.warmup_steps
    if adamw.decay == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, num_after), alpha=adamw.final_lr_fraction)
    elif adamw.decay == "linear":
        after = optax.linear_schedule(peak, final, max(1, num_after))
    else:
        after = optax.linear_schedule(peak, final, adamw.decay_steps, num_after - adamw.decay_steps)
    first = peak / max(1, adamw.warmup_steps)
    warmup = optax.linear_schedule(first, peak, max(1, adamw.warmup_steps - 1))
    return optax.join_schedules([warmup, after], [adamw.warmup_steps])


def make(adamw: settings.AdamW, num_steps: int) -> Optimizer:
    """Raises: ValueError as `schedule` does."""
    learning_rate = schedule(adamw, num_steps)
    transform = optax.chain(
        optax.clip_by_global_norm(adamw.clip_norm),
        optax.scale_by_adam(adamw.beta1, adamw.beta2, adamw.epsilon, mu_dtype=adamw.first_moment_dtype),
        optax.add_decayed_weights(adamw.weight_decay, mask=lambda params: decayed(params, adamw.no_decay)),
        optax.scale_by_learning_rate(learning_rate),
    )
    return Optimizer(transform, learning_rate)


def decayed(params: dict, patterns: tuple[str, ...]) -> dict:
    """True for each parameter whose path holds none of the patterns."""

    def is_decayed(path, _) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return not any(re.search(pattern, name) for pattern in patterns)

    return jax.tree_util.tree_map_with_path(is_decayed, params)
