"""Weights on the ids of one shard of the vocabulary, their sum with logits, and the gradient they give.

On a TPU a gather or a scatter takes some 8 cycles for each element, and XLA lays out all logits anew for it, as one
flat dim. A comparison with all ids costs nothing there inside another pass over the logits, and few ids of each token
are the work of a kernel (docs/tpu_loss.md). Elsewhere gathers and scatters are cheap and comparisons are not.

Ids count from the first of the shard; one that is negative, or at least the shard's size, has no weight there.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from gemma3_jax import sharding
from gemma3_jax.losses import sparse_kernel

SUBLANES = 8  # float32 rows of a tile


class LogitsGradient(NamedTuple):
    """The gradient of a loss with respect to logits: base(logits, *per_token) minus `factor` * weight at each id.

    `base` works elementwise on logits and values of their tokens.
    """

    base: Callable
    per_token: tuple[Float[Array, "B T"], ...]
    factor: Float[Array, "B T"]
    label_factor: Float[Array, "B T"] | None  # of a weight of 1 on the label, to be subtracted too
    dtype: DTypeLike  # of the result

    def of(self, logits: jax.Array, weights: "IdWeights", label: "OneId | FewIds") -> jax.Array:
        gradient = self.base(logits, *(x[..., None] for x in self.per_token))
        gradient = weights.subtract_from(gradient, self.factor)
        if self.label_factor is not None:
            gradient = label.subtract_from(gradient, self.label_factor)
        return gradient.astype(self.dtype)

    def in_parts(self, label: "OneId | FewIds") -> tuple[Callable, list[Float[Array, "B T"]]]:
        """`of` for a kernel: gradient(logits, weights, ids, *per_token) of some tokens and ids, and `per_token`."""
        per_token = [self.factor, *self.per_token]
        if self.label_factor is not None:
            per_token += [self.label_factor, label.ids.reshape(self.factor.shape).astype(jnp.float32)]  # exact to 2**24

        def gradient(logits, weights, ids, factor, *per_token):
            if self.label_factor is None:
                return self.base(logits, *per_token) - factor * weights
            *per_token, label_factor, label = per_token
            is_label = ids == label.astype(jnp.int32)
            return self.base(logits, *per_token) - factor * weights - jnp.where(is_label, label_factor, 0.0)

        return gradient, per_token


class Weighed(NamedTuple):
    """Logits scored against the weights of a shard."""

    dot: Float[Array, "*B"]  # the sum of weight times logit
    gradient: Float[Array, "*B V"] | None  # of the loss with respect to the logits
    captured_mass: Float[Array, "*B"] | None = None  # the shard's part, where it is known with the weights only


@runtime_checkable
class IdWeights(Protocol):
    """Weights of each token on ids of the shard."""

    def total(self) -> Float[Array, "B T"]:
        """The sum of the weights."""

    def dot(self, values: Float[Array, "B T V"]) -> Float[Array, "B T"]:
        """The sum of weight times value."""

    def subtract_from(self, values: Float[Array, "B T V"], factor: Float[Array, "B T"]) -> Float[Array, "B T V"]:
        """`values` minus factor * weight at each id."""


class OneId(NamedTuple):
    """Weight 1 on one id of each token, found by comparison with all ids."""

    ids: Int[Array, "B T"]
    is_here: Bool[Array, "B T"]

    def total(self) -> Float[Array, "B T"]:
        return self.is_here.astype(jnp.float32)

    def dot(self, values: Float[Array, "B T V"]) -> Float[Array, "B T"]:
        return jnp.sum(jnp.where(self._hits(values), values, 0), axis=-1)

    def subtract_from(self, values: Float[Array, "B T V"], factor: Float[Array, "B T"]) -> Float[Array, "B T V"]:
        return values - jnp.where(self._hits(values), factor[..., None], 0)

    def _hits(self, values: Float[Array, "B T V"]) -> Bool[Array, "B T V"]:
        return jax.lax.broadcasted_iota(jnp.int32, values.shape, 2) == self.ids[..., None]


class FewIds(NamedTuple):
    """Weights on a list of ids, found by gathers and scatters. Weights of a repeated id add up."""

    ids: Int[Array, "B T M"]
    weights: Float[Array, "B T M"]
    is_here: Bool[Array, "B T M"]

    def total(self) -> Float[Array, "B T"]:
        return jnp.sum(jnp.where(self.is_here, self.weights, 0), axis=-1)

    def dot(self, values: Float[Array, "B T V"]) -> Float[Array, "B T"]:
        picked = jnp.take_along_axis(values, jnp.where(self.is_here, self.ids, 0), axis=-1)
        return jnp.sum(jnp.where(self.is_here, self.weights * picked, 0), axis=-1)

    def subtract_from(self, values: Float[Array, "B T V"], factor: Float[Array, "B T"]) -> Float[Array, "B T V"]:
        rows, columns = (jax.lax.broadcasted_iota(self.ids.dtype, self.ids.shape, dim) for dim in (0, 1))
        ids = jnp.where(self.is_here, self.ids, values.shape[-1])  # a negative index would count from the end
        return values.at[rows, columns, ids].add(-factor[..., None] * self.weights, mode="drop")


@runtime_checkable
class InOnePass(Protocol):
    """Weights that exist only in the pass over the logits that scores them: the gradient comes with the sum."""

    def weigh(
        self, logits: Float[Array, "B T V"], grad_logits: LogitsGradient | None, label: OneId | FewIds
    ) -> Weighed:
        """The logits scored, and their gradient if one is asked for."""


class FewIdsByKernel(NamedTuple):
    """FewIds on a TPU."""

    few: FewIds

    def weigh(
        self, logits: Float[Array, "B T V"], grad_logits: LogitsGradient | None, label: OneId | FewIds
    ) -> Weighed:
        if grad_logits is None:
            return Weighed(sparse_kernel.dot(logits, self.few.ids, self.few.weights), None)
        gradient, per_token = grad_logits.in_parts(label)
        run = functools.partial(sparse_kernel.dot_and_gradient, logits, self.few.ids, self.few.weights, gradient)
        return Weighed(*run(*per_token, dtype=grad_logits.dtype))


class DrawnIds(NamedTuple):
    """Weights that are drawn as the logits are read."""

    run: jax.tree_util.Partial  # as soft_targets.DrawnWeights.weigh

    def weigh(
        self, logits: Float[Array, "B T V"], grad_logits: LogitsGradient | None, label: OneId | FewIds
    ) -> Weighed:
        if grad_logits is None:
            return self.run(logits, None)
        gradient, per_token = grad_logits.in_parts(label)
        return self.run(logits, gradient, *per_token, dtype=grad_logits.dtype)


class AllIds(NamedTuple):
    """A weight on every id."""

    weights: Float[Array, "B T V"]

    def total(self) -> Float[Array, "B T"]:
        return jnp.sum(self.weights, axis=-1)

    def dot(self, values: Float[Array, "B T V"]) -> Float[Array, "B T"]:
        return jnp.sum(self.weights * values, axis=-1)

    def subtract_from(self, values: Float[Array, "B T V"], factor: Float[Array, "B T"]) -> Float[Array, "B T V"]:
        return values - factor[..., None] * self.weights


def weigh(
    weights: IdWeights | InOnePass,
    logits: Float[Array, "B T V"],
    grad_logits: LogitsGradient | None,
    label: OneId | FewIds,
) -> Weighed:
    """The logits scored against the weights, and their gradient if one is asked for."""
    if isinstance(weights, InOnePass):
        return weights.weigh(logits, grad_logits, label)
    return Weighed(weights.dot(logits), None if grad_logits is None else grad_logits.of(logits, weights, label))


def compares() -> bool:
    """Whether the platform that the current trace will run on compares with all ids rather than gather and scatter."""
    return sharding.platform() == "tpu"


def sum_over_ids(values: Float[Array, "B T V"]) -> Float[Array, "B T"]:
    """The sum over V in float32.

    On a TPU it is a product with ones, for which the compiler estimates 0.6 of the cycles of a sum (docs/tpu_loss.md).
    The highest precision keeps all 24 bits of the values.
    """
    if not compares():
        return jnp.sum(values, axis=-1)
    ones = jnp.ones((values.shape[-1], SUBLANES), jnp.float32)  # of one column the compiler makes a sum again
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum("BTV,VZ->BTZ", values, ones, precision=precision)[..., 0]


def of_one(ids: Int[Array, "B T"], size: int) -> OneId | FewIds:
    """Weight 1 on an id of each token, in a shard of `size` ids."""
    is_here = (ids >= 0) & (ids < size)
    if compares():
        return OneId(ids, is_here)
    return FewIds(ids[..., None], jnp.ones((*ids.shape, 1), jnp.float32), is_here[..., None])


def of_few(ids: Int[Array, "B T M"], weights: Float[Array, "B T M"], size: int) -> FewIds | FewIdsByKernel:
    """Weights on few ids of each token, in a shard of `size` ids."""
    few = FewIds(ids, weights, (ids >= 0) & (ids < size))
    return FewIdsByKernel(few) if compares() else few
