"""AdamW and its schedule, from optax: warm-up and decay, a clip by the global norm, weights that do not decay."""

import dataclasses
import re

import jax
import optax

DECAYS = ("cosine", "linear", "constant")
MOMENT_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """The optimizer of a stage."""

    peak_rate: float
    num_steps: int  # of the stage; the schedule ends there
    warmup_steps: int = 0
    decay: str = "cosine"
    decay_steps: int = 0  # the last so many steps of "constant", which fall linearly to the final rate
    final_share: float = 0.1  # of the peak rate, at the end
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    not_decayed: tuple[str, ...] = ("norm/", "embedder/")  # regular expressions, looked for in a parameter's path a/b/c
    max_gradient_norm: float = 1.0
    first_moment_dtype: str = "float32"  # the second one keeps float32: its small numbers would vanish in 8 bits

    def __post_init__(self):
        for name, allowed in (("decay", DECAYS), ("first_moment_dtype", MOMENT_DTYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        if self.num_steps < 1 or not 0 <= self.warmup_steps + self.decay_steps <= self.num_steps:
            raise ValueError(
                f"optimizer.warmup_steps {self.warmup_steps} and decay_steps {self.decay_steps} do not fit into the "
                f"stage's {self.num_steps} steps"
            )
        for name in ("peak_rate", "max_gradient_norm", "epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it must be over 0")


def schedule(settings: AdamW) -> optax.Schedule:
    """Learning rate of step 0, 1, ...: the first step of a warm-up of n takes 1/n of the peak, the n-th all of it."""
    peak, final = settings.peak_rate, settings.peak_rate * settings.final_share
    num_after = settings.num_steps - settings.warmup_steps
    if settings.decay == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, num_after), alpha=settings.final_share)
    elif settings.decay == "linear":
        after = optax.linear_schedule(peak, final, max(1, num_after))
    else:
        after = optax.linear_schedule(peak, final, settings.decay_steps, num_after - settings.decay_steps)
    first = peak / max(1, settings.warmup_steps)
    warmup = optax.linear_schedule(first, peak, max(1, settings.warmup_steps - 1))
    return optax.join_schedules([warmup, after], [settings.warmup_steps])


def make(settings: AdamW) -> optax.GradientTransformation:
    """The transformation of gradients (float32, of the mean loss) into updates."""
    return optax.chain(
        optax.clip_by_global_norm(settings.max_gradient_norm),
        optax.scale_by_adam(settings.beta1, settings.beta2, settings.epsilon, mu_dtype=settings.first_moment_dtype),
        optax.add_decayed_weights(settings.weight_decay, mask=lambda params: decayed(params, settings.not_decayed)),
        optax.scale_by_learning_rate(schedule(settings)),
    )


def decayed(params: dict, patterns: tuple[str, ...]) -> dict:
    """True for each parameter whose path holds none of the patterns."""

    def is_decayed(path, _) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return not any(re.search(pattern, name) for pattern in patterns)

    return jax.tree_util.tree_map_with_path(is_decayed, params)
