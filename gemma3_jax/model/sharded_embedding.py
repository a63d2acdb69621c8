"""Rows of the vocabulary table for tokens, where table and tokens are split over the same devices.

The table is V x D, gigabytes where a device's tokens are megabytes. So it stays where it rests: devices tell each other
their token ids, each looks up what its part of the table has for all of them, and rows go to where their tokens are.

Of a table split by columns that is what a device needs itself, and no more. Of one split by rows it is a row for every
token of all devices, zeros but for some: where that is more than the part of the table, the parts are traded for
columns first.
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
    """What one axis of the mesh splits: a dim of the tokens (0, 1 or None), and a dim of the table (0, 1 or None)."""

    name: str
    of_tokens: int | None
    grad_table: int | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def look_up(dtype: jnp.dtype, table: Float[Array, "V D"], tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Rows of the table in `dtype`, over the current mesh.

    A device receives the ids of all rows and, of what it needs itself, D numbers a token. The gradient is summed in
    float32 over every use of a token (bfloat16 stops adding to a sum once it is a few hundred times the next term, and
    some tokens come thousands of times in a row), and is made where the table rests: whole on no device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return table.astype(dtype)[tokens]
    axes, specs = _split(table, tokens, mesh)
    run = jax.shard_map(
        functools.partial(_rows_of_own, axes),
        in_specs=(specs.table, specs.tokens),
        out_specs=specs.rows,
        check_vma=False,
    )
    return run(table.astype(dtype), tokens)


def _forward(dtype: jnp.dtype, table: jax.Array, tokens: jax.Array) -> tuple[jax.Array, tuple]:
    return look_up(dtype, table, tokens), (table, tokens)


def _backward(dtype: jnp.dtype, saved: tuple, grad: jax.Array) -> tuple[jax.Array, None]:
    table, tokens = saved
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        summed = _summed(table.shape, tokens, grad)
    else:
        axes, specs = _split(table, tokens, mesh)
        run = jax.shard_map(
            functools.partial(_gradient_of_own, axes),
            in_specs=(specs.rows, specs.table, specs.tokens),
            out_specs=specs.table,
            check_vma=False,
        )
        summed = run(grad, table, tokens)
    return summed.astype(table.dtype), None


look_up.defvjp(_forward, _backward)


class _Specs(NamedTuple):
    table: PartitionSpec
    tokens: PartitionSpec
    rows: PartitionSpec


def _split(table: jax.Array, tokens: jax.Array, mesh) -> tuple[tuple[_Axis, ...], _Specs]:
    """The axes of the mesh, those first that split a dim of the table most finely; and where everything is."""
    grad_table = sharding.parameter_spec(("V", "D"), table.shape, mesh.shape)
    of_tokens = sharding.activation_spec("BT", tokens.shape, mesh.shape)

    def dim_of(axis: str, spec: PartitionSpec) -> int | None:
        return next((dim for dim, axes in enumerate(sharding.axes_by_dim(spec, 2)) if axis in axes), None)

    names = [axis for axis in reversed(sharding.AXES) if mesh.shape[axis] > 1]
    axes = tuple(_Axis(name, dim_of(name, of_tokens), dim_of(name, grad_table)) for name in names)
    return axes, _Specs(grad_table, of_tokens, PartitionSpec(*of_tokens, None))


def _first(size: int, axes: tuple[_Axis, ...], dim: int) -> jax.Array | int:
    """Where this device's part, of so much, of a dim of the table begins."""
    number = 0
    for axis in reversed(axes):  # the coarsest first
        if axis.grad_table == dim:
            number = number * jax.lax.axis_size(axis.name) + jax.lax.axis_index(axis.name)
    return number * size


def _all_tokens(axes: tuple[_Axis, ...], tokens: jax.Array) -> jax.Array:
    """The ids of all tokens that other parts of the table have to be asked for."""
    for axis in axes:
        if axis.grad_table is not None and axis.of_tokens is not None:
            tokens = jax.lax.all_gather(tokens, axis.name, axis=axis.of_tokens, tiled=True)
    return tokens


def _traded(axes: tuple[_Axis, ...], table: jax.Array, tokens: jax.Array) -> tuple[_Axis, ...]:
    """The axes whose rows of the table are traded for columns, finest first, so that rows stay neighbours."""
    asking = [axis.name for axis in axes if axis.grad_table is not None and axis.of_tokens is not None]
    num_tokens = tokens.size * math.prod(jax.lax.axis_size(name) for name in asking)
    traded, embed_dim = [], table.shape[1]
    for axis in axes:
        if axis.grad_table == 0:
            size = jax.lax.axis_size(axis.name)
            if num_tokens <= table.shape[0] or embed_dim % size:
                break
            traded.append(axis)
            embed_dim //= size
    return tuple(traded)


def _by_columns(axes: tuple[_Axis, ...], traded: tuple[_Axis, ...]) -> tuple[_Axis, ...]:
    """The axes once the rows of some have been traded: those come first, as they split the columns most finely."""
    rest = (axis for axis in axes if axis not in traded)
    return (*(axis._replace(grad_table=1) for axis in reversed(traded)), *rest)


def _rows_of_own(axes: tuple[_Axis, ...], table: Float[Array, "V D"], tokens: Int[Array, "B T"]) -> jax.Array:
    """Of one device: looks up for all, then trades its part of everybody's rows for all parts of its own."""
    traded = _traded(axes, table, tokens)
    for axis in traded:
        table = jax.lax.all_to_all(table, axis.name, split_axis=1, concat_axis=0, tiled=True)
    axes = _by_columns(axes, traded)
    places = _all_tokens(axes, tokens) - _first(table.shape[0], axes, 0)
    is_here = (places >= 0) & (places < table.shape[0])
    rows = jnp.where(is_here[..., None], table[jnp.where(is_here, places, 0)], jnp.zeros((), table.dtype))
    for axis in axes:
        match axis:
            case _Axis(name, None, 0):
                rows = jax.lax.psum(rows, name)
            case _Axis(name, None, 1):
                rows = jax.lax.all_gather(rows, name, axis=2, tiled=True)
            case _Axis(name, dim, 0):  # of a token one device has the row, the others zeros
                rows = sharding.sum_scattered(rows, name, dim)
            case _Axis(name, dim, 1):
                rows = jax.lax.all_to_all(rows, name, split_axis=dim, concat_axis=2, tiled=True)
    return rows


def _gradient_of_own(
    axes: tuple[_Axis, ...], grad: Float[Array, "B T D"], table: Float[Array, "V _"], tokens: Int[Array, "B T"]
) -> Float[Array, "V _"]:
    """Of one device: the gradient of its part of the table, from everybody's tokens."""
    traded = _traded(axes, table, tokens)
    axes, shape = _by_columns(axes, traded), table.shape
    for axis in traded:
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
    summed = _summed(shape, _all_tokens(axes, tokens) - _first(shape[0], axes, 0), grad)
    for axis in reversed(traded):
        summed = jax.lax.all_to_all(summed, axis.name, split_axis=0, concat_axis=1, tiled=True)
    apart = tuple(axis.name for axis in axes if axis.grad_table is None and axis.of_tokens is not None)
    return jax.lax.psum(summed, apart) if apart else summed


def _summed(shape: tuple[int, int], places: jax.Array, grad: jax.Array) -> jax.Array:
    """float32 sums by row of the table; of places outside of it nothing."""
    outside = (places < 0) | (places >= shape[0])
    places = jnp.where(outside, shape[0], places)  # a negative one would count from the end
    return jnp.zeros(shape, jnp.float32).at[places].add(grad.astype(jnp.float32), mode="drop")
