"""Walks the stages of a recipe in one run directory: goes on where the run was, and from each stage to the next."""

import itertools
from collections.abc import Mapping, Sequence

from gemma3_jax.train import loop, stage, step


def offsets(legs: Sequence[stage.Leg]) -> list[int]:
    """Steps of the run before each leg, and of all of them."""
    return [0, *itertools.accumulate(leg.num_steps for leg in legs)]


def position(legs: Sequence[stage.Leg], global_step: int, cursor: Mapping, meta: Mapping) -> int:
    """Which leg a checkpoint is of: what it says of itself has to agree with the legs there are now.

    Raises: ValueError that names both values.
    """
    names = [leg.name for leg in legs]
    if meta["stage"] not in names:
        raise ValueError(
            f"the checkpoint of step {global_step} is of stage {meta['stage']}, which config.stage_order does not have "
            f"(it has {', '.join(names)}); restore config.stage_order, or choose another --workdir"
        )
    index = names.index(meta["stage"])
    leg, first = legs[index], offsets(legs)[index]
    if first + meta["step"] != global_step or meta["step"] > leg.num_steps:
        raise ValueError(
            f"the checkpoint of step {global_step} is of step {meta['step']} of {leg.name}, which now has "
            f"{leg.num_steps} steps and {first} before it; restore num_steps of the stages, or choose another --workdir"
        )
    for field, value in leg.identity.items():
        if meta.get(field) != value:
            raise ValueError(
                f"{field} of the checkpoint of step {global_step} is {meta.get(field)}, but the config says {value}; "
                "restore it, or choose another --workdir"
            )
    leg.check_cursor(cursor)
    return index


def run(
    legs: Sequence[stage.Leg],
    state: step.State,
    crew: loop.Crew,
    *,
    first: int,
    last: int,
) -> step.State:
    """Takes the legs from number `first`, which `state` is of, to number `last`; returns the state after the last step.

    Raises: as `loop.run`.
    """
    before = offsets(legs)
    tokens = [0, *itertools.accumulate(leg.num_steps * leg.tokens_per_step for leg in legs)]
    for number in range(first, last + 1):
        leg = legs[number]
        if number > first:
            params, state = state.params, None  # the optimizer's state goes before the next one comes
            state = leg.begin(params)
        state = loop.run(leg, state, steps_before=before[number], tokens_before=tokens[number], crew=crew)
    return state
