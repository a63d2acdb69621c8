"""Cross-entropy of a student against weights on few ids of its vocabulary, with a gradient of its own.

For a token with logits z, weights w on ids i and temperature t it is (sum of w) * lse(z / t) - (sum of w_i z_i) / t:
the softmax is over all V ids, the weights may add up to anything, and an id may come twice. The gradient is
(sum of w) * softmax(z / t) / t with w_i / t taken off at i.

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
from gemma3_jax.distill import targets, vocabulary
from gemma3_jax.model import product

Sums = dict[str, jax.Array]
SUMMED = ("soft_loss", "cross_entropy", "agreement", "squares")


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
    ids: Int[Array, "B T M"]
    weights: Float[Array, "B T M"]
    best_id: Int[Array, "B T"] | None  # the teacher's


class _Scores(NamedTuple):
    """Of each token, over the whole vocabulary; nats, at the temperature where it says so and else at 1."""

    lse: Float[Array, "B T"]
    soft_lse: Float[Array, "B T"]  # at the temperature
    soft_loss: Float[Array, "B T"]  # at the temperature
    cross_entropy: Float[Array, "B T"]
    agreement: Bool[Array, "B T"]  # nowhere, if there is no teacher
    squares: Float[Array, "B T"]  # of lse


def summed(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    labels: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    soft: targets.Targets | None,
    *,
    temperature: float = 1.0,
    hard_label_weight: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[Float[Array, ""], Sums]:
    """What is minimised, and what is reported: nats over the vocabulary, each summed over the masked tokens.

    Minimised is (1 - hard_label_weight) * temperature**2 * soft loss + hard_label_weight * cross-entropy of the labels
    + z_loss * lse**2; `loss` is that without its last term. `cross_entropy` and `lse` are at temperature 1. Without
    `soft` the label has weight 1. With it `soft_loss` is reported too, and `agreement` (how often the student's best id
    is the teacher's), and of what the teacher says `kept_mass`, `teacher_entropy` and `teacher_cross_entropy`. Only the
    first result has a gradient, with respect to `hidden` and `table`.
    """
    blend = _Blend(temperature, hard_label_weight, z_loss)
    if soft is None:
        ids, weights, best_id = labels[..., None], jnp.ones((*labels.shape, 1), jnp.float32), None
    else:
        ids, weights, best_id = soft.ids, soft.weights, soft.best_id
    total, found = _summed(blend, hidden, table, _Tokens(mask, labels, ids, weights, best_id))
    sums = {"loss": blend.loss(found), "cross_entropy": found["cross_entropy"]}
    if soft is not None:
        sums |= {"soft_loss": found["soft_loss"], "agreement": found["agreement"]}
        told = {
            "kept_mass": soft.kept_mass,
            "teacher_entropy": soft.entropy,
            "teacher_cross_entropy": -soft.label_log_prob,
        }
        sums |= {name: _masked_sum(mask, x) for name, x in told.items()}
    return total, jax.lax.stop_gradient(sums)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(blend: _Blend, hidden: jax.Array, table: jax.Array, tokens: _Tokens) -> tuple[jax.Array, Sums]:
    sums, *_ = _walked(blend, hidden, table, tokens, differentiate=False)
    return blend.total(sums), sums


def _summed_forward(blend: _Blend, hidden: jax.Array, table: jax.Array, tokens: _Tokens):
    sums, *gradients = _walked(blend, hidden, table, tokens, differentiate=True)
    dtypes_of = [jnp.zeros((), hidden.dtype), jnp.zeros((), table.dtype)]
    return (blend.total(sums), sums), (gradients, dtypes_of)


def _summed_backward(blend: _Blend, saved: tuple, of_results: tuple):
    factor, _ = of_results
    return *jax.tree.map(lambda gradient, like: (factor * gradient).astype(like.dtype), *saved), None


_summed.defvjp(_summed_forward, _summed_backward)


def _walked(blend: _Blend, hidden: jax.Array, table: jax.Array, tokens: _Tokens, *, differentiate: bool):
    """Sums over the masked tokens; and the gradients of blend.total of them, the table's in float32, or two None."""
    shard, place = vocabulary.shard_of(table.shape[0]), vocabulary.place_of(*table.shape)

    def per_device(hidden, table, tokens):
        whole_table = place.gather(table)

        def chunk(carry, own):
            # Tied to the chunk, as XLA's CPU backend would transpose the table before the walk, and keep both.
            own, table = jax.lax.optimization_barrier((own, whole_table))
            hidden, tokens = jax.tree.map(shard.gather_tokens, own)
            logits = product.einsum("BTD,VD->BTV", hidden, table, jnp.float32)
            scores = _score(logits, tokens, blend.temperature, shard)
            sums, of_table = carry
            sums = {name: sums[name] + _masked_sum(tokens.mask, getattr(scores, name)) for name in SUMMED}
            if not differentiate:
                return (sums, None), None
            slope = shard.add(_of_softmax(logits, tokens, scores, blend), *_of_picked(tokens, blend))
            slope = slope.astype(hidden.dtype)  # both products run at the speed of the activations' dtype
            of_hidden = product.einsum("BTV,VD->BTD", slope, table, jnp.float32)
            of_table = _add_product(of_table, slope, hidden)
            return (sums, of_table), shard.sum_to_own_tokens(of_hidden).astype(hidden.dtype)

        start = dict.fromkeys(SUMMED, jnp.zeros(())), jnp.zeros(whole_table.shape) if differentiate else None
        (sums, of_table), of_hidden = vocabulary.walk(chunk, start, (hidden, tokens), shard=shard)
        return shard.sum_tokens(sums), of_hidden, place.sum(of_table) if differentiate else None

    spec = vocabulary.tokens_spec()
    run = vocabulary.mapped(per_device, (spec, place.spec, spec), (PartitionSpec(), spec, place.spec))
    sums, of_hidden, of_table = run(hidden, sharding.constrain_at_rest(table.astype(hidden.dtype), "VD"), tokens)
    return sums, of_hidden, None if of_table is None else sharding.constrain_at_rest(of_table, "VD")


def _add_product(
    of_table: Float[Array, "V D"], slope: Float[Array, "B T V"], hidden: Float[Array, "B T D"]
) -> Float[Array, "V D"]:
    """`of_table` and the product, for a part of V at a time: XLA's CPU backend has the product whole before it adds."""
    num_ids, width = of_table.shape
    size = vocabulary.largest_divisor(num_ids, max(1, vocabulary.LOGITS_PER_CHUNK // width))

    def block(number, of_table):
        part = jax.lax.dynamic_slice_in_dim(slope, number * size, size, axis=2)
        found = jax.lax.dynamic_slice_in_dim(of_table, number * size, size)
        found += product.einsum("BTV,BTD->VD", part, hidden, jnp.float32)
        return jax.lax.dynamic_update_slice_in_dim(of_table, found, number * size, axis=0)

    return jax.lax.fori_loop(0, num_ids // size, block, of_table) if size < num_ids else block(0, of_table)


def _score(logits: Float[Array, "B T V"], tokens: _Tokens, temperature: float, shard: vocabulary.Shard) -> _Scores:
    top = shard.max(jnp.max(logits, axis=-1))

    def log_sum(temperature: float):
        powers = jnp.exp((logits - top[..., None]) / temperature)
        return top / temperature + jnp.log(shard.sum(jnp.sum(powers, axis=-1)))

    lse = log_sum(1.0)
    soft_lse = lse if temperature == 1 else log_sum(temperature)
    ids = [tokens.ids, tokens.labels[..., None]]
    if tokens.best_id is not None:
        ids.append(tokens.best_id[..., None])
    picked = shard.pick(logits, jnp.concatenate(ids, axis=-1))
    num_soft = tokens.ids.shape[-1]
    weighted = jnp.sum(tokens.weights * picked[..., :num_soft], axis=-1) / temperature
    return _Scores(
        lse=lse,
        soft_lse=soft_lse,
        soft_loss=jnp.sum(tokens.weights, axis=-1) * soft_lse - weighted,
        cross_entropy=lse - picked[..., num_soft],
        agreement=jnp.zeros(top.shape, bool) if tokens.best_id is None else picked[..., -1] == top,
        squares=jnp.square(lse),
    )


def _masked_sum(mask: Bool[Array, "B T"], x: Shaped[Array, "B T"]) -> Float[Array, ""]:
    # No product: what a masked token was given may not be finite.
    return jnp.sum(jnp.where(mask, x.astype(jnp.float32), 0))


# The gradient of _Blend.total with respect to the logits is the sum of two.


def _of_softmax(
    logits: Float[Array, "B T V"], tokens: _Tokens, scores: _Scores, blend: _Blend
) -> Float[Array, "B T V"]:
    """Its part that every id has."""
    soft = jnp.where(tokens.mask, blend.soft_slope * jnp.sum(tokens.weights, axis=-1), 0)
    hard = jnp.where(tokens.mask, blend.hard_label_weight + 2 * blend.z_loss * scores.lse, 0)
    if blend.temperature == 1:
        return (soft + hard)[..., None] * jnp.exp(logits - scores.lse[..., None])
    found = soft[..., None] * jnp.exp(logits / blend.temperature - scores.soft_lse[..., None])
    if not (blend.hard_label_weight or blend.z_loss):
        return found
    return found + hard[..., None] * jnp.exp(logits - scores.lse[..., None])


def _of_picked(tokens: _Tokens, blend: _Blend) -> tuple[Int[Array, "B T _"], Float[Array, "B T _"]]:
    """Its part that few ids have: these, and what to add there."""
    ids, amounts = tokens.ids, -blend.soft_slope * tokens.weights
    if blend.hard_label_weight:
        ids = jnp.concatenate([ids, tokens.labels[..., None]], axis=-1)
        hard = jnp.full((*tokens.labels.shape, 1), -blend.hard_label_weight)
        amounts = jnp.concatenate([amounts, hard], axis=-1)
    return ids, jnp.where(tokens.mask[..., None], amounts, 0)


def label_log_probs(
    hidden: Float[Array, "B T D"], table: Float[Array, "V D"], labels: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Natural log of the probability of each label. It has no gradient."""

    def of_chunk(shard, logits, labels):
        top = shard.max(jnp.max(logits, axis=-1, keepdims=True))
        lse = top + jnp.log(shard.sum(jnp.sum(jnp.exp(logits - top), axis=-1, keepdims=True)))
        return (shard.pick(logits, labels[..., None]) - lse)[..., 0]

    return vocabulary.of_logits(of_chunk, hidden, table, labels)
