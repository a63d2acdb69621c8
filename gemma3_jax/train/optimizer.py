"""AdamW with a learning rate schedule, a clip by global norm and a mask of weight decay, from optax.

What a sweep changes, the schedule and the clip, are numbers that a compiled step takes as inputs.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from gemma3_jax.train import settings


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A transformation of gradients (float32, of the mean loss) into updates, and its learning rate."""

    hyperparameters: object  # a tree of numbers: inputs of a step, so that others compile nothing
    transform_of: Callable[[object], optax.GradientTransformation]  # of the hyperparameters
    learning_rate: Callable[[object, jax.Array | int], jax.Array]  # of these and the number of the update, from 0

    @property
    def transform(self) -> optax.GradientTransformation:
        """With its hyperparameters as constants."""
        return self.transform_of(self.hyperparameters)


class AdamWHyperparameters(NamedTuple):
    """The schedule and the clip of AdamW, in float32, which counts updates exactly up to 2**24."""

    peak_lr: np.float32
    final_lr: np.float32
    warmup_steps: np.float32
    decay_start: np.float32  # the number of the last update with peak_lr
    decay_steps: np.float32  # from there to final_lr
    is_cosine: np.float32  # 1; 0: linear
    clip_norm: np.float32


def hyperparameters(adamw: settings.AdamW, num_steps: int) -> AdamWHyperparameters:
    """Returns the numbers of a stage of `num_steps` steps. A warm-up of n steps begins with 1/n of the peak.

    Raises: ValueError if warm-up and decay are longer than the stage.
    """
    adamw.check_fits(num_steps)
    at_end = adamw.decay == "constant"
    decay_start = num_steps - adamw.decay_steps if at_end else adamw.warmup_steps
    fraction = adamw.final_lr_fraction if adamw.decay_steps or not at_end else 1.0
    numbers = {
        "peak_lr": adamw.peak_lr,
        "final_lr": adamw.peak_lr * fraction,
        "warmup_steps": adamw.warmup_steps,
        "decay_start": decay_start,
        "decay_steps": max(1, num_steps - decay_start),
        "is_cosine": adamw.decay == "cosine",
        "clip_norm": adamw.clip_norm,
    }
    return AdamWHyperparameters(**{name: np.float32(number) for name, number in numbers.items()})


def learning_rate(numbers: AdamWHyperparameters, update: Int[Array, ""] | int) -> Float[Array, ""]:
    """Returns the learning rate of an update, from 0: warm-up, peak, and cosine or linear decay."""
    number = jnp.asarray(update, jnp.float32)
    warming = numbers.peak_lr * (number + 1) / jnp.maximum(numbers.warmup_steps, 1)
    progress = jnp.clip((number - numbers.decay_start) / numbers.decay_steps, 0, 1)
    left = jnp.where(numbers.is_cosine > 0, (1 + jnp.cos(jnp.pi * progress)) / 2, 1 - progress)
    after = numbers.final_lr + (numbers.peak_lr - numbers.final_lr) * left
    return jnp.where(number < numbers.warmup_steps, warming, after)


def make(adamw: settings.AdamW, num_steps: int) -> Optimizer:
    """Returns the optimizer of a stage of `num_steps` steps.

    Raises: ValueError if warm-up and decay are longer than the stage.
    """

    def transform_of(numbers: AdamWHyperparameters) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(numbers.clip_norm),
            optax.scale_by_adam(adamw.beta1, adamw.beta2, adamw.epsilon, mu_dtype=adamw.first_moment_dtype),
            optax.add_decayed_weights(adamw.weight_decay, mask=lambda params: decayed(params, adamw.no_decay)),
            optax.scale_by_learning_rate(functools.partial(learning_rate, numbers)),
        )

    return Optimizer(hyperparameters(adamw, num_steps), transform_of, learning_rate)


def decayed(params: dict, patterns: tuple[str, ...]) -> dict:
    """Returns a tree of bools: True for parameters with weight decay, whose path matches none of the patterns."""

    def is_decayed(path, _) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return not any(re.search(pattern, name) for pattern in patterns)

    return jax.tree_util.tree_map_with_path(is_decayed, params)
