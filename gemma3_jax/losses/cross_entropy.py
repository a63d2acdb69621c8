"""Cross-entropy of a student against weights on ids of its vocabulary, with a gradient of its own.

For a token with logits z, weights w on ids i and temperature t it is (sum of w) * lse(z / t) - (sum of w_i z_i) / t:
the softmax is over all V ids, the weights may add up to anything, and an id may come twice. The gradient is
(sum of w) * softmax(z / t) / t with w_i / t taken off at i. The weights stand on few ids, or are a teacher's
probabilities of all: then its logits are made with the student's, a chunk at a time, and are as short-lived.

What is asked for is one number, the total over the tokens, so its gradient is known, but for a factor, as soon as the
logits are. A differentiated forward pass makes it with them, for a chunk of tokens at a time, and the backward pass
scales it: three products of tokens and vocabulary where computing again would take four. Only a chunk's logits exist.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from gemma3_jax import sharding
from gemma3_jax.distill import estimators, targets
from gemma3_jax.losses import vocab_parallel
from gemma3_jax.model import matmul

Sums = dict[str, jax.Array]
SUMMED = ("soft_loss", "cross_entropy", "agreement", "squares")
TOLD = ("captured_mass", "teacher_entropy", "teacher_cross_entropy")  # what is reported of the teacher alone


@dataclasses.dataclass(frozen=True)
class _Blend:
    """What is minimised, of what is summed."""

    temperature: float
    hard_label_weight: float
    z_loss: float

    @property
    def soft_weight(self) -> float:
        # The gradient of z / t shrinks with t squared (Hinton et al., 2015, section 2).
        return (1 - self.hard_label_weight) * self.temperature**2

    @property
    def soft_slope(self) -> float:
        return self.soft_weight / self.temperature

    def loss(self, sums: Sums) -> jax.Array:
        return self.soft_weight * sums["soft_loss"] + self.hard_label_weight * sums["cross_entropy"]

    def total(self, sums: Sums) -> jax.Array:
        return self.loss(sums) + self.z_loss * sums["squares"]


class _Tokens(NamedTuple):
    """What is known of tokens beside their hidden states."""

    mask: Bool[Array, "B T"]
    labels: Int[Array, "B T"]
    soft: targets.Targets | Float[Array, "B T _"] | None  # a teacher's word, or its hidden states; or there is none


class _Scores(NamedTuple):
    """Of each token, over the whole vocabulary; nats, at the temperature where it says so and else at 1."""

    lse: Float[Array, "B T"]
    soft_lse: Float[Array, "B T"]  # at the temperature
    shown: dict[str, Shaped[Array, "B T"]]  # SUMMED, and TOLD where there is a teacher


class _Held(NamedTuple):
    """Logits, held against what is to be learned."""

    mean: Float[Array, "B T"]  # the sum of weight times logit
    label: Float[Array, "B T"]  # the label's logit
    agrees: Bool[Array, "B T"]  # whether the teacher's best id has the largest logit; nowhere, without a teacher


class SparseTargets(NamedTuple):
    """Weights on few ids, as a teacher's word has them or a label is."""

    ids: Int[Array, "B T M"]
    weights: Float[Array, "B T M"]
    best_id: Int[Array, "B T"] | None  # the teacher's
    told: dict[str, Float[Array, "B T"]]  # TOLD
    shard: vocab_parallel.Shard

    def mass(self) -> Float[Array, "B T"]:
        return jnp.sum(self.weights, axis=-1)

    def against(self, logits: Float[Array, "B T V"], labels: Int[Array, "B T"], top: Float[Array, "B T"]) -> _Held:
        ids = [self.ids, labels[..., None], *([] if self.best_id is None else [self.best_id[..., None]])]
        picked = self.shard.pick(logits, jnp.concatenate(ids, axis=-1))  # at once: the shards have to be asked
        num_soft = self.ids.shape[-1]
        mean = jnp.sum(self.weights * picked[..., :num_soft], axis=-1)
        agrees = jnp.zeros(top.shape, bool) if self.best_id is None else picked[..., -1] == top
        return _Held(mean, picked[..., num_soft], agrees)

    def subtract_from(self, slope: Float[Array, "B T V"], factor: Float[Array, "B T"]) -> Float[Array, "B T V"]:
        """`slope` less factor times weight."""
        return self.shard.add(slope, self.ids, -factor[..., None] * self.weights)


