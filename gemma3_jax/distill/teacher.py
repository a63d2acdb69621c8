"""The teacher's forward pass: from rows of tokens to soft targets for a student."""

import dataclasses
import functools
from collections.abc import Callable

import jax

from gemma3_jax.distill import settings, targets
from gemma3_jax.losses import soft_targets, vocab_parallel
from gemma3_jax.model import config, execution, masks, parameters


def make(
    model: config.Config, execute: execution.Execution, *, samples: settings.Samples, seed: int
) -> Callable[[dict, object], soft_targets.SoftTargets]:
    """Returns teach(params, rows) -> soft targets, which can be traced with a mesh set or without one.

    `rows` has tokens, labels, segments, positions and row_ids, each [B, T].
    """
    execute = dataclasses.replace(execute, remat="none")  # nothing is differentiated

    def teach(params, rows):
        with jax.named_scope("teacher"):
            transformer = parameters.bind(model, params)
            hidden = transformer(rows.tokens, masks.TokenLayout(rows.segments, rows.positions), execute=execute)
            if samples.estimator == settings.WHOLE:
                return soft_targets.DenseTargets(hidden, params["embedder"]["table"])
            # Positions in the row: those in a document come again in the same row.
            row_positions = jax.lax.broadcasted_iota(rows.row_ids.dtype, rows.row_ids.shape, 1)
            draw = functools.partial(targets.draw, samples=samples, seed=seed)
            table = params["embedder"]["table"]
            return vocab_parallel.map_logits(draw, hidden, table, rows.labels, rows.row_ids, row_positions)

    return teach
