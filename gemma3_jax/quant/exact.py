"""Float32 arithmetic with the same bits under jit as in numpy, where sums and products are rounded as in IEEE 754.

Weights must be rounded in training exactly as they are exported, but compilers change arithmetic. XLA multiplies by
the reciprocal of a constant instead of dividing by it; GPUs divide up to two steps off (openxla/xla#37181); a cast to
float16 or bfloat16 and back may be dropped (openxla/xla#41605, jax-ml/jax#6283), and (x + 0.5) - 0.5 is; CPUs and TPUs
flush denormals to zero; a product and a sum are rounded together unless something separates them. So this module casts
nothing, adds to exact products only, and determines quotients by trial.
"""

import math

import jax
import numpy as np
from jaxtyping import Float32, UInt32

Array = np.ndarray | jax.Array

NORMAL = 2.0**-126  # the smallest number that is no denormal
TINY = 2.0**-90  # quotients of numbers from TINY to 1 / TINY involve no denormal
FLOAT16_NORMAL = 2.0**-14  # below it float16 has steps of 2**-24


def flushed(x: Float32[Array, "..."], below: float = NORMAL) -> Float32[Array, "..."]:
    """Returns `x` with magnitudes under `below` set to zeros of the same sign."""
    xp = x.__array_namespace__()
    return xp.where(xp.abs(x) < below, x * 0, x)


def round_off(bits: UInt32[Array, "..."], num_bits: int) -> UInt32[Array, "..."]:
    """Returns bits / 2**num_bits to the nearest integer, ties to even; on the bits of a float, rounds the mantissa."""
    odd = (bits >> num_bits) & 1
    return (bits + ((1 << (num_bits - 1)) - 1) + odd) >> num_bits


def nearest_bfloat16(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Returns the bfloat16 nearest each number, ties to even, as float32."""
    xp = x.__array_namespace__()
    return (round_off(x.view(xp.uint32), 16) << 16).view(xp.float32)


def nearest_float16(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Returns the float16 nearest each number, ties to even, as float32; numbers that overflow stay beyond it."""
    xp = x.__array_namespace__()
    normal = (round_off(x.view(xp.uint32), 13) << 13).view(xp.float32)
    small = xp.round(x * 2.0**24) * 2.0**-24
    return xp.where(xp.abs(x) < FLOAT16_NORMAL, small, normal)


def quotient(x: Float32[Array, "..."], y: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Returns the float32 nearest x / y, for magnitudes from TINY to 1 / TINY, and 0 where x or y is 0.

    No two float32 are equally near 1 / y, x / 127 or x / 1.875.
    """
    xp = x.__array_namespace__()
    zero = (x == 0) | (y == 0)
    x, y = xp.where(zero, 1, x), xp.where(zero, 1, y)
    return xp.where(zero, 0, nearest(x, y, x / y))


def reciprocal(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Returns the float32 nearest 1 / x, and 0 where x is 0."""
    return quotient(x.__array_namespace__().ones_like(x), x)


def nearest(x: Float32[Array, "..."], y: Float32[Array, "..."], trial: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Returns the float32 nearest x / y, if it is at most two steps from `trial`. No argument is 0."""
    xp = trial.__array_namespace__()
    steps = xp.arange(-2, 3, dtype=xp.int32).reshape(5, *(1 for _ in trial.shape))
    trials = (trial.view(xp.int32)[None] + steps).view(xp.float32)
    (y_high, y_low), (high, low) = _halves(y[None]), _halves(trials)
    # x - trials * y, which is exact for the quotient and for its neighbor on the other side.
    miss = xp.abs(((x[None] - high * y_high) - (high * y_low + low * y_high)) - low * y_low)
    return xp.max(xp.where(miss == xp.min(miss, axis=0, keepdims=True), trials, -math.inf), axis=0)


def _halves(x: Array) -> tuple[Array, Array]:
    """Returns two numbers of 12 bits whose sum is `x`; products of such numbers are exact."""
    xp = x.__array_namespace__()
    high = (round_off(x.view(xp.uint32), 12) << 12).view(xp.float32)
    return high, x - high
