"""Cross-entropy of a student against weights on ids of its vocabulary, with a custom gradient.

For a token with logits z, weights w on ids i and temperature t, the soft loss is
(sum of w) * lse(z / t) - (sum of w_i z_i) / t, and its gradient (sum of w) * softmax(z / t) / t minus w_i / t at i.
The forward pass computes the gradients along with the loss, one chunk of tokens at a time, and the backward pass only
scales them: three products of tokens and vocabulary instead of four, and logits of one chunk at most.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from gemma3_jax import sharding
from gemma3_jax.losses import chunk_targets, drawn_targets, id_weights, soft_targets, vocab_parallel
from gemma3_jax.model import matmul

Sums = dict[str, jax.Array]
Targets = soft_targets.SoftTargets | drawn_targets.DrawnTargets
STUDENT_METRICS = ("soft_loss", "cross_entropy", "agreement", "squares")


@dataclasses.dataclass(frozen=True)
class _Blend:
    """The weight of each term in what is minimized."""

    temperature: float
    hard_label_weight: float
    z_loss: float

    @property
    def soft_weight(self) -> float:
        # The gradient of z / t shrinks with t squared (Hinton et al., 2015, section 2).
        return (1 - self.hard_label_weight) * self.temperature**2

    @property
    def soft_grad_weight(self) -> float:
        return self.soft_weight / self.temperature

    def loss(self, sums: Sums) -> jax.Array:
        return self.soft_weight * sums["soft_loss"] + self.hard_label_weight * sums["cross_entropy"]

    def total(self, sums: Sums) -> jax.Array:
        return self.loss(sums) + self.z_loss * sums["squares"]


class _Tokens(NamedTuple):
    """The data of each token, apart from its hidden state."""

    mask: Bool[Array, "B T"]
    labels: Int[Array, "B T"]
    # Of dense and drawn targets without the table, which has no dim of tokens. None without a teacher.
    soft: soft_targets.SparseTargets | drawn_targets.DrawnTargets | Float[Array, "B T _"] | None


class _Normalizers(NamedTuple):
    """Of each token, over the whole vocabulary."""

    top: Float[Array, "B T"]  # the largest logit
    lse: Float[Array, "B T"]  # nats, at temperature 1
    soft_lse: Float[Array, "B T"]  # at the temperature of the targets


def cross_entropy_sum(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    labels: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    soft: Targets | None,
    *,
    temperature: float = 1.0,
    hard_label_weight: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[Float[Array, ""], Sums]:
    """Returns what is minimized and what is reported, in nats, each summed over the masked tokens.

    Minimized is (1 - hard_label_weight) * temperature**2 * soft loss + hard_label_weight * cross-entropy of the labels
    + z_loss * lse**2; `loss` leaves out the last term. `cross_entropy` and `lse` are at temperature 1. If `soft` is
    None the label has weight 1; otherwise the sums also hold `soft_loss`, `agreement` (how often student and teacher
    have the same best id) and the teacher's `captured_mass`, `teacher_entropy` and `teacher_cross_entropy`. Only the
    first result has a gradient, with respect to `hidden` and `table`.
    """
    blend, teacher_table = _Blend(temperature, hard_label_weight, z_loss), None
    if isinstance(soft, soft_targets.DenseTargets):
        soft, teacher_table = soft
    elif isinstance(soft, drawn_targets.DrawnTargets):
        soft, teacher_table = soft._replace(table=None), soft.table
    total, sums = _cross_entropy_sum(blend, hidden, table, _Tokens(mask, labels, soft), teacher_table)
    teacher_metrics = () if soft is None else ("soft_loss", "agreement", *chunk_targets.TEACHER_METRICS)
    reported = {"loss": blend.loss(sums)} | {name: sums[name] for name in ("cross_entropy", *teacher_metrics)}
    return total, jax.lax.stop_gradient(reported)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy_sum(
    blend: _Blend, hidden: jax.Array, table: jax.Array, tokens: _Tokens, teacher_table: jax.Array | None
) -> tuple[jax.Array, Sums]:
    sums, *_ = _scan_chunks(blend, hidden, table, tokens, teacher_table, differentiate=False)
    return blend.total(sums), sums


def _forward(blend: _Blend, hidden: jax.Array, table: jax.Array, tokens: _Tokens, teacher_table):
    sums, *gradients = _scan_chunks(blend, hidden, table, tokens, teacher_table, differentiate=True)
    dtypes_of = [jnp.zeros((), hidden.dtype), jnp.zeros((), table.dtype)]
    return (blend.total(sums), sums), (gradients, dtypes_of)


def _backward(blend: _Blend, saved: tuple, grads: tuple):
    factor, _ = grads
    return *jax.tree.map(lambda gradient, like: (factor * gradient).astype(like.dtype), *saved), None, None


_cross_entropy_sum.defvjp(_forward, _backward)


def _scan_chunks(
    blend: _Blend, hidden: jax.Array, table: jax.Array, tokens: _Tokens, teacher_table, *, differentiate: bool
):
    """Returns the sums over the masked tokens, and the gradients of blend.total or two None; the table's is float32."""
    shard, layout = vocab_parallel.shard_of(table.shape[0]), vocab_parallel.table_sharding(*table.shape)
    tables, layouts = [table], [layout]
    if teacher_table is not None:
        tables, layouts = [table, teacher_table], [layout, vocab_parallel.table_sharding(*teacher_table.shape)]

    def per_device(tables, hidden, tokens):
        whole_tables = [layout.gather(table) for layout, table in zip(layouts, tables, strict=True)]

        def chunk(carry, gathered):
            # One dim of tokens: of two, XLA's TPU backend multiplies smaller blocks, and reads the logits more slowly.
            together = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), gathered)
            # Tied to the chunk, as XLA's CPU backend would transpose the table before the scan, and keep both.
            (hidden, tokens), (table, *teacher_tables) = jax.lax.optimization_barrier((together, whole_tables))
            targets = _targets(tokens, blend.temperature, shard, *teacher_tables)
            logits = matmul.einsum("BTD,VD->BTV", hidden, table, jnp.float32)
            normalizers = _normalizers(logits, blend.temperature, shard)
            sums, grad_table = carry
            grad_logits = _grad_logits(tokens, targets.total_weight, normalizers, blend, hidden.dtype)
            weighed, grad_hidden, grad_table = _gradients(
                logits, targets, grad_logits if differentiate else None, hidden, table, grad_table
            )
            metrics = _metrics(logits, weighed, targets, normalizers, blend.temperature, shard)
            sums = {name: sums[name] + _masked_sum(tokens.mask, x) for name, x in metrics.items()}
            if not differentiate:
                return (sums, None), None
            grad_hidden = grad_hidden.reshape(gathered[0].shape)
            return (sums, grad_table), shard.sum_to_local_tokens(grad_hidden).astype(hidden.dtype)

        names = STUDENT_METRICS if tokens.soft is None else STUDENT_METRICS + chunk_targets.TEACHER_METRICS
        zeros = jnp.zeros(whole_tables[0].shape) if differentiate else None
        (sums, grad_table), grad_hidden = vocab_parallel.scan_gathered_tokens(
            chunk, (dict.fromkeys(names, jnp.zeros(())), zeros), (hidden, tokens), shard=shard
        )
        return shard.sum_everywhere(sums), grad_hidden, layout.sum(grad_table) if differentiate else None

    spec, specs = vocab_parallel.tokens_spec(), [layout.spec for layout in layouts]
    run = vocab_parallel.shard_map(per_device, (specs, spec, spec), (PartitionSpec(), spec, layout.spec))
    at_rest = [sharding.constrain_at_rest(table.astype(hidden.dtype), "VD") for table in tables]
    sums, grad_hidden, grad_table = run(at_rest, hidden, tokens)
    return sums, grad_hidden, None if grad_table is None else sharding.constrain_at_rest(grad_table, "VD")


