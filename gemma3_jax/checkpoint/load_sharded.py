"""Streams a source's tensors into our stacked arrays, each straight to the devices where it rests."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gemma3_jax.checkpoint import names
from gemma3_jax.checkpoint.source import Source
from gemma3_jax.model import parameters


def load(
    source: Source,
    mesh: jax.sharding.Mesh,
    dtype: DTypeLike | None = None,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> dict:
    """The source's parameters as our tree, sharded over `mesh`; `dtype` None keeps what the source stores.

    Host memory in use beside the placed parameters is about the largest tensor that the source stores (of a stacked
    published tree, a parameter of all its layers): our stacked arrays are made on the devices and filled there.
    """
    shapes = stored_shapes(source)
    if dtype is not None:
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    shardings = parameters.shardings(source.model, mesh)
    tree = jax.tree.map(lambda _: None, shapes)
    for slot, tensor in source.tensors.items():
        parent, leaf = names.get(tree, slot.path[:-1]), slot.path[-1]
        shape, sharding = names.get(shapes, slot.path), names.get(shardings, slot.path)
        piece = _place(tensor.read(), shape.dtype, sharding, num_stacked=len(slot.index))
        progress(piece.nbytes)
        if not slot.index:
            parent[leaf] = piece
            continue
        if parent[leaf] is None:
            parent[leaf] = jax.jit(functools.partial(jnp.zeros, shape.shape, shape.dtype), out_shardings=sharding)()
        parent[leaf] = _write(parent[leaf], piece, slot.index)
    return tree


def stored_shapes(source: Source) -> dict:
    """Our shapes, each with the widest dtype that any of its layers is stored in."""
    shapes = parameters.shapes(source.model)
    stored: dict[tuple[str, ...], list[np.dtype]] = {}
    for slot, tensor in source.tensors.items():
        stored.setdefault(slot.path, []).append(tensor.dtype)
    for path, dtypes in stored.items():
        parent = names.get(shapes, path[:-1])
        parent[path[-1]] = jax.ShapeDtypeStruct(parent[path[-1]].shape, jnp.result_type(*dtypes))
    return shapes


def _place(x: np.ndarray, dtype: np.dtype, sharding: jax.sharding.NamedSharding, *, num_stacked: int) -> jax.Array:
    """One layer's tensor on the devices, laid out as its stack is."""
    spec = jax.sharding.PartitionSpec(*sharding.spec[num_stacked:])
    place = jax.sharding.NamedSharding(sharding.mesh, spec)
    return jax.make_array_from_callback(x.shape, place, lambda index: np.ascontiguousarray(x[index], dtype))


@functools.partial(jax.jit, donate_argnums=0)
def _write(stack: jax.Array, piece: jax.Array, index: tuple[int | jax.Array, ...]) -> jax.Array:
    """`stack` with `piece` at `index` of its leading dims, in place; one program serves every layer."""
    return jax.lax.dynamic_update_slice(
        stack, piece.reshape((1,) * len(index) + piece.shape), (*index, *(0,) * piece.ndim)
    )
