"""Model parameters as a nested dict of arrays: the boundary between Flax and the rest of the package."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gemma3_jax import sharding
from gemma3_jax.model import config, transformer


def _module(model: config.Config, key: jax.Array) -> transformer.Transformer:
    return transformer.Transformer(model, nnx.Rngs(key))


@functools.cache  # tracing the whole module is slow, and bind would do it on every call
def _abstract_module(model: config.Config) -> tuple[nnx.GraphDef, nnx.State[str, Any]]:
    return jax.eval_shape(lambda: nnx.split(_module(model, jax.random.key(0))))


def shapes(model: config.Config, dtype: DTypeLike = jnp.float32) -> dict:
    """Shape and dtype of every parameter; allocates nothing."""
    _, state = _abstract_module(model)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), nnx.to_pure_dict(state))


def dims(model: config.Config) -> dict:
    """The letters of every parameter's dims, as tuples: ("L", "L", "D", "F")."""
    _, state = _abstract_module(model)
    return jax.tree.map(
        tuple, nnx.to_pure_dict(nnx.get_partition_spec(state)), is_leaf=lambda x: not isinstance(x, dict)
    )


def shardings(model: config.Config, mesh: sharding.AnyMesh) -> dict:
    """The sharding of every parameter at rest on the mesh."""
    return sharding.parameter_shardings(dims(model), shapes(model), mesh)


def count(model: config.Config) -> int:
    """The number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(model)))


def init(model: config.Config, key: jax.Array, mesh: jax.sharding.Mesh) -> dict:
    """Fresh float32 parameters, each created where it rests; the same values on any mesh."""
    make = jax.jit(lambda key: nnx.to_pure_dict(nnx.state(_module(model, key))), out_shardings=shardings(model, mesh))
    return make(key)


def bind(model: config.Config, params: dict) -> transformer.Transformer:
    """The transformer with these parameters: call it inside the function that you jit or differentiate."""
    graph, _ = _abstract_module(model)
    return nnx.merge(graph, nnx.State(params))
