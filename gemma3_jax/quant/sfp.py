"""Switched floating point: a byte of sign, exponent, and three mantissa bits from 2**-7 on, two below.

The 255 codes run from -1.875 to 1.875; the magnitude of code v is (1 + (v & 7) / 8) * 2**((v >> 3) - 15) for v >= 64
and (1 + (v & 3) / 4) * 2**((v >> 2) - 23) below, but 0 for v = 0. The code 0x80 is never written.
Source: google/gemma.cpp, compression/types.h and sfp-inl.h.
"""

from jaxtyping import Float32, UInt8

from gemma3_jax.quant import exact
from gemma3_jax.quant.exact import Array

LARGEST = 1.875
SWITCH_BITS = (127 - 7) << 23  # of the float32 2**-7
# The bits of a float32, shifted until the code's mantissa bits are left, exceed the code by so much.
SMALL_SHIFT, SMALL_EXCESS = 21, (127 - 23) << 2
LARGE_SHIFT, LARGE_EXCESS = 20, (127 - 15) << 3


def codes(x: Float32[Array, "..."], *, direct: bool = False) -> UInt8[Array, "..."]:
    """Returns the code of each number, ties to even; numbers beyond LARGEST get its code.

    As in gemma.cpp, mantissa bits after the sixth are dropped before rounding; `direct` rounds once.
    """
    xp = x.__array_namespace__()
    bits = xp.minimum(xp.abs(x), LARGEST).view(xp.uint32)
    if not direct:
        bits = (bits >> 17) << 17
    small = exact.round_off(bits, SMALL_SHIFT)  # 64, the code of 2**-7, if the carry reaches that far
    small = xp.where(small < SMALL_EXCESS, 0, xp.maximum(small - SMALL_EXCESS, 1))  # 2**-23 would be code 0
    magnitude = xp.where(bits < SWITCH_BITS, small, exact.round_off(bits, LARGE_SHIFT) - LARGE_EXCESS)
    return xp.where((x < 0) & (magnitude > 0), magnitude | 0x80, magnitude).astype(xp.uint8)


def values(codes: UInt8[Array, "..."]) -> Float32[Array, "..."]:
    """Returns the number that each code stands for."""
    xp = codes.__array_namespace__()
    v = codes.astype(xp.uint32) & 0x7F
    bits = xp.where(v < 64, (v + SMALL_EXCESS) << SMALL_SHIFT, (v + LARGE_EXCESS) << LARGE_SHIFT)
    magnitude = xp.where(v == 0, 0, bits).view(xp.float32)
    return xp.where(codes < 0x80, magnitude, -magnitude)
