"""A weight that does not train: in floats or packed in a few bits, with low-rank factors beside it that do, or without.

`fsdp.project` takes it like any other weight. With factors it stands for value + scale * (down @ up).
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gemma3_jax import sharding
from gemma3_jax.quant import formats

CODES = {"int4": jnp.int4, "q4_0": jnp.uint4, "q8_0": jnp.int8, "sfp8": jnp.uint8}  # the dtype of the codes of a format


@functools.partial(jax.tree_util.register_dataclass, data_fields=("codes", "scale"), meta_fields=("format",))
@dataclasses.dataclass(frozen=True)
class Packed:
    """A matrix in a format of quant.formats: the codes in the shape of the matrix, the scales as `formats.encode`."""

    codes: object  # an array; or its shape and dtype, or its sharding
    scale: object
    format: str


@functools.partial(jax.tree_util.register_dataclass, data_fields=("down", "up"), meta_fields=("scale",))
@dataclasses.dataclass(frozen=True)
class Factors:
    """The two factors of what is added to a matrix, and what their product is multiplied by.

    `down` has the contracted dims of the matrix and C, `up` has C and its other dims.
    """

    down: object
    up: object
    scale: float


@functools.partial(jax.tree_util.register_dataclass, data_fields=("value", "factors"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class FrozenWeight:
    """A matrix that has no gradient, and its factors, if it has any."""

    value: object  # an array, or Packed
    factors: Factors | None


def factor_dims(dims: str, contracted: str) -> tuple[str, str]:
    """The dims of `down` and `up`, for a matrix of these dims: "DC" and "CNH" for "DNH", contracted over "D"."""
    down = "".join(letter for letter in dims if letter in contracted)
    return f"{down}C", "C" + "".join(letter for letter in dims if letter not in contracted)


def factor_specs(spec: str) -> tuple[str, str]:
    """The two products with factors instead of one with the matrix: "BTD,DC->BTC" and "BTC,CF->BTF"."""
    x_dims, dims, out_dims = re.split(",|->", spec)
    contracted = "".join(letter for letter in dims if letter not in out_dims)
    down, up = factor_dims(dims, contracted)
    low_dims = "".join(letter for letter in x_dims if letter not in contracted) + "C"
    return f"{x_dims},{down}->{low_dims}", f"{low_dims},{up}->{out_dims}"


def pack(format: str, x: Float[Array, "..."], dims: str, contracted: str) -> Packed:
    """A matrix of float32 weights, or a stack of them ("L"), in a format of quant.formats.

    `contracted`: the letters that its product sums over.
    """
    num_stacked = dims.count("L")
    encode = functools.partial(formats.encode, format, dims=_contracted_dims(dims[num_stacked:], contracted))
    for _ in range(num_stacked):
        encode = jax.vmap(encode)
    encoded = encode(x)
    return Packed(encoded.codes.reshape(x.shape).astype(CODES[format]), encoded.scale, format)


def unpack(packed: Packed, dims: str, contracted: str, dtype: DTypeLike) -> Float[Array, "..."]:
    """The weights of one matrix, rounded to `dtype` once."""
    shape = packed.codes.shape
    codes = formats.in_blocks(packed.format, packed.codes, _contracted_dims(dims, contracted))
    return formats.decode(packed.format, formats.Encoded(codes, packed.scale)).reshape(shape).astype(dtype)


def scale_dims(format: str, shape: tuple[int, ...], dims: str, contracted: str) -> str:
    """The dims of the scales of a matrix, or of a stack of them: blocks R and their one item Z, where it has blocks."""
    num_stacked = dims.count("L")
    blocks = formats.block_dims(format, shape[num_stacked:], _contracted_dims(dims[num_stacked:], contracted))
    if blocks is None:
        return dims
    first, last = (dim + num_stacked for dim in blocks)
    return f"{dims[:first]}RZ{dims[last + 1 :]}"


def _contracted_dims(dims: str, contracted: str) -> tuple[int, ...]:
    return tuple(dims.index(letter) for letter in contracted)


def packed_shardings(packed: Packed, dims: str, contracted: str, mesh: sharding.AnyMesh) -> Packed:
    """The shardings at rest of a matrix, or of a stack of them; `packed` may be shapes and dtypes alone."""
    letters = scale_dims(packed.format, packed.codes.shape, dims, contracted)
    codes, scale = (
        jax.sharding.NamedSharding(mesh, sharding.parameter_spec(tuple(dims), x.shape, mesh.shape))
        for dims, x in ((dims, packed.codes), (letters, packed.scale))
    )
    return Packed(codes, scale, packed.format)
