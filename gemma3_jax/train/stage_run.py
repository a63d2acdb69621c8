"""What a run adds to the program of a stage: its data's position, what identifies it, frozen parameters, evaluation."""

import dataclasses
from collections.abc import Callable, Mapping

from gemma3_jax.train import program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluation during training."""

    every_steps: int  # and after the last one
    begin: Callable[[dict], Callable[[dict], dict[str, float]]]  # frozen parameters -> (parameters -> results)

    def is_due(self, done: int, num_steps: int) -> bool:
        return done % self.every_steps == 0 or done == num_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRun:
    """A stage in a run directory."""

    program: program.Program
    load_frozen: Callable[[], dict]  # the arrays of the stage's frozen parameters, by role
    cursor: Callable[[int], dict]  # the position in the data before a step, as a checkpoint stores it
    check_cursor: Callable[[Mapping], None]  # raises ValueError if the data has changed
    compat_keys: Mapping[str, str]  # what a checkpoint has to agree in: field -> value
    checkpoint_metadata: Mapping  # the model's fields and the tokenizer's digest, for readers of a single checkpoint
    extra_files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)  # that users of a checkpoint need
    evaluation: Evaluation | None = None
    keep_initial_checkpoint: bool = False  # the checkpoint it begins with is read again while it trains

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def num_steps(self) -> int:
        return self.program.num_steps
