"""Quantized formats of weights, as pure functions of one matrix, with the same bits from numpy and under jit.

    int4   integers from -7 to 7; a float32 scale for each output channel
    q4_0   integers from -8 to 7; a float16 scale for each block of 32 along the contraction (llama.cpp)
    q8_0   integers from -127 to 127; the same scales
    sfp8   switched floating point (sfp.py); one float32 scale, which is 1 unless a weight is beyond 1.875 (gemma.cpp)

`dims` are the adjacent dims that a product sums over: (0,) of "D N H", (0, 1) of "N H D", (1,) of a file's rows of
outputs. Denormals count as zero, and so does a channel or block whose largest magnitude is below exact.TINY. Any other
block of q4_0 and q8_0, and one of zeros, has the bytes that the package gguf writes. Below TINY the codes differ, but
the values are zeros in both: float16 rounds a scale of 2**-25 or less to 0.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Integer

from gemma3_jax.quant import exact, sfp
from gemma3_jax.quant.exact import Array
from gemma3_jax.quant.settings import MATRICES, TABLES  # noqa: F401 (defined there, as settings are read without JAX)

BLOCK_FORMATS = ("q4_0", "q8_0")
BLOCK = 32  # weights
FLOAT16_LARGEST = 65504.0

# The largest magnitudes that overflow neither a scale, nor the format, nor the arithmetic of exact.py.
LARGEST = {
    "int4": 1 / exact.TINY,
    "q4_0": 8 * FLOAT16_LARGEST,
    "sfp8": 1 / exact.TINY,
    "q8_0": 127 * FLOAT16_LARGEST,
    "float16": FLOAT16_LARGEST,
    "bfloat16": (2 - 2.0**-7) * 2.0**127,
    "float32": float(np.finfo(np.float32).max),
}


class Encoded(NamedTuple):
    """A stored matrix: its weights are the values of its codes times its scale.

    In the block formats, dims of blocks R and of their items Z replace the contracted dims, or the last of them if that
    is whole blocks. The scale has size 1 in each dim that shares it.
    """

    codes: Integer[Array, "..."]
    scale: Float32[Array, "..."]


def encode(format: str, x: Float32[Array, "..."], dims: tuple[int, ...]) -> Encoded:
    """Returns a matrix in a format of MATRICES, from float32 weights that pass `check`."""
    assert x.dtype == np.float32, x.dtype
    return _ENCODE[format](exact.flushed(x), tuple(dim % x.ndim for dim in dims))


def decode(format: str, encoded: Encoded) -> Float32[Array, "..."]:
    """Returns the weights, in the shape of the codes."""
    codes, scale = encoded
    if format == "sfp8":
        return sfp.values(codes) * scale
    values = codes.astype(codes.__array_namespace__().float32)
    return (values - 8 if format == "q4_0" else values) * scale


def rounded(format: str, x: Float32[Array, "..."], dims: tuple[int, ...]) -> Float32[Array, "..."]:
    """Returns the weights encoded in a format of MATRICES or TABLES, and decoded again."""
    if format == "float32":
        return x
    if format == "bfloat16":
        return exact.nearest_bfloat16(x)
    if format == "float16":
        return exact.nearest_float16(x)
    return decode(format, encode(format, x, dims)).reshape(x.shape)


def _int4(x: Array, dims: tuple[int, ...]) -> Encoded:
    xp = x.__array_namespace__()
    scale = exact.flushed(xp.max(xp.abs(x), axis=dims, keepdims=True), exact.TINY) * (1 / 7)
    return Encoded(xp.round(x * exact.reciprocal(scale)).astype(xp.int8), scale)


def _q4_0(x: Array, dims: tuple[int, ...]) -> Encoded:
    """Source: ggml quants.c, quantize_row_q4_0_ref; gguf quants.py, whose float32 product is rounded before the sum."""
    xp = x.__array_namespace__()
    x, dim = _blocks("q4_0", x, dims)
    items = xp.arange(BLOCK).reshape([BLOCK if i == dim else 1 for i in range(x.ndim)])
    first = xp.argmax(xp.abs(x), axis=dim, keepdims=True)
    # Signed, as the codes reach -8 on that side. Not take_along_axis: a partitioned gather may fetch all shards.
    largest = xp.max(xp.where(items == first, x, -math.inf), axis=dim, keepdims=True)
    scale = exact.flushed(largest, exact.TINY) * -0.125
    # 7 and 8 share the last code; and a minimum between product and sum keeps the compiler from fusing them.
    codes = xp.floor(xp.minimum(x * exact.reciprocal(scale), 7) + 8.5)
    return Encoded(codes.astype(xp.uint8), exact.nearest_float16(scale))


def _q8_0(x: Array, dims: tuple[int, ...]) -> Encoded:
    """Source: ggml quants.c, quantize_row_q8_0_ref."""
    xp = x.__array_namespace__()
    x, dim = _blocks("q8_0", x, dims)
    largest = exact.flushed(xp.max(xp.abs(x), axis=dim, keepdims=True), exact.TINY)
    scale = exact.quotient(largest, xp.full_like(largest, 127))
    magnitude = xp.minimum(xp.abs(x) * exact.reciprocal(scale), 127)  # a minimum for the reasons in q4_0
    whole = xp.floor(magnitude)
    nearest = whole + (magnitude - whole >= 0.5)  # ties away from zero
    return Encoded(xp.copysign(nearest, x).astype(xp.int8), exact.nearest_float16(scale))


def _sfp8(x: Array, dims: tuple[int, ...]) -> Encoded:
    """Source: google/gemma.cpp, compression/compress.cc, ScaleWeights."""
    xp = x.__array_namespace__()
    largest = xp.max(xp.abs(x), keepdims=True)
    scale = xp.where(largest > sfp.LARGEST, exact.quotient(largest, xp.full_like(largest, sfp.LARGEST)), 1)
    return Encoded(sfp.codes(x * exact.reciprocal(scale)), scale)


_ENCODE = {"int4": _int4, "q4_0": _q4_0, "sfp8": _sfp8, "q8_0": _q8_0}


def block_dims(format: str, shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, int] | None:
    """Returns the first and the last dim that dims of blocks and items replace; None if the format has no blocks."""
    if format not in BLOCK_FORMATS:
        return None
    # The dims before the last one stay separate if they can: a mesh may split them.
    return (dims[0] if shape[dims[-1]] % BLOCK else dims[-1]), dims[-1]


def in_blocks(format: str, x: Array, dims: tuple[int, ...]) -> Array:
    """Returns `x` in the shape of the codes of a format."""
    if (replaced := block_dims(format, x.shape, dims)) is None:
        return x
    first, last = replaced
    num_blocks = math.prod(x.shape[first : last + 1]) // BLOCK
    return x.reshape(*x.shape[:first], num_blocks, BLOCK, *x.shape[last + 1 :])


def _blocks(format: str, x: Array, dims: tuple[int, ...]) -> tuple[Array, int]:
    """Returns `x` with its contracted dims in blocks, and the dim of the items in a block."""
    return in_blocks(format, x, dims), block_dims(format, x.shape, dims)[0] + 1


def shard_multiples(format: str, shape: tuple[int, ...], dims: tuple[int, ...]) -> dict[int, int]:
    """Returns dim -> the number of elements that a shard must be a multiple of, to hold whole blocks."""
    if format not in BLOCK_FORMATS:
        return {}  # the maximum over shards is exact
    return {dim: shape[dim] for dim in dims} if shape[dims[-1]] % BLOCK else {dims[-1]: BLOCK}


def check_shape(name: str, shape: tuple[int, ...], format: str, dims: tuple[int, ...]) -> None:
    """Raises: ValueError naming a parameter that does not consist of whole blocks."""
    size = math.prod(shape[dim] for dim in dims)
    if format in BLOCK_FORMATS and size % BLOCK:
        raise ValueError(
            f"{name} {tuple(shape)} sums over {size} weights; {format} needs a multiple of {BLOCK}: "
            "choose another format, or a model of other dims"
        )


def check(name: str, x: np.ndarray, format: str, dims: tuple[int, ...]) -> None:
    """Raises: ValueError naming a parameter that is not whole blocks, not finite, or beyond LARGEST."""
    check_shape(name, x.shape, format, dims)
    largest = np.max(np.abs(x))
    if not np.isfinite(largest):
        bad = ~np.isfinite(x)
        first = tuple(int(i) for i in np.unravel_index(np.argmax(bad), x.shape))
        raise ValueError(
            f"{name} has {np.count_nonzero(bad)} of {x.size} values that are not finite, the first {x[first]} "
            f"at {first}; {format} stores finite values only"
        )
    if largest > LARGEST[format]:
        raise ValueError(
            f"{name} has a value of magnitude {largest:.6g}; {format} stores at most {LARGEST[format]:.6g}"
        )


def num_bytes(format: str, num_outputs: int, num_contracted: int) -> int:
    """Returns the bytes of a matrix in a file, scales included; the weights of each output start on a new byte."""
    row = {
        "int4": -(-num_contracted // 2) + 4,
        "q4_0": num_contracted // BLOCK * (2 + BLOCK // 2),
        "q8_0": num_contracted // BLOCK * (2 + BLOCK),
        "sfp8": num_contracted,
        "float16": 2 * num_contracted,
        "bfloat16": 2 * num_contracted,
        "float32": 4 * num_contracted,
    }[format]
    return num_outputs * row + (4 if format == "sfp8" else 0)
