"""Config fields of training that do not depend on the model, with defaults and units. Imports nothing heavy."""

import dataclasses
import math
import re

DECAYS = ("cosine", "linear", "constant")
MOMENT_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """The optimizer of a stage and its learning rate schedule."""

    peak_lr: float = 3e-4  # 0: by the width of the model, if the run has init_from
    warmup_steps: int = 0  # over which the learning rate rises linearly to peak_lr
    warmup_fraction: float = 0.0  # of num_steps, if warmup_steps is 0
    decay: str = "cosine"  # after the warm-up: cosine, linear, or constant up to the last decay_steps
    decay_steps: int = 0  # of decay "constant": length of the linear decay at the end
    final_lr_fraction: float = 0.1  # learning rate at the end, as a fraction of peak_lr
    beta1: float = 0.9  # decay of the first moment
    beta2: float = 0.95  # decay of the second moment
    epsilon: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.1  # times the learning rate, of the parameters that no_decay does not match
    no_decay: tuple[str, ...] = ("norm/", "embedder/")  # regular expressions, searched in the path a/b/c of a parameter
    clip_norm: float = 1.0  # largest global norm of a gradient
    first_moment_dtype: str = "float32"  # the second moment is float32: bfloat16 would lose its small updates

    def __post_init__(self):
        for name, allowed in (("decay", DECAYS), ("first_moment_dtype", MOMENT_DTYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        for name in ("peak_lr", "clip_norm", "epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be over 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and under 1")
        for name in ("warmup_steps", "decay_steps", "weight_decay", "final_lr_fraction"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 <= self.warmup_fraction <= 1:
            raise ValueError(f"warmup_fraction is {self.warmup_fraction}; it must be from 0 to 1")
        for pattern in self.no_decay:
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(f"no_decay has {pattern!r}, which is not a regular expression: {error}") from error
        if self.decay_steps and self.decay != "constant":
            raise ValueError(f"decay_steps is {self.decay_steps}, but decay is {self.decay!r}; it must be 'constant'")

    def check_fits(self, num_steps: int) -> None:
        """Raises: ValueError if warm-up and final decay are longer than the stage."""
        if self.warmup_steps + self.decay_steps > num_steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps} and decay_steps {self.decay_steps}; their sum must be at most "
                f"num_steps, {num_steps}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpikeGuard:
    """When to skip a step whose loss or gradient norm is not finite or spikes, and when to end the run."""

    # Standard deviations above the running mean; inf: skip only if not finite.
    num_deviations: float = dataclasses.field(default=6.0, metadata={"may_be_infinite": True})
    memory: float = 0.98  # decay of the running mean and variance at each step
    num_steps_before: int = 100  # accepted steps before a spike can be skipped
    max_skipped_in_a_row: int = 10  # skipped steps in a row that end the run

    def __post_init__(self):
        if not self.num_deviations > 0 or not 0 < self.memory < 1 or self.num_steps_before < 0:
            raise ValueError(
                f"num_deviations is {self.num_deviations}, memory {self.memory}, num_steps_before "
                f"{self.num_steps_before}; they must be over 0, between 0 and 1, and at least 0"
            )
        if self.max_skipped_in_a_row < 1:
            raise ValueError(f"max_skipped_in_a_row is {self.max_skipped_in_a_row}; it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When to save in addition to the end of a stage, which is always saved, and which checkpoints to retain."""

    every_steps: int = 1_000  # 0: by time alone
    every_minutes: float = 10.0  # since the last one began, by the clock of process 0; 0: by steps alone
    keep_last: int = 3  # newest checkpoints to retain
    keep_every_steps: int = 0  # also retain those of every n-th step; 0: none. The last of a stage is always retained
    max_failures: int = 3  # failed saves in a row that end the run; a save is tried again when the next is due

    def __post_init__(self):
        for name, least in (("every_steps", 0), ("every_minutes", 0), ("keep_last", 1), ("keep_every_steps", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.max_failures < 1:
            raise ValueError(f"max_failures is {self.max_failures}; it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Seconds after which a phase counts as hung; 0: never. All stacks are written and the process exits with 124.

    The defaults are long, as a deadline that is too short ends a healthy run.
    """

    start_up: float = 3_600.0  # from the start to the first batch, including the restore
    compile: float = 7_200.0  # of a stage's first step
    step: float = 1_800.0  # including the wait for data
    save: float = 3_600.0  # including a save in the background
    evaluate: float = 3_600.0  # of one evaluation while a stage trains

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) < math.inf:
                raise ValueError(f"{field.name} is {getattr(self, field.name)} seconds; it must be at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
    """Where to log metrics, in addition to metrics.jsonl."""

    every_steps: int = 1  # steps from one row of metrics to the next
    tensorboard: bool = True  # the rows again, in WORKDIR/tensorboard
    wandb_project: str = ""  # empty: no wandb; needs the extra [wandb]

    def __post_init__(self):
        if self.every_steps < 1:
            raise ValueError(f"every_steps is {self.every_steps}; it must be at least 1")
