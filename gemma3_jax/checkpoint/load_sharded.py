"""Loads a source's tensors into our stacked arrays, each straight onto the devices."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gemma3_jax import console
from gemma3_jax.checkpoint import names, tensor_source
from gemma3_jax.model import parameters


def load(
    source: tensor_source.TensorSource,
    mesh: jax.sharding.Mesh,
    dtype: DTypeLike | None = None,
    progress: Callable[[int], None] = console.ignore,
) -> dict:
    """Returns the source's parameters as our tree, sharded over `mesh`, in `dtype` or as stored (None).

    The stacked arrays are allocated on the devices and filled there, so that host memory beside them is about the
    largest array that the source stores.
    """
    shapes = source.shapes()
    if dtype is not None:
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    shardings = parameters.shardings(source.model, mesh)
    tree = _allocate_stacks(source, shapes, shardings)
    for slot, tensor in source.tensors.items():
        parent, leaf = names.get(tree, slot.path[:-1]), slot.path[-1]
        shape, sharding = names.get(shapes, slot.path), names.get(shardings, slot.path)
        layer = _put(tensor.read(), shape.dtype, sharding, num_stacked=len(slot.index))
        progress(layer.nbytes)
        if not slot.index:
            parent[leaf] = layer
            continue
        parent[leaf] = _write_layer(parent[leaf], layer, slot.index)
    return tree


def _allocate_stacks(source: tensor_source.TensorSource, shapes: dict, shardings: dict) -> dict:
    """Returns zeros for the parameters whose layers come one by one, and None for all others, by one program."""
    tree = jax.tree.map(lambda _: None, shapes)
    paths = dict.fromkeys(slot.path for slot in source.tensors if slot.index)
    if not paths:
        return tree
    stacks = [names.get(shapes, path) for path in paths]
    allocate = jax.jit(
        lambda: [jnp.zeros(stack.shape, stack.dtype) for stack in stacks],
        out_shardings=[names.get(shardings, path) for path in paths],
    )
    for path, stack in zip(paths, allocate(), strict=True):
        names.get(tree, path[:-1])[path[-1]] = stack
    return tree


def _put(x: np.ndarray, dtype: np.dtype, sharding: jax.sharding.NamedSharding, *, num_stacked: int) -> jax.Array:
    """Returns one layer's tensor on the devices, sharded as its stack is."""
    spec = jax.sharding.PartitionSpec(*sharding.spec[num_stacked:])
    layer_sharding = jax.sharding.NamedSharding(sharding.mesh, spec)
    return jax.make_array_from_callback(x.shape, layer_sharding, lambda index: np.ascontiguousarray(x[index], dtype))


@functools.partial(jax.jit, donate_argnums=0)
def _write_layer(stack: jax.Array, layer: jax.Array, index: tuple[int | jax.Array, ...]) -> jax.Array:
    """Returns `stack` with `layer` at `index` of its leading dims, in place; one program serves every layer."""
    return jax.lax.dynamic_update_slice(
        stack, layer.reshape((1,) * len(index) + layer.shape), (*index, *(0,) * layer.ndim)
    )
