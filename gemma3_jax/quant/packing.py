"""The bytes of a stored matrix of rows of outputs, encoded with dims=(1,): a product sums over the last dim.

    q4_0   per block 18 bytes: the scale, float16 little-endian; then byte j has item j low and item j + 16 high
    q8_0   per block 34 bytes: the scale likewise; then the items, two's complement
    int4   per byte two weights in two's complement, the even one low; the last of an odd row has a byte to itself
    sfp8   per byte one weight

The scales of int4 (a float32 per output) and of sfp8 (a single one) are stored beside the bytes.
"""

import numpy as np
from jaxtyping import Float32, UInt8

from gemma3_jax.quant import formats


def pack(format: str, encoded: formats.Encoded) -> UInt8[np.ndarray, "_ _"]:
    """Returns the bytes of the codes and, in the block formats, of the scales."""
    codes, scale = encoded
    if format == "sfp8":
        return codes
    if format == "int4":
        nibbles = np.pad(codes.view(np.uint8) & 15, ((0, 0), (0, codes.shape[1] % 2)))
        return nibbles[:, ::2] | nibbles[:, 1::2] << 4
    items = codes.view(np.uint8)
    if format == "q4_0":
        half = formats.BLOCK // 2
        items = items[..., :half] | items[..., half:] << 4
    scale_bytes = scale.astype("<f2").view(np.uint8)
    return np.concatenate([scale_bytes, items], axis=-1).reshape(codes.shape[0], -1)


def unpack(
    format: str,
    data: UInt8[np.ndarray, "_ _"],
    num_contracted: int,
    scale: Float32[np.ndarray, "..."] | None = None,
) -> formats.Encoded:
    """Returns what `pack` was called with.

    An output sums over `num_contracted` weights; `scale` has the scales that are stored beside the bytes.
    """
    if format == "sfp8":
        return formats.Encoded(data, scale)
    if format == "int4":
        nibbles = np.stack([data & 15, data >> 4], axis=-1).reshape(data.shape[0], -1)[:, :num_contracted]
        return formats.Encoded((nibbles ^ 8).view(np.int8) - np.int8(8), scale)  # the sign from bit 3
    blocks = data.reshape(data.shape[0], num_contracted // formats.BLOCK, -1)
    scale = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
    items = blocks[..., 2:]
    if format == "q8_0":
        return formats.Encoded(items.view(np.int8), scale)
    return formats.Encoded(np.concatenate([items & 15, items >> 4], axis=-1), scale)
