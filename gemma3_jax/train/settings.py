"""What training can be told, whatever is trained: fields with their units. Importing this loads nothing heavy."""

import dataclasses
import math

DECAYS = ("cosine", "linear", "constant")
MOMENT_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """The optimizer of a stage, and the learning rate over its steps."""

    peak_lr: float = 3e-4
    warmup_steps: int = 0
    decay: str = "cosine"  # over the steps after the warm-up; linear; constant, which falls in its last decay_steps
    decay_steps: int = 0  # of "constant" alone: the last so many steps fall linearly to the final rate
    final_lr_fraction: float = 0.1  # of the peak rate, at the end
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    no_decay: tuple[str, ...] = ("norm/", "embedder/")  # regular expressions, looked for in a parameter's path a/b/c
    clip_norm: float = 1.0  # a longer gradient is cut to this length
    first_moment_dtype: str = "float32"  # the second one keeps float32: its small numbers would vanish in 8 bits

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
        if self.decay_steps and self.decay != "constant":
            raise ValueError(f"decay_steps is {self.decay_steps}, which only decay 'constant' uses, not {self.decay!r}")

    def check_fits(self, num_steps: int) -> None:
        """Raises: ValueError if the warm-up and the last decay are longer than the stage."""
        if self.warmup_steps + self.decay_steps > num_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and decay_steps {self.decay_steps} do not fit into the stage's "
                f"{num_steps} steps"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpikeGuard:
    """When a step's loss or gradient norm is too far from those before it to be believed, and when to give up."""

    num_deviations: float = 6.0  # standard, above the running mean; inf: only what is not finite is refused
    memory: float = 0.98  # share of the running mean and variance that a step keeps
    num_steps_before: int = 100  # believed steps to know them by, before any is refused for its size
    max_skipped_in_a_row: int = 10  # as many steps that are not believed, one after the other, end the run

    def __post_init__(self):
        if not self.num_deviations > 0 or not 0 < self.memory < 1 or self.num_steps_before < 0:
            raise ValueError(
                f"num_deviations {self.num_deviations}, memory {self.memory}, num_steps_before "
                f"{self.num_steps_before}; "
                "they must be over 0, between 0 and 1, and at least 0"
            )
        if self.max_skipped_in_a_row < 1:
            raise ValueError(f"max_skipped_in_a_row is {self.max_skipped_in_a_row}; it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When to save, beside the end of every stage, and what to keep."""

    every_steps: int = 1_000  # 0: by time alone
    every_minutes: float = 0.0  # 0: by steps alone; process 0 has the clock
    keep_last: int = 3
    keep_every_steps: int = 0  # checkpoints of every n-th step are kept for good, as a stage's last is; 0: none
    max_failures: int = 3  # saves in a row; each failed one is tried again when the next is due

    def __post_init__(self):
        for name, least in (("every_steps", 0), ("every_minutes", 0), ("keep_last", 1), ("keep_every_steps", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.max_failures < 1:
            raise ValueError(f"max_failures is {self.max_failures}; it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Seconds after which a phase counts as hung: all stacks are written, and the process ends with status 124.

    Generous, as a deadline that is too short ends a run that is well; 0: none.
    """

    start_up: float = 3_600.0  # from the first line to the first batch, restoring included
    compile: float = 7_200.0
    step: float = 1_800.0  # waiting for data included
    save: float = 3_600.0  # in the background too
    evaluate: float = 3_600.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) < math.inf:
                raise ValueError(f"{field.name} is {getattr(self, field.name)} seconds; it must be at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
    """Where the numbers go; metrics.jsonl always."""

    every_steps: int = 1
    tensorboard: bool = True
    wandb_project: str = ""  # empty: none; needs the extra [wandb]

    def __post_init__(self):
        if self.every_steps < 1:
            raise ValueError(f"every_steps is {self.every_steps}; it must be at least 1")
