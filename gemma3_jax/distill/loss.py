"""The loss over the vocabulary: cross-entropy of the next token, for a chunk of tokens at a time."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gemma3_jax.model import config, execution, masks, parameters, transformer

LOGITS_PER_CHUNK = 1 << 26  # on one device: 256 MiB of float32; 8,192 tokens of V = 262,144 at once would be 8 GiB


def next_token(
    model: config.Config,
    execute: execution.Execution,
    mesh_shape: Mapping[str, int],
    *,
    num_bytes: np.ndarray,
    z_loss: float = 0.0,
) -> Callable[[dict, object], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]:
    """(parameters, rows) -> summed cross-entropy (nats), number of targets, and sums of what is reported.

    `rows` has tokens, targets, loss_mask, segments and positions, each [B, T]; `num_bytes` is int32[V], the bytes of
    text that an id stands for. `z_loss` adds so much of the squared log of the softmax's denominator to what is
    minimised, and not to the loss that is shown (PaLM, section 5: 1e-4).
    """

    def loss(params, rows):
        bound = parameters.bind(model, params)
        hidden = bound(rows.tokens, masks.Places(rows.segments, rows.positions), execute=execute)
        nats, z = _summed(bound, hidden, rows.targets, rows.loss_mask, mesh_shape)
        sums = {"bytes_per_target": jnp.sum(jnp.asarray(num_bytes)[rows.targets] * rows.loss_mask)}
        if z_loss:
            sums["loss"] = nats
        return nats + z_loss * z, jnp.sum(rows.loss_mask, dtype=jnp.int32), sums

    return loss


def _summed(
    bound: transformer.Transformer,
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    mesh_shape: Mapping[str, int],
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy and squared log-denominator, each summed over the masked tokens."""
    num_rows, num_tokens = targets.shape
    size = chunk_size(num_rows, num_tokens, bound.model.vocab_size, mesh_shape)

    def one(hidden, targets, mask):
        logits = bound.logits(hidden)
        log_denominator = jax.nn.logsumexp(logits, axis=-1)
        picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return jnp.sum((log_denominator - picked) * mask), jnp.sum(jnp.square(log_denominator) * mask)

    if size == num_tokens:
        return one(hidden, targets, mask)

    def chunk(total, parts):
        return jax.tree.map(jnp.add, total, jax.checkpoint(one, prevent_cse=False)(*parts)), None

    parts = [jnp.moveaxis(spread(x, size), 2, 0) for x in (hidden, targets, mask)]
    return jax.lax.scan(chunk, (jnp.zeros(()), jnp.zeros(())), tuple(parts))[0]


def spread(x: jax.Array, size: int) -> jax.Array:
    """[B, T, ...] -> [B, size, T / size, ...]: chunk n is [:, :, n], and has tokens of every `seq` shard."""
    return x.reshape(x.shape[0], size, -1, *x.shape[2:])


def chunk_size(num_rows: int, num_tokens: int, vocab_size: int, mesh_shape: Mapping[str, int]) -> int:
    """Tokens of each row whose logits fit LOGITS_PER_CHUNK on a device: a divisor of T, and a multiple of `seq`."""
    seq = mesh_shape["seq"]
    rows_per_device = num_rows // (mesh_shape["replica"] * mesh_shape["data"])
    fitting = max(1, LOGITS_PER_CHUNK // (rows_per_device * vocab_size)) * seq
    return max(size for size in range(seq, num_tokens + 1, seq) if num_tokens % size == 0 and size <= fitting)
