"""Embedding lookup where table and tokens are split over the same devices.

The table is V x D, gigabytes where a device's tokens are megabytes, so it stays where it rests: devices all-gather
their token ids, each looks them up in its part of the table, and rows travel to where their tokens are. A table split
by rows is resharded to columns first where that moves less.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from gemma3_jax import sharding


class _Axis(NamedTuple):
    """A mesh axis, and the dim of the tokens and of the table that it splits: 0, 1 or None."""

    name: str
    token_dim: int | None
    table_dim: int | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def lookup(dtype: jnp.dtype, table: Float[Array, "V D"], tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Rows of the table in `dtype`, over the current mesh.

    A device receives the ids of all tokens, and D numbers for each of its own. The gradient is made where the table
    rests, whole on no device, and is summed in float32 over every use of a token: bfloat16 stops adding to a sum that
    is a few hundred times the next term, and some tokens come thousands of times in a row.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return table.astype(dtype)[tokens]
    axes, specs = _split(table, tokens, mesh)
    run = jax.shard_map(
        functools.partial(_local_rows, axes),
        in_specs=(specs.table, specs.tokens),
        out_specs=specs.rows,
        check_vma=False,
    )
    return run(table.astype(dtype), tokens)


def _forward(dtype: jnp.dtype, table: jax.Array, tokens: jax.Array) -> tuple[jax.Array, tuple]:
    return lookup(dtype, table, tokens), (table, tokens)


def _backward(dtype: jnp.dtype, saved: tuple, grad: jax.Array) -> tuple[jax.Array, None]:
    table, tokens = saved
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        grad_table = _scatter_add(table.shape, tokens, grad)
    else:
        axes, specs = _split(table, tokens, mesh)
        run = jax.shard_map(
            functools.partial(_local_gradient, axes),
            in_specs=(specs.rows, specs.table, specs.tokens),
            out_specs=specs.table,
            check_vma=False,
        )
        grad_table = run(grad, table, tokens)
    return grad_table.astype(table.dtype), None


lookup.defvjp(_forward, _backward)


class _Specs(NamedTuple):
    table: PartitionSpec
    tokens: PartitionSpec
    rows: PartitionSpec


def _split(table: jax.Array, tokens: jax.Array, mesh) -> tuple[tuple[_Axis, ...], _Specs]:
    """The axes of the mesh, those that split a dim of the table most finely first; and the specs of all arrays."""
    table_spec = sharding.parameter_spec(("V", "D"), table.shape, mesh.shape)
    token_spec = sharding.activation_spec("BT", tokens.shape, mesh.shape)

    def dim_of(axis: str, spec: PartitionSpec) -> int | None:
        return next((dim for dim, axes in enumerate(sharding.axes_by_dim(spec, 2)) if axis in axes), None)

    names = [axis for axis in reversed(sharding.AXES) if mesh.shape[axis] > 1]
    axes = tuple(_Axis(name, dim_of(name, token_spec), dim_of(name, table_spec)) for name in names)
    return axes, _Specs(table_spec, token_spec, PartitionSpec(*token_spec, None))


def _first_index(size: int, axes: tuple[_Axis, ...], dim: int) -> jax.Array | int:
    """The index at which this device's part, of `size`, of a dim of the table begins."""
    number = 0
    for axis in reversed(axes):  # the coarsest first
        if axis.table_dim == dim:
            number = number * jax.lax.axis_size(axis.name) + jax.lax.axis_index(axis.name)
    return number * size


def _gather_tokens(axes: tuple[_Axis, ...], tokens: jax.Array) -> jax.Array:
    """The ids of all tokens that need other parts of the table."""
    for axis in axes:
        if axis.table_dim is not None and axis.token_dim is not None:
            tokens = jax.lax.all_gather(tokens, axis.name, axis=axis.token_dim, tiled=True)
    return tokens


