"""The teacher's forward pass: from rows of tokens to soft targets for a student."""

import dataclasses
import functools
from collections.abc import Callable

import jax

from gemma3_jax import sharding
from gemma3_jax.distill import lists, noise, online, settings, targets
from gemma3_jax.losses import cross_entropy, drawn_targets, soft_targets, vocab_parallel
from gemma3_jax.model import config, execution, masks, parameters


def make(
    model: config.Config, execute: execution.Execution, *, samples: settings.Samples, in_loss: bool = False
) -> Callable[[dict, object, noise.Seed], cross_entropy.Targets]:
    """Returns teach(params, rows, seed) -> targets, which can be traced with a mesh set or without one.

    `rows` has tokens, labels, segments, positions and row_ids, each [B, T]. Draws are a function of the seed, the row's
    id in the stage, and the position in the row (not in the document), so a restart draws the same again. Targets are
    lists of ids and weights, which can be stored; with `in_loss` the loss draws them on TPUs chunk by chunk where
    online.py can, without a list of ids.
    """
    execute = dataclasses.replace(execute, remat="none")  # nothing is differentiated

    def teach(params, rows, seed):
        with jax.named_scope("teacher"):
            transformer = parameters.bind(model, params)
            hidden = transformer(rows.tokens, masks.TokenLayout(rows.segments, rows.positions), execute=execute)
            if samples.estimator == settings.WHOLE:
                return soft_targets.DenseTargets(hidden, params["embedder"]["table"])
            table = params["embedder"]["table"]
            # Positions in the row: those in a document come again in the same row.
            row_positions = jax.lax.broadcasted_iota(rows.row_ids.dtype, rows.row_ids.shape, 1)
            words = noise.token_words(seed, rows.row_ids, row_positions)
            # By TPU kernels. On two CPU cores a loss over 262,144 ids takes 2.5 x as long so as with lists of ids.
            if in_loss and sharding.platform() == "tpu" and online.draws(samples, table.shape[0]):
                draw = functools.partial(online.draw, samples=samples)
                return drawn_targets.DrawnTargets(hidden, table, words, jax.tree_util.Partial(draw))
            by_kernel = sharding.platform() == "tpu" and lists.draws(samples, table.shape[0])
            draw = functools.partial(lists.draw if by_kernel else targets.draw, samples=samples)
            return vocab_parallel.map_logits(draw, hidden, table, rows.labels, words)

    return teach
