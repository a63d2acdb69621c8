"""What a stage minimises: the cross-entropy of the next token, or of a teacher's word on it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gemma3_jax.distill import settings, targets
from gemma3_jax.losses import cross_entropy
from gemma3_jax.model import config, execution, masks, parameters

# (summed loss in nats, number of targets, sums of what is reported)
Result = tuple[jax.Array, jax.Array, dict[str, jax.Array]]


def next_token(
    model: config.Config, execute: execution.Execution, *, num_bytes: np.ndarray, z_loss: float = 0.0
) -> Callable[[dict, object], Result]:
    """(parameters, rows) -> summed cross-entropy (nats), number of targets, and sums of what is reported.

    `rows` has tokens, targets, loss_mask, segments and positions, each [B, T]; `num_bytes` is int32[V], the bytes of
    text that an id stands for. `z_loss` adds so much of the squared log of the softmax's denominator to what is
    minimised, and not to the `loss` that is shown (PaLM, section 5: 1e-4).
    """

    def loss(params, rows):
        hidden, table = _hidden(model, execute, params, rows), params["embedder"]["table"]
        total, sums = cross_entropy.summed(hidden, table, rows.labels, rows.loss_mask, None, z_loss=z_loss)
        return total, *_counts(rows, num_bytes, {"loss": sums["loss"]})

    return loss


def distilled(
    model: config.Config,
    execute: execution.Execution,
    *,
    num_bytes: np.ndarray,
    samples: settings.Samples,
    hard_label_weight: float = 0.0,
    z_loss: float = 0.0,
    targets_of: Callable[[object, object], targets.Targets | targets.Whole],
) -> Callable[[dict, object, object], Result]:
    """(parameters, what is frozen, rows) -> as `next_token`, of what `targets_of(frozen, rows)` says of each token.

    `loss` is what is minimised but for `z_loss`; beside it come, of the masked tokens, `cross_entropy` of the student
    and `teacher_cross_entropy` (nats, of the token that did come, at temperature 1), `captured_mass`, `agreement`, and
    `kl_to_teacher` (nats, at the temperature of the samples): unbiased where the estimator is, exact where all ids are
    kept, and left out elsewhere.
    """
    is_exact = samples.estimator == settings.WHOLE or samples.num_samples >= model.vocab_size
    knows_kl = is_exact or samples.estimator in settings.UNBIASED
    shown = ("loss", "cross_entropy", "captured_mass", "teacher_cross_entropy", "agreement")

    def loss(params, frozen, rows):
        hidden, table = _hidden(model, execute, params, rows), params["embedder"]["table"]
        total, sums = cross_entropy.summed(
            hidden,
            table,
            rows.labels,
            rows.loss_mask,
            targets_of(frozen, rows),
            temperature=samples.temperature,
            hard_label_weight=hard_label_weight,
            z_loss=z_loss,
        )
        found = {name: sums[name] for name in shown}
        if knows_kl:
            found["kl_to_teacher"] = sums["soft_loss"] - sums["teacher_entropy"]
        return total, *_counts(rows, num_bytes, found)

    return loss


def _hidden(model: config.Config, execute: execution.Execution, params: dict, rows) -> Float[Array, "B T D"]:
    bound = parameters.bind(model, params)
    return bound(rows.tokens, masks.Places(rows.segments, rows.positions), execute=execute)


def _counts(rows, num_bytes: np.ndarray, sums: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The number of targets, and the sums with their bytes."""
    bytes_of_targets = jnp.sum(jnp.asarray(num_bytes)[rows.labels] * rows.loss_mask)
    return jnp.sum(rows.loss_mask, dtype=jnp.int32), sums | {"bytes_per_target": bytes_of_targets}