class DenseTargets(NamedTuple):
    """A teacher's probabilities of all ids; the methods are those of SparseTargets."""

    teacher: estimators.Softmax
    told: dict[str, Float[Array, "B T"]]

    def probabilities(self) -> Float[Array, "B T V"]:
        return self.teacher.masses / self.teacher.total[..., None]

    def mass(self) -> Float[Array, "B T"]:
        return jnp.ones_like(self.teacher.total)

    def against(self, logits: Float[Array, "B T V"], labels: Int[Array, "B T"], top: Float[Array, "B T"]) -> _Held:
        shard = self.teacher.shard
        mean = shard.sum(jnp.sum(self.probabilities() * logits, axis=-1))
        at_top = jnp.where(logits == top[..., None], self.teacher.scores, -jnp.inf)
        agrees = shard.max(jnp.max(at_top, axis=-1)) == self.teacher.largest
        return _Held(mean, shard.pick(logits, labels[..., None])[..., 0], agrees)

    def subtract_from(self, slope: Float[Array, "B T V"], factor: Float[Array, "B T"]) -> Float[Array, "B T V"]:
        return slope - factor[..., None] * self.probabilities()


def summed(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    labels: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    soft: targets.Targets | targets.Whole | None,
    *,
    temperature: float = 1.0,
    hard_label_weight: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[Float[Array, ""], Sums]:
    """What is minimised, and what is reported: nats over the vocabulary, each summed over the masked tokens.

    Minimised is (1 - hard_label_weight) * temperature**2 * soft loss + hard_label_weight * cross-entropy of the labels
    + z_loss * lse**2; `loss` is that without its last term. `cross_entropy` and `lse` are at temperature 1. Without
    `soft` the label has weight 1. With it `soft_loss` is reported too, and `agreement` (how often the student's best id
    is the teacher's), and of the teacher `captured_mass`, `teacher_entropy` and `teacher_cross_entropy`. Only the first
    result has a gradient, with respect to `hidden` and `table`.
    """
    blend, teacher_table = _Blend(temperature, hard_label_weight, z_loss), None
    if isinstance(soft, targets.Whole):
        soft, teacher_table = soft
    total, found = _summed(blend, hidden, table, _Tokens(mask, labels, soft), teacher_table)
    shown = ("cross_entropy",) if soft is None else ("cross_entropy", "soft_loss", "agreement", *TOLD)
    sums = {"loss": blend.loss(found)} | {name: found[name] for name in shown}
    return total, jax.lax.stop_gradient(sums)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(
    blend: _Blend, hidden: jax.Array, table: jax.Array, tokens: _Tokens, teacher_table: jax.Array | None
) -> tuple[jax.Array, Sums]:
    sums, *_ = _scan_chunks(blend, hidden, table, tokens, teacher_table, differentiate=False)
    return blend.total(sums), sums


def _summed_forward(blend: _Blend, hidden: jax.Array, table: jax.Array, tokens: _Tokens, teacher_table):
    sums, *gradients = _scan_chunks(blend, hidden, table, tokens, teacher_table, differentiate=True)
    dtypes_of = [jnp.zeros((), hidden.dtype), jnp.zeros((), table.dtype)]
    return (blend.total(sums), sums), (gradients, dtypes_of)


def _summed_backward(blend: _Blend, saved: tuple, of_results: tuple):
    factor, _ = of_results
    return *jax.tree.map(lambda gradient, like: (factor * gradient).astype(like.dtype), *saved), None, None


_summed.defvjp(_summed_forward, _summed_backward)


def _scan_chunks(
    blend: _Blend, hidden: jax.Array, table: jax.Array, tokens: _Tokens, teacher_table, *, differentiate: bool
):
    """Sums over the masked tokens; and the gradients of blend.total of them, the table's in float32, or two None."""
    shard, place = vocab_parallel.shard_of(table.shape[0]), vocab_parallel.place_of(*table.shape)
    tables, places = [table], [place]
    if teacher_table is not None:
        tables, places = [table, teacher_table], [place, vocab_parallel.place_of(*teacher_table.shape)]

    def per_device(tables, hidden, tokens):
        whole_tables = [place.gather(table) for place, table in zip(places, tables, strict=True)]

        def chunk(carry, own):
            # Tied to the chunk, as XLA's CPU backend would transpose the table before the walk, and keep both.
            own, (table, *of_teacher) = jax.lax.optimization_barrier((own, whole_tables))
            hidden, tokens = jax.tree.map(shard.gather_tokens, own)
            logits = matmul.einsum("BTD,VD->BTV", hidden, table, jnp.float32)
            soft = _soft(tokens, blend.temperature, shard, *of_teacher)
            scores = _score(logits, tokens.labels, soft, blend.temperature, shard)
            sums, grad_table = carry
            sums = {name: sums[name] + _masked_sum(tokens.mask, x) for name, x in scores.shown.items()}
            if not differentiate:
                return (sums, None), None
            # Both products run at the speed of the activations' dtype.
            slope = _slope(logits, tokens, soft, scores, blend, shard).astype(hidden.dtype)
            of_hidden = matmul.einsum("BTV,VD->BTD", slope, table, jnp.float32)
            grad_table = _add_product(grad_table, slope, hidden)
            return (sums, grad_table), shard.sum_to_own_tokens(of_hidden).astype(hidden.dtype)

        names = SUMMED if tokens.soft is None else SUMMED + TOLD
        zeros = jnp.zeros(whole_tables[0].shape) if differentiate else None
        (sums, grad_table), of_hidden = vocab_parallel.walk(
            chunk, (dict.fromkeys(names, jnp.zeros(())), zeros), (hidden, tokens), shard=shard
        )
        return shard.sum_tokens(sums), of_hidden, place.sum(grad_table) if differentiate else None

    spec, specs = vocab_parallel.tokens_spec(), [place.spec for place in places]
    run = vocab_parallel.mapped(per_device, (specs, spec, spec), (PartitionSpec(), spec, place.spec))
    at_rest = [sharding.constrain_at_rest(table.astype(hidden.dtype), "VD") for table in tables]
    sums, of_hidden, grad_table = run(at_rest, hidden, tokens)
    return sums, of_hidden, None if grad_table is None else sharding.constrain_at_rest(grad_table, "VD")


def _add_product(
    grad_table: Float[Array, "V D"], slope: Float[Array, "B T V"], hidden: Float[Array, "B T D"]
) -> Float[Array, "V D"]:
    """`grad_table` plus the product, a part of V at a time: XLA's CPU backend makes the product whole before it adds"""
    num_ids, width = grad_table.shape
    size = vocab_parallel.largest_divisor(num_ids, max(1, vocab_parallel.LOGITS_PER_CHUNK // width))

    def block(number, grad_table):
        part = jax.lax.dynamic_slice_in_dim(slope, number * size, size, axis=2)
        found = jax.lax.dynamic_slice_in_dim(grad_table, number * size, size)
        found += matmul.einsum("BTV,BTD->VD", part, hidden, jnp.float32)
        return jax.lax.dynamic_update_slice_in_dim(grad_table, found, number * size, axis=0)

    return jax.lax.fori_loop(0, num_ids // size, block, grad_table) if size < num_ids else block(0, grad_table)


def _soft(
    tokens: _Tokens, temperature: float, shard: vocab_parallel.Shard, teacher_table=None
) -> SparseTargets | DenseTargets:
    """What the logits of a chunk are held against."""
    soft, labels = tokens.soft, tokens.labels
    if soft is None:
        return SparseTargets(labels[..., None], jnp.ones((*labels.shape, 1), jnp.float32), None, {}, shard)
    if teacher_table is None:
        told = dict(zip(TOLD, (soft.captured_mass, soft.entropy, -soft.label_log_prob), strict=True))
        weights = jnp.where(tokens.mask[..., None], soft.weights, 0)  # what a masked one was given may not be finite
        return SparseTargets(soft.ids, weights, soft.best_id, told, shard)
    logits = matmul.einsum("BTD,VD->BTV", soft, teacher_table, jnp.float32)
    teacher = estimators.softmax(logits, temperature, shard)
    untempered = teacher if temperature == 1 else estimators.softmax(logits, 1.0, shard)
    label_log_prob = targets.log_prob(untempered, labels)
    told = dict(zip(TOLD, (jnp.ones(labels.shape), targets.entropy(teacher), -label_log_prob), strict=True))
    return DenseTargets(teacher, told)


def _score(
    logits: Float[Array, "B T V"],
    labels: Int[Array, "B T"],
    soft: SparseTargets | DenseTargets,
    temperature: float,
    shard: vocab_parallel.Shard,
) -> _Scores:
    top = shard.max(jnp.max(logits, axis=-1))

    def log_sum(temperature: float):
        powers = jnp.exp((logits - top[..., None]) / temperature)
        return top / temperature + jnp.log(shard.sum(jnp.sum(powers, axis=-1)))

    lse = log_sum(1.0)
    soft_lse = lse if temperature == 1 else log_sum(temperature)
    held = soft.against(logits, labels, top)
    shown = {
        "soft_loss": soft.mass() * soft_lse - held.mean / temperature,
        "cross_entropy": lse - held.label,
        "agreement": held.agrees,
        "squares": jnp.square(lse),
    }
    return _Scores(lse, soft_lse, shown | soft.told)


def _masked_sum(mask: Bool[Array, "B T"], x: Shaped[Array, "B T"]) -> Float[Array, ""]:
    # No product: what a masked token was given may not be finite.
    return jnp.sum(jnp.where(mask, x.astype(jnp.float32), 0))


def _slope(
    logits: Float[Array, "B T V"],
    tokens: _Tokens,
    soft: SparseTargets | DenseTargets,
    scores: _Scores,
    blend: _Blend,
    shard: vocab_parallel.Shard,
) -> Float[Array, "B T V"]:
    """The gradient of _Blend.total with respect to the logits."""
    of_soft, of_hard = (jnp.where(tokens.mask, factor, 0.0) for factor in (blend.soft_slope, blend.hard_label_weight))
    to_soft, to_hard = of_soft * soft.mass(), of_hard + jnp.where(tokens.mask, 2 * blend.z_loss * scores.lse, 0)
    if blend.temperature == 1:
        slope = (to_soft + to_hard)[..., None] * jnp.exp(logits - scores.lse[..., None])
    else:
        slope = to_soft[..., None] * jnp.exp(logits / blend.temperature - scores.soft_lse[..., None])
        if blend.hard_label_weight or blend.z_loss:
            slope += to_hard[..., None] * jnp.exp(logits - scores.lse[..., None])
    slope = soft.subtract_from(slope, of_soft)
    if blend.hard_label_weight:
        slope = shard.add(slope, tokens.labels[..., None], -of_hard[..., None])
    return slope


def label_log_probs(
    hidden: Float[Array, "B T D"], table: Float[Array, "V D"], labels: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Natural log of the probability of each label. It has no gradient."""

    def of_chunk(shard, logits, labels):
        top = shard.max(jnp.max(logits, axis=-1, keepdims=True))
        lse = top + jnp.log(shard.sum(jnp.sum(jnp.exp(logits - top), axis=-1, keepdims=True)))
        return (shard.pick(logits, labels[..., None]) - lse)[..., 0]

    return vocab_parallel.of_logits(of_chunk, hidden, table, labels)
