"""AdamW with a learning rate schedule, a clip by global norm and a mask of weight decay, from optax."""

import dataclasses
import re

import jax
import optax

from gemma3_jax.train import settings


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A transformation of gradients (float32, of the mean loss) into updates, and its learning rate."""

    transform: optax.GradientTransformation
    learning_rate: optax.Schedule  # number of the update, from 0 -> learning rate


def schedule(adamw: settings.AdamW, num_steps: int) -> optax.Schedule:
    """Returns the learning rate by step, from 0. A warm-up of n steps begins with 1/n of the peak and ends with it.

    Raises: ValueError if warm-up and decay are longer than `num_steps`.
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
    """Returns the optimizer of a stage of `num_steps` steps.

    Raises: ValueError if warm-up and decay are longer than the stage.
    """
    learning_rate = schedule(adamw, num_steps)
    transform = optax.chain(
        optax.clip_by_global_norm(adamw.clip_norm),
        optax.scale_by_adam(adamw.beta1, adamw.beta2, adamw.epsilon, mu_dtype=adamw.first_moment_dtype),
        optax.add_decayed_weights(adamw.weight_decay, mask=lambda params: decayed(params, adamw.no_decay)),
        optax.scale_by_learning_rate(learning_rate),
    )
    return Optimizer(transform, learning_rate)


def decayed(params: dict, patterns: tuple[str, ...]) -> dict:
    """Returns a tree of bools: True for parameters with weight decay, whose path matches none of the patterns."""

    def is_decayed(path, _) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return not any(re.search(pattern, name) for pattern in patterns)

    return jax.tree_util.tree_map_with_path(is_decayed, params)
