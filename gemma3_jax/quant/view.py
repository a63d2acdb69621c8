"""Fake quantization: the forward pass sees the parameters as an exported file will hold them."""

import functools
from collections.abc import Callable, Mapping

import jax

from gemma3_jax import sharding
from gemma3_jax.quant import formats
from gemma3_jax.quant.settings import Quant

TABLE = "embedder/table"
# The parameters that are rounded, and the dims that their products sum over. Norms are not rounded.
CONTRACTED = {
    TABLE: "D",
    "attention/query": "D",
    "attention/key": "D",
    "attention/value": "D",
    "attention/output": "NH",
    "mlp/gate": "D",
    "mlp/up": "D",
    "mlp/down": "F",
}


def make(quant: Quant, dims: Mapping) -> Callable[[dict], dict]:
    """Returns a function from float32 parameters to rounded ones, layer by layer.

    `dims` has the letters of every parameter (parameters.dims). The gradient at the rounded weights becomes that of the
    parameters (straight-through estimator).
    The function raises ValueError when it is traced, if a parameter does not consist of whole blocks.
    """

    def one(path: tuple[jax.tree_util.DictKey, ...], x: jax.Array, letters: tuple[str, ...]) -> jax.Array:
        keys = [step.key for step in path]
        kind = "/".join(keys[-2:])
        if kind not in CONTRACTED:
            return x
        format = quant.embedding if kind == TABLE else quant.format
        contracted = tuple(letters.index(letter) for letter in CONTRACTED[kind])
        formats.check_shape("/".join(keys), x.shape, format, contracted)
        return _rounded(format, "".join(letters), contracted, x)

    return lambda params: jax.tree_util.tree_map_with_path(one, params, dims) if quant.format else params


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _rounded(format: str, dims: str, contracted: tuple[int, ...], x: jax.Array) -> jax.Array:
    """Returns `x` rounded in its sharding at rest, resharded around that if a shard would hold part of a block."""
    multiples = {dims[dim]: size for dim, size in formats.shard_multiples(format, x.shape, contracted).items()}
    num_stacked = dims.count("L")
    each_layer = functools.partial(formats.rounded, format, dims=tuple(dim - num_stacked for dim in contracted))
    for _ in range(num_stacked):
        each_layer = jax.vmap(each_layer)
    in_blocks = functools.partial(sharding.constrain_at_rest, dims=dims, shard_multiples=multiples)
    return sharding.constrain_at_rest(in_blocks(each_layer(in_blocks(x))), dims)


def _forward(format: str, dims: str, contracted: tuple[int, ...], x: jax.Array) -> tuple[jax.Array, None]:
    return _rounded(format, dims, contracted, x), None


def _backward(format: str, dims: str, contracted: tuple[int, ...], saved: None, grad: jax.Array) -> tuple[jax.Array]:
    return (grad,)


_rounded.defvjp(_forward, _backward)
