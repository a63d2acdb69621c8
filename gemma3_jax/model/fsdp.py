"""Weights under ZeRO-3: created and annotated, gathered where they are used, their gradients reduce-scattered."""

import functools
import math
import re

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from gemma3_jax import sharding
from gemma3_jax.model import low_rank, matmul


def annotated(value) -> nnx.Param:
    """A parameter annotated with its dims, not yet sharded: sharding.parameter_shardings decides for all at once."""
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
    spec: str,
    x: Float[Array, "..."],
    weight: Float[Array, "..."] | low_rank.FrozenWeight,
    dtype: DTypeLike | None = None,
) -> Float[Array, "..."]:
    """einsum(spec, x, weight) in `dtype`, or that of `x`, laid out over the mesh as the letters of `spec` say.

    The ZeRO-3 of all layers is here. The weight is cast to the dtype of `x`, then all-gathered, and freed after use;
    the backward pass gathers it again. Its gradient is summed in float32 over tokens and devices, as bfloat16 would
    lose sums over thousands of devices, and reduce-scattered to where the weight rests.
    """
    dtype = jnp.dtype(dtype or x.dtype)
    if not isinstance(weight, low_rank.FrozenWeight):
        return _project(spec, dtype, x, weight)
    out = _project_frozen(spec, dtype, x, weight.value)
    if weight.factors is None:
        return out
    down_spec, up_spec = low_rank.factor_specs(spec)
    low = _project(down_spec, x.dtype, x, weight.factors.down) * weight.factors.scale
    return out + _project(up_spec, dtype, low, weight.factors.up)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _project(spec: str, dtype: jnp.dtype, x: jax.Array, weight: jax.Array) -> jax.Array:
    _, weight_dims, out_dims = re.split(",|->", spec)
    out = matmul.einsum(spec, x, gather(weight, weight_dims, x.dtype), dtype)
    return sharding.constrain(out, out_dims)


def _project_forward(spec: str, dtype: jnp.dtype, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple]:
    return _project(spec, dtype, x, weight), (x, weight)