def _gradients(
    logits: Float[Array, "B T V"],
    targets: chunk_targets.ChunkTargets,
    grad_logits: id_weights.LogitsGradient | None,
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    grad_table: Float[Array, "V D"] | None,
) -> tuple[id_weights.Weighed, Float[Array, "B T D"] | None, Float[Array, "V D"] | None]:
    """The logits scored, the gradient of the hidden states, and `grad_table` plus that of the table.

    Without `grad_logits` there are no gradients. Both products run at the speed of the activations' dtype.
    """
    weights = targets.weights
    weighed = id_weights.weigh(weights, logits, grad_logits, targets.label)
    if grad_logits is None:
        return weighed, None, None
    grad = weighed.gradient
    grad_hidden = matmul.einsum("BTV,VD->BTD", grad, table, jnp.float32)
    if not id_weights.compares():
        return weighed, grad_hidden, _add_product(grad_table, grad, hidden)
    if isinstance(weights, id_weights.OneId):
        # A product makes this gradient from the logits that it reads, in no more time. XLA would see that both products
        # read the same array, and store it: one more pass over all logits.
        logits, grad_hidden = jax.lax.optimization_barrier((logits, grad_hidden))
        grad = grad_logits.of(logits, weights, targets.label)
    return weighed, grad_hidden, grad_table + matmul.einsum("BTV,BTD->VD", grad, hidden, jnp.float32)


