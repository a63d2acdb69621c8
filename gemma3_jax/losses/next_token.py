"""Next-token prediction: cross-entropy of the model against the labels of a batch."""

import numpy as np

from gemma3_jax.losses import cross_entropy, forward
from gemma3_jax.model import config, execution


def make(
    model: config.Config, execute: execution.Execution, *, num_bytes: np.ndarray, z_loss: float = 0.0
) -> forward.Loss:
    """Returns loss(params, frozen, batch); the batch is its rows, and nothing frozen is read.

    Rows have tokens, labels, loss_mask, segments and positions, each [B, T]; `num_bytes` is int32[V], the bytes of text
    of each id. `z_loss` weighs the squared log of the softmax's denominator, which is minimized but not part of the
    reported `loss` (PaLM, section 5: 1e-4).
    """

    def loss(params, frozen, batch):
        del frozen
        hidden, table = forward.hidden_states(model, execute, params, batch), params["embedder"]["table"]
        total, sums = cross_entropy.cross_entropy_sum(hidden, table, batch.labels, batch.loss_mask, None, z_loss=z_loss)
        num_targets, num_target_bytes = forward.count_targets(batch, num_bytes)
        return total, num_targets, {"loss": sums["loss"], "bytes_per_target": num_target_bytes}

    return loss