def _project_backward(spec: str, dtype: jnp.dtype, saved: tuple, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_dims, weight_dims, out_dims = re.split(",|->", spec)
    x, weight = saved
    grad = grad.astype(x.dtype)  # of float32 logits too: both products run at the speed of the activations' dtype
    grad_x = matmul.einsum(f"{out_dims},{weight_dims}->{x_dims}", grad, gather(weight, weight_dims, x.dtype))
    grad_weight = weight_gradient(spec, x, grad, weight.shape).astype(weight.dtype)
    return sharding.constrain(grad_x, x_dims), grad_weight


_project.defvjp(_project_forward, _project_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _project_frozen(spec: str, dtype: jnp.dtype, x: jax.Array, weight: jax.Array | low_rank.Packed) -> jax.Array:
    """As `_project`, with a weight that has no gradient."""
    out = matmul.einsum(spec, x, gather_frozen(weight, spec, x.dtype), dtype)
    return sharding.constrain(out, spec.partition("->")[2])


def _project_frozen_forward(spec: str, dtype: jnp.dtype, x: jax.Array, weight) -> tuple[jax.Array, tuple]:
    # No copy of `x` is kept for its gradient: a zero has its dtype.
    return _project_frozen(spec, dtype, x, weight), (jnp.zeros((), x.dtype), weight)


def _project_frozen_backward(spec: str, dtype: jnp.dtype, saved: tuple, grad: jax.Array) -> tuple[jax.Array, None]:
    x_dims, weight_dims, out_dims = re.split(",|->", spec)
    like, weight = saved
    whole = gather_frozen(weight, spec, like.dtype)
    grad_x = matmul.einsum(f"{out_dims},{weight_dims}->{x_dims}", grad.astype(like.dtype), whole)
    return sharding.constrain(grad_x, x_dims), None


_project_frozen.defvjp(_project_frozen_forward, _project_frozen_backward)


def gather_frozen(weight: Float[Array, "..."] | low_rank.Packed, spec: str, dtype: DTypeLike) -> Float[Array, "..."]:
    """The weight of a product `spec` in `dtype`, all-gathered. Of a packed one codes and scales travel, not weights."""
    _, dims, out_dims = re.split(",|->", spec)
    if not isinstance(weight, low_rank.Packed):
        return gather(weight, dims, dtype)
    contracted = "".join(letter for letter in dims if letter not in out_dims)
    letters = low_rank.scale_dims(weight.format, weight.codes.shape, dims, contracted)
    codes = gather(weight.codes, dims, weight.codes.dtype)
    scale = gather(weight.scale, letters, weight.scale.dtype)
    packed = low_rank.Packed(codes, scale, weight.format)
    return sharding.constrain(low_rank.unpack(packed, dims, contracted, dtype), dims)


def gather(weight: Shaped[Array, "..."], dims: str, dtype: DTypeLike) -> Shaped[Array, "..."]:
    """The weight in `dtype`, all-gathered from the shards it rests in; cast first, so that fewer bytes travel.

    Dims are gathered one at a time, the last one first: a gather over an earlier dim returns its parts in order, and
    while a later dim is put in order only a part of it is there. Gathering both at once copies the whole weight again.
    """
    weight = sharding.constrain_at_rest(weight.astype(dtype), dims)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return weight
    axes, axes_in_use = _axes_by_dim(dims, weight.shape, mesh)
    for dim in reversed(range(weight.ndim)):
        if axes[dim] != axes_in_use[dim]:
            axes[dim] = axes_in_use[dim]
            weight = jax.lax.with_sharding_constraint(weight, PartitionSpec(*axes))
    return weight


def _axes_by_dim(dims: str, shape: tuple[int, ...], mesh) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """The mesh axes that split each dim of a weight: at rest, and in use."""
    at_rest = sharding.parameter_spec(tuple(dims), shape, mesh.shape)
    in_use = sharding.activation_spec(dims, shape, mesh.shape)
    return sharding.axes_by_dim(at_rest, len(dims)), sharding.axes_by_dim(in_use, len(dims))


def weight_gradient(spec: str, x: Float[Array, "..."], grad: Float[Array, "..."], shape: tuple[int, ...]) -> Array:
    """The gradient of a projection's weight, summed in float32 and reduce-scattered to where the weight rests.

    In a shard_map, as XLA sums a gradient that rests split by two dims whole on every device, and then takes a part.
    """
    x_dims, dims, out_dims = re.split(",|->", spec)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return matmul.einsum(f"{x_dims},{out_dims}->{dims}", x, grad, jnp.float32)
    x_spec = sharding.activation_spec(x_dims, x.shape, mesh.shape)
    grad_spec = sharding.activation_spec(out_dims, grad.shape, mesh.shape)
    axes_at_rest, axes_in_use = _axes_by_dim(dims, shape, mesh)
    x_axes = zip(x_dims, sharding.axes_by_dim(x_spec, x.ndim), strict=True)
    # Axes whose devices hold one term of the sum each, and the dim that each of them splits at rest.
    summed_axes = {axis for letter, axes in x_axes if letter not in dims for axis in axes if mesh.shape[axis] > 1}
    scatter_dims = {}
    for dim, (size, at_rest, in_use) in enumerate(zip(shape, axes_at_rest, axes_in_use, strict=True)):
        if size % math.prod(mesh.shape[axis] for axis in {*at_rest, *in_use}) == 0:
            scatter_dims |= {axis: dim for axis in at_rest if axis in summed_axes}

    def local_gradient(x: jax.Array, grad: jax.Array) -> jax.Array:
        part = matmul.einsum(f"{x_dims},{out_dims}->{dims}", x, grad, jnp.float32)
        for axis, dim in scatter_dims.items():
            part = sharding.reduce_scatter(part, axis, dim)
        return jax.lax.psum(part, tuple(sorted(summed_axes - set(scatter_dims))))

    out = [
        (*axes, *(axis for axis in scatter_dims if scatter_dims[axis] == dim)) for dim, axes in enumerate(axes_in_use)
    ]
    run = jax.shard_map(local_gradient, in_specs=(x_spec, grad_spec), out_specs=PartitionSpec(*out), check_vma=False)
    return sharding.constrain_at_rest(run(x, grad), dims)