def _add_product(
    grad_table: Float[Array, "V D"], grad_logits: Float[Array, "B T V"], hidden: Float[Array, "B T D"]
) -> Float[Array, "V D"]:
    """`grad_table` plus the product, a part of V at a time: XLA's CPU backend makes the whole product before it adds"""
    num_ids, embed_dim = grad_table.shape
    size = vocab_parallel.largest_divisor(num_ids, max(1, vocab_parallel.LOGITS_PER_CHUNK // embed_dim))

    def block(index, grad_table):
        part = jax.lax.dynamic_slice_in_dim(grad_logits, index * size, size, axis=2)
        total = jax.lax.dynamic_slice_in_dim(grad_table, index * size, size)
        total += matmul.einsum("BTV,BTD->VD", part, hidden, jnp.float32)
        return jax.lax.dynamic_update_slice_in_dim(grad_table, total, index * size, axis=0)

    return jax.lax.fori_loop(0, num_ids // size, block, grad_table) if size < num_ids else block(0, grad_table)


def _targets(
    tokens: _Tokens, temperature: float, shard: vocab_parallel.Shard, teacher_table=None
) -> chunk_targets.ChunkTargets:
    """The targets of a chunk of tokens."""
    if tokens.soft is None:
        return chunk_targets.of_labels(tokens.labels, shard)
    if teacher_table is None:
        return chunk_targets.of_sparse(tokens.soft, tokens.labels, tokens.mask, shard)
    if isinstance(tokens.soft, drawn_targets.DrawnTargets):
        return tokens.soft.of_chunk(teacher_table, tokens.labels, shard)
    dense = soft_targets.DenseTargets(tokens.soft, teacher_table)
    return chunk_targets.of_dense(dense, tokens.labels, temperature, shard)


def _normalizers(logits: Float[Array, "B T V"], temperature: float, shard: vocab_parallel.Shard) -> _Normalizers:
    """All that a chunk needs of the other shards, in one exchange: each sums powers relative to its own largest."""
    temperatures = (1.0,) if temperature == 1 else (1.0, temperature)
    top = jnp.max(logits, axis=-1)
    sums = [id_weights.sum_over_ids(jnp.exp((logits - top[..., None]) / t)) for t in temperatures]
    if shard.axes:
        tops, *sums = jnp.moveaxis(shard.all_gather(jnp.stack([top, *sums])), 1, 0)
        top = jnp.max(tops, axis=0)
        sums = [jnp.sum(x * jnp.exp((tops - top[None]) / t), axis=0) for x, t in zip(sums, temperatures, strict=True)]
    lse, *soft_lse = (top / t + jnp.log(x) for x, t in zip(sums, temperatures, strict=True))
    return _Normalizers(top, lse, *(soft_lse or [lse]))


def _metrics(
    logits: Float[Array, "B T V"],
    weighed: id_weights.Weighed,
    targets: chunk_targets.ChunkTargets,
    normalizers: _Normalizers,
    temperature: float,
    shard: vocab_parallel.Shard,
) -> dict[str, Shaped[Array, "B T"]]:
    """STUDENT_METRICS, and TEACHER_METRICS with a teacher: each shard's part, to be summed over all shards."""
    whole = targets.metrics | {
        "squares": jnp.square(normalizers.lse),
        "soft_loss": targets.total_weight * normalizers.soft_lse,
    }
    metrics = {name: jnp.where(shard.index() == 0, x, 0) for name, x in whole.items()}
    metrics["soft_loss"] -= weighed.dot / temperature
    if weighed.captured_mass is not None:
        metrics["captured_mass"] = weighed.captured_mass
    cross_entropy = targets.label.total() * normalizers.lse - targets.label.dot(logits)
    return metrics | {"cross_entropy": cross_entropy, "agreement": targets.agrees(logits, normalizers.top, shard)}


def _masked_sum(mask: Bool[Array, "B T"], x: Shaped[Array, "B T"]) -> Float[Array, ""]:
    # No product with the mask: values of a masked token may not be finite.
    return jnp.sum(jnp.where(mask, x.astype(jnp.float32), 0))


def _grad_logits(
    tokens: _Tokens,
    total_weight: Float[Array, "B T"],
    normalizers: _Normalizers,
    blend: _Blend,
    dtype: jnp.dtype,
) -> id_weights.LogitsGradient:
    """The gradient of _Blend.total with respect to the logits, in `dtype`."""
    soft, hard = (jnp.where(tokens.mask, factor, 0.0) for factor in (blend.soft_grad_weight, blend.hard_label_weight))
    soft_total = soft * total_weight
    hard_total = hard + jnp.where(tokens.mask, 2 * blend.z_loss * normalizers.lse, 0)
    label_factor = hard if blend.hard_label_weight else None
    if blend.temperature == 1:
        per_token = soft_total + hard_total, normalizers.lse
    else:
        per_token = soft_total, normalizers.soft_lse
        if blend.hard_label_weight or blend.z_loss:
            per_token += hard_total, normalizers.lse
    base = functools.partial(_softmaxes, blend.temperature)
    return id_weights.LogitsGradient(base, per_token, soft, label_factor, dtype)


def _softmaxes(temperature: float, logits, factor, lse, factor_at_1=None, lse_at_1=None):
    """factor * softmax(logits / temperature), and factor_at_1 * softmax(logits) if there is one."""
    scores = logits if temperature == 1 else logits / temperature
    total = factor * jnp.exp(scores - lse)
    return total if factor_at_1 is None else total + factor_at_1 * jnp.exp(logits - lse_at_1)


def label_log_probs(
    hidden: Float[Array, "B T D"], table: Float[Array, "V D"], labels: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Log-probability of each label, in nats. It has no gradient."""

    def of_chunk(shard, logits, labels):
        return shard.pick_one(logits, labels) - _normalizers(logits, 1.0, shard).lse

    return vocab_parallel.map_logits(of_chunk, hidden, table, labels)
