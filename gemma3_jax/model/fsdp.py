"""Weights: how they are made and annotated, gathered to be used, and how their gradients are summed (ZeRO-3)."""

import functools
import math
import re

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gemma3_jax import sharding
from gemma3_jax.model import matmul


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
    out = matmul.einsum(spec, x, gathered(weight, weight_dims, x.dtype), dtype)
    return sharding.constrain(out, out_dims)


def _project_forward(spec: str, dtype: jnp.dtype, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple]:
    return _project(spec, dtype, x, weight), (x, weight)


def _project_backward(spec: str, dtype: jnp.dtype, saved: tuple, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_dims, weight_dims, out_dims = re.split(",|->", spec)
    x, weight = saved
    grad = grad.astype(x.dtype)  # float32 logits, too: both products run at the speed of the activations' dtype
    grad_x = matmul.einsum(f"{out_dims},{weight_dims}->{x_dims}", grad, gathered(weight, weight_dims, x.dtype))
    grad_weight = scattered(spec, x, grad, weight.shape).astype(weight.dtype)
    return sharding.constrain(grad_x, x_dims), grad_weight


_project.defvjp(_project_forward, _project_backward)


def gathered(weight: Float[Array, "..."], dims: str, dtype: DTypeLike) -> Float[Array, "..."]:
    """The weight in `dtype`, gathered from the shards it rests in: cast first, so that fewer bytes travel.

    One dim after the other, the last one first: what is gathered over an earlier dim comes in the order in which it is
    needed, and while a later dim is put in order there is only a part of it. Both at once are copied once more, whole.
    """
    weight = sharding.constrain_at_rest(weight.astype(dtype), dims)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return weight
    layout, used = _layouts(dims, weight.shape, mesh)
    for dim in reversed(range(weight.ndim)):
        if layout[dim] != used[dim]:
            layout[dim] = used[dim]
            weight = jax.lax.with_sharding_constraint(weight, PartitionSpec(*layout))
    return weight


def _layouts(dims: str, shape: tuple[int, ...], mesh) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """The axes that split each dim of a weight where it rests, and where it is used."""
    rest = sharding.parameter_spec(tuple(dims), shape, mesh.shape)
    used = sharding.activation_spec(dims, shape, mesh.shape)
    return sharding.axes_by_dim(rest, len(dims)), sharding.axes_by_dim(used, len(dims))


def scattered(spec: str, x: Float[Array, "..."], grad: Float[Array, "..."], shape: tuple[int, ...]) -> Array:
    """The gradient of a projection's weight, summed in float32 and scattered to where the weight rests.

    Said by hand: of a gradient that rests split by two dims, XLA makes the whole sum on every device and takes a part.
    """
    x_dims, dims, out_dims = re.split(",|->", spec)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return matmul.einsum(f"{x_dims},{out_dims}->{dims}", x, grad, jnp.float32)
    x_spec = sharding.activation_spec(x_dims, x.shape, mesh.shape)
    grad_spec = sharding.activation_spec(out_dims, grad.shape, mesh.shape)
    rest, used = _layouts(dims, shape, mesh)
    of_x = zip(x_dims, sharding.axes_by_dim(x_spec, x.ndim), strict=True)
    terms = {axis for letter, axes in of_x if letter not in dims for axis in axes if mesh.shape[axis] > 1}
    split = {}  # of the axes whose devices have one term of the sum each: the dim that they split at rest
    for dim, (size, at_rest, here) in enumerate(zip(shape, rest, used, strict=True)):
        if size % math.prod(mesh.shape[axis] for axis in {*at_rest, *here}) == 0:
            split |= {axis: dim for axis in at_rest if axis in terms}

    def own(x: jax.Array, grad: jax.Array) -> jax.Array:
        part = matmul.einsum(f"{x_dims},{out_dims}->{dims}", x, grad, jnp.float32)
        for axis, dim in split.items():
            part = sharding.sum_scattered(part, axis, dim)
        return jax.lax.psum(part, tuple(sorted(terms - set(split))))

    out = [(*axes, *(axis for axis in split if split[axis] == dim)) for dim, axes in enumerate(used)]
    run = jax.shard_map(own, in_specs=(x_spec, grad_spec), out_specs=PartitionSpec(*out), check_vma=False)
    return sharding.constrain_at_rest(run(x, grad), dims)
