"""Runs the stages of a recipe in one run directory: finds the stage of a checkpoint, and goes from each to the next."""

import itertools
from collections.abc import Mapping, Sequence

from gemma3_jax.train import loop, stage_run, step


def offsets(stages: Sequence[stage_run.StageRun]) -> list[int]:
    """Returns the steps of the run before each stage, and of all of them."""
    return [0, *itertools.accumulate(stage.num_steps for stage in stages)]


def position(stages: Sequence[stage_run.StageRun], global_step: int, cursor: Mapping, meta: Mapping) -> int:
    """Returns the number of the stage that a checkpoint belongs to, once its metadata agrees with the stages.

    Raises: ValueError that names both values.
    """
    names = [stage.name for stage in stages]
    if meta["stage"] not in names:
        raise ValueError(
            f"the checkpoint of step {global_step} is of stage {meta['stage']}, which config.stage_order does not have "
            f"(it has {', '.join(names)}); restore config.stage_order, or choose another --workdir"
        )
    index = names.index(meta["stage"])
    stage, first = stages[index], offsets(stages)[index]
    if first + meta["step"] != global_step or meta["step"] > stage.num_steps:
        raise ValueError(
            f"the checkpoint of step {global_step} is of step {meta['step']} of {stage.name}, which now has "
            f"{stage.num_steps} steps and {first} before it; restore num_steps of the stages, or choose another "
            "--workdir"
        )
    for field, value in stage.compat_keys.items():
        stored = meta.get(field, "none")  # which checkpoints from before there was such a field do not say
        if stored != value:
            raise ValueError(
                f"{field} of the checkpoint of step {global_step} is {stored}, but the config says {value}; "
                "restore it, or choose another --workdir"
            )
    stage.check_cursor(cursor)
    return index


def run(
    stages: Sequence[stage_run.StageRun], state: step.State, services: loop.Services, *, first: int, last: int
) -> step.State:
    """Runs the stages from number `first`, which `state` belongs to, to number `last`. Returns the last state.

    Raises: as `loop.run`.
    """
    before = offsets(stages)
    tokens = [0, *itertools.accumulate(stage.num_steps * stage.program.tokens_per_step for stage in stages)]
    for number in range(first, last + 1):
        stage = stages[number]
        if number > first:
            params, state = state.params, None  # frees the optimizer state before the next one is made
            state = stage.program.begin(params)
        state = loop.run(stage, state, steps_before=before[number], tokens_before=tokens[number], services=services)
    return state
