"""The teacher at work: from rows of tokens to the targets that its student learns from."""

import dataclasses
import functools
from collections.abc import Callable

import jax

from gemma3_jax.distill import settings, targets
from gemma3_jax.losses import vocab_parallel
from gemma3_jax.model import config, execution, masks, parameters


def make(
    model: config.Config, execute: execution.Execution, *, samples: settings.Samples, seed: int
) -> Callable[[dict, object], targets.Targets | targets.Whole]:
    """`(the teacher's parameters, rows) -> targets`, to be traced with a mesh set or without one.

    `rows` has tokens, labels, segments, positions and numbers, each [B, T].
    """
    execute = dataclasses.replace(execute, remat="none")  # nothing is differentiated

    def teach(params, rows):
        with jax.named_scope("teacher"):
            transformer = parameters.bind(model, params)
            hidden = transformer(rows.tokens, masks.Places(rows.segments, rows.positions), execute=execute)
            if samples.estimator == settings.WHOLE:
                return targets.Whole(hidden, params["embedder"]["table"])
            # The place in the row, not in the document, which comes again in a row.
            places = jax.lax.broadcasted_iota(rows.numbers.dtype, rows.numbers.shape, 1)
            draw = functools.partial(targets.draw, samples=samples, seed=seed)
            table = params["embedder"]["table"]
            return vocab_parallel.of_logits(draw, hidden, table, rows.labels, rows.numbers, places)

    return teach
