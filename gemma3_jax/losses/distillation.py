"""Distillation: cross-entropy of the student against a teacher's distribution over the next token."""

from collections.abc import Callable, Mapping

import numpy as np

from gemma3_jax.losses import cross_entropy, forward, soft_targets
from gemma3_jax.model import config, execution

REPORTED = ("loss", "cross_entropy", "captured_mass", "teacher_cross_entropy", "agreement")


def make(
    model: config.Config,
    execute: execution.Execution,
    *,
    num_bytes: np.ndarray,
    temperature: float,
    knows_kl: bool,
    hard_label_weight: float = 0.0,
    z_loss: float = 0.0,
    targets_of: Callable[[Mapping[str, object], object], cross_entropy.Targets],
) -> forward.Loss:
    """Returns loss(params, frozen, batch) against the soft targets `targets_of(frozen, batch)`.

    `temperature` is that of the targets. `loss` is what is minimized without `z_loss` (see next_token.make). Sums also
    hold, over the masked tokens, `cross_entropy` of the student and `teacher_cross_entropy` (nats, of the label, at
    temperature 1), `captured_mass`, `agreement` and, if `knows_kl`, `kl_to_teacher` (nats, at `temperature`): pass True
    if the targets are exact or unbiased.
    """

    def loss(params, frozen, batch):
        rows = rows_of(batch)
        hidden, table = forward.hidden_states(model, execute, params, rows), params["embedder"]["table"]
        total, sums = cross_entropy.cross_entropy_sum(
            hidden,
            table,
            rows.labels,
            rows.loss_mask,
            targets_of(frozen, batch),
            temperature=temperature,
            hard_label_weight=hard_label_weight,
            z_loss=z_loss,
        )
        reported = {name: sums[name] for name in REPORTED}
        if knows_kl:
            reported["kl_to_teacher"] = sums["soft_loss"] - sums["teacher_entropy"]
        num_targets, num_target_bytes = forward.count_targets(rows, num_bytes)
        return total, num_targets, reported | {"bytes_per_target": num_target_bytes}

    return loss


def stored_targets(frozen: Mapping[str, object], batch) -> soft_targets.SparseTargets:
    """The targets that come with the batch: `targets_of` for targets stored on disk."""
    del frozen
    return batch.targets


def rows_of(batch):
    """The rows of a batch, with or without stored targets."""
    return batch.rows if hasattr(batch, "targets") else batch