def _resharded_axes(axes: tuple[_Axis, ...], table: jax.Array, tokens: jax.Array) -> tuple[_Axis, ...]:
    """The axes along which rows of the table become columns, the finest first, so that rows stay neighbors.

    A table split by rows returns a row for every token of all devices, most of them zeros. Where those are more than
    the device's part of the table, resharding the table moves less.
    """
    gathered = [axis.name for axis in axes if axis.table_dim is not None and axis.token_dim is not None]
    num_tokens = tokens.size * math.prod(jax.lax.axis_size(name) for name in gathered)
    resharded, embed_dim = [], table.shape[1]
    for axis in axes:
        if axis.table_dim == 0:
            size = jax.lax.axis_size(axis.name)
            if num_tokens <= table.shape[0] or embed_dim % size:
                break
            resharded.append(axis)
            embed_dim //= size
    return tuple(resharded)


def _by_columns(axes: tuple[_Axis, ...], resharded: tuple[_Axis, ...]) -> tuple[_Axis, ...]:
    """The axes after resharding: the resharded ones first, as they split the columns most finely."""
    rest = (axis for axis in axes if axis not in resharded)
    return (*(axis._replace(table_dim=1) for axis in reversed(resharded)), *rest)


def _local_rows(axes: tuple[_Axis, ...], table: Float[Array, "V D"], tokens: Int[Array, "B T"]) -> jax.Array:
    """On one device: looks up the tokens of all devices, then exchanges parts of rows for those of its tokens."""
    resharded = _resharded_axes(axes, table, tokens)
    for axis in resharded:
        table = jax.lax.all_to_all(table, axis.name, split_axis=1, concat_axis=0, tiled=True)
    axes = _by_columns(axes, resharded)
    indices = _gather_tokens(axes, tokens) - _first_index(table.shape[0], axes, 0)
    is_here = (indices >= 0) & (indices < table.shape[0])
    rows = jnp.where(is_here[..., None], table[jnp.where(is_here, indices, 0)], jnp.zeros((), table.dtype))
    for axis in axes:
        match axis:
            case _Axis(name, None, 0):
                rows = jax.lax.psum(rows, name)
            case _Axis(name, None, 1):
                rows = jax.lax.all_gather(rows, name, axis=2, tiled=True)
            case _Axis(name, dim, 0):  # one device holds a token's row, the others zeros
                rows = sharding.reduce_scatter(rows, name, dim)
            case _Axis(name, dim, 1):
                rows = jax.lax.all_to_all(rows, name, split_axis=dim, concat_axis=2, tiled=True)
    return rows


def _local_gradient(
    axes: tuple[_Axis, ...], grad: Float[Array, "B T D"], table: Float[Array, "V _"], tokens: Int[Array, "B T"]
) -> Float[Array, "V _"]:
    """On one device: the gradient of its part of the table, from the tokens of all."""
    resharded = _resharded_axes(axes, table, tokens)
    axes, shape = _by_columns(axes, resharded), table.shape
    for axis in resharded:
        shape = shape[0] * jax.lax.axis_size(axis.name), shape[1] // jax.lax.axis_size(axis.name)
    for axis in reversed(axes):  # the way back
        match axis:
            case _Axis(name, None, 1):
                size = grad.shape[2] // jax.lax.axis_size(name)
                grad = jax.lax.dynamic_slice_in_dim(grad, jax.lax.axis_index(name) * size, size, axis=2)
            case _Axis(name, int(dim), 0):
                grad = jax.lax.all_gather(grad, name, axis=dim, tiled=True)
            case _Axis(name, int(dim), 1):
                grad = jax.lax.all_to_all(grad, name, split_axis=2, concat_axis=dim, tiled=True)
    grad_table = _scatter_add(shape, _gather_tokens(axes, tokens) - _first_index(shape[0], axes, 0), grad)
    for axis in reversed(resharded):
        grad_table = jax.lax.all_to_all(grad_table, axis.name, split_axis=0, concat_axis=1, tiled=True)
    summed_axes = tuple(axis.name for axis in axes if axis.table_dim is None and axis.token_dim is not None)
    return jax.lax.psum(grad_table, summed_axes) if summed_axes else grad_table


def _scatter_add(shape: tuple[int, int], indices: jax.Array, grad: jax.Array) -> jax.Array:
    """Sums of `grad` by row of the table, in float32; indices outside the table are dropped."""
    outside = (indices < 0) | (indices >= shape[0])
    indices = jnp.where(outside, shape[0], indices)  # a negative index would count from the end
    return jnp.zeros(shape, jnp.float32).at[indices].add(grad.astype(jnp.float32), mode="drop")
