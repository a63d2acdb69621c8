"""Weights: how they are made and annotated, gathered to be used, and how their gradients are summed (ZeRO-3)."""

import functools
import math
import re

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gemma3_jax import sharding
from gemma3_jax.model import product


def annotated(value) -> nnx.Param:
    """A parameter whose dims annotate and no more: sharding.parameter_shardings decides for all of them at once."""
    return nnx.Param(value, eager_sharding=False)


def parameter(rngs: nnx.Rngs, dims: str, shape: tuple[int, ...], *, fan_in: str) -> nnx.Param:
    """A normal draw with variance 1 / (product of the dims in `fan_in`), annotated with its dims.

    The report does not publish initial values: this choice keeps activations near unit variance at the first step.
    """
    letters = tuple(dims.split())
    scale = math.prod(size for letter, size in zip(letters, shape, strict=True) if letter in fan_in.split()) ** -0.5
    init = nnx.with_partitioning(nnx.initializers.normal(scale), letters)
    return annotated(init(rngs.params(), shape, jnp.float32))


def project(
    spec: str, x: Float[Array, "..."], weight: Float[Array, "..."], dtype: DTypeLike | None = None
) -> Float[Array, "..."]:
    """einsum(spec, x, weight) in `dtype`, or that of `x`, laid out over the mesh as the letters of `spec` say.

    This is ZeRO-3, once for all layers. The weight is cast to the dtype of `x`, then gathered, and only for the moment:
    the backward pass gathers it again. Its gradient is summed in float32, over tokens and over devices, and scattered
    to where the weight rests: thousands of devices would lose it in bfloat16.
    """
    return _project(spec, jnp.dtype(dtype or x.dtype), x, weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _project(spec: str, dtype: jnp.dtype, x: jax.Array, weight: jax.Array) -> jax.Array:
    _, weight_dims, out_dims = re.split(",|->", spec)
    out = product.einsum(spec, x, gathered(weight, weight_dims, x.dtype), dtype)
    return sharding.constrain(out, out_dims)


def _project_forward(spec: str, dtype: jnp.dtype, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple]:
    return _project(spec, dtype, x, weight), (x, weight)


def _project_backward(spec: str, dtype: jnp.dtype, saved: tuple, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_dims, weight_dims, out_dims = re.split(",|->", spec)
    x, weight = saved
    grad = grad.astype(x.dtype)  # float32 logits, too: both products run at the speed of the activations' dtype
    grad_x = product.einsum(f"{out_dims},{weight_dims}->{x_dims}", grad, gathered(weight, weight_dims, x.dtype))
    grad_weight = product.einsum(f"{x_dims},{out_dims}->{weight_dims}", x, grad, jnp.float32)
    grad_weight = sharding.constrain_at_rest(grad_weight, weight_dims).astype(weight.dtype)
    return sharding.constrain(grad_x, x_dims), grad_weight


_project.defvjp(_project_forward, _project_backward)


def gathered(weight: Float[Array, "..."], dims: str, dtype: DTypeLike) -> Float[Array, "..."]:
    """The weight in `dtype`, gathered from the shards it rests in: cast first, so that fewer bytes travel."""
    return sharding.constrain(sharding.constrain_at_rest(weight.astype(dtype), dims), dims)
