"""Rotary position embedding (RoPE): positions as angles between query and key."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def angles(
    positions: Int[Array, "B T"], head_dim: int, *, base: float, scale: float
) -> Float[Array, "B T {head_dim//2}"]:
    """position * base^(-2i/H) / scale, in radians, for i = 0 ... H/2 - 1.

    Dividing by `scale` is linear position interpolation: scale 8 maps positions up to 128K to the angles of 16K.
    Source: Gemma 3 report, section 2 (long context) and 5.3; Chen et al. 2023.
    """
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequencies = 1.0 / (base**exponents) / scale
    return positions[..., None].astype(jnp.float32) * frequencies[None, None]


def rotate(x: Float[Array, "B T N H"], angles: Float[Array, "B T H//2"]) -> Float[Array, "B T N H"]:
    """`x` with dims i and i + H/2 rotated together by angle i: the half-split pairing of every Gemma 3 checkpoint."""
    sin, cos = jnp.sin(angles)[:, :, None], jnp.cos(angles)[:, :, None]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
