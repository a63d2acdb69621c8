"""The parts of a block that are not attention: norm, embedding table, gated MLP."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from gemma3_jax.model import fsdp, sharded_embedding


class RMSNorm(nnx.Module):
    """x / rms(x) * (1 + scale), in float32 whatever the dtype of x; scale starts at 0."""

    def __init__(self, dim: str, size: int, epsilon: float, rngs: nnx.Rngs):
        """`dim` is the letter of the normalized dim, `size` its size."""
        self.epsilon = epsilon
        init = nnx.with_partitioning(nnx.initializers.zeros_init(), (dim,))
        self.scale = fsdp.annotated(init(rngs.params(), (size,), jnp.float32))

    def __call__(self, x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        x_f32 = x.astype(jnp.float32)  # bf16 keeps 8 bits: a mean of thousands of squares drifts
        inverse_rms = jax.lax.rsqrt(jnp.mean(jnp.square(x_f32), axis=-1, keepdims=True) + self.epsilon)
        scale = jnp.expand_dims(1.0 + self.scale[...].astype(jnp.float32), range(x.ndim - 1))
        return (x_f32 * inverse_rms * scale).astype(x.dtype)


class Embedder(nnx.Module):
    """The embedding table, which both ends share: looked up for inputs, multiplied with for logits."""

    def __init__(self, vocab_size: int, embed_dim: int, rngs: nnx.Rngs):
        self.table = fsdp.parameter(rngs, "V D", (vocab_size, embed_dim), fan_in="D")

    def encode(self, tokens: Int[Array, "B T"], dtype: DTypeLike) -> Float[Array, "B T D"]:
        """Table rows times sqrt(D), the factor rounded to `dtype` first (33.94 becomes 34 in bfloat16)."""
        rows = sharded_embedding.lookup(jnp.dtype(dtype), self.table[...], tokens)
        return rows * jnp.asarray(math.sqrt(rows.shape[-1]), dtype)

    def decode(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Float32 logits over the whole vocabulary, from the same table without the factor."""
        return fsdp.project("BTD,VD->BTV", x, self.table[...], jnp.float32)


def insert_soft_tokens(
    x: Float[Array, "B T D"], soft_tokens: Float[Array, "B I Q D"], images: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """`x` with the n-th image token (images > 0) of every row replaced by the row's n-th soft token, unscaled.

    Source: Gemma 3 report, section 2.1; google-deepmind/gemma gm/nn/_transformer.py.
    """
    is_image = images > 0
    flat = soft_tokens.reshape(soft_tokens.shape[0], -1, soft_tokens.shape[-1]).astype(x.dtype)
    order = jnp.maximum(jnp.cumsum(is_image, axis=1) - 1, 0)
    return jnp.where(is_image[..., None], jnp.take_along_axis(flat, order[..., None], axis=1), x)


class GatedMLP(nnx.Module):
    """down(gelu(gate(x)) * up(x)), with the tanh form of GELU (GeGLU)."""

    def __init__(self, embed_dim: int, mlp_dim: int, rngs: nnx.Rngs):
        self.gate = fsdp.parameter(rngs, "D F", (embed_dim, mlp_dim), fan_in="D")
        self.up = fsdp.parameter(rngs, "D F", (embed_dim, mlp_dim), fan_in="D")
        self.down = fsdp.parameter(rngs, "F D", (mlp_dim, embed_dim), fan_in="F")

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate, up = (fsdp.project("BTD,DF->BTF", x, weight.get_value()) for weight in (self.gate, self.up))
        return fsdp.project("BTF,FD->BTD", geglu(gate, up), self.down.get_value())


@jax.custom_vjp
def geglu(gate: Float[Array, "B T F"], up: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    """gelu(gate) * up, with the tanh form of GELU.

    Both gradients leave together, as then XLA's TPU backend makes them inside the product that they come from. It would
    make that of `gate` in a pass of its own, and that of `up` once more in each product that reads it.
    """
    return jax.nn.gelu(gate, approximate=True) * up


def _geglu_forward(gate: jax.Array, up: jax.Array) -> tuple[jax.Array, tuple]:
    return geglu(gate, up), (gate, up)


def _geglu_backward(saved: tuple, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    _, pull_back = jax.vjp(geglu.fun, *saved)
    return jax.lax.optimization_barrier(pull_back(grad))


geglu.defvjp(_geglu_forward, _geglu_backward)
