"""The parts of a block that are not attention: norm, embedding table, gated MLP."""

import functools
import math
import re

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from gemma3_jax import sharding


def annotated(value) -> nnx.Param:
    """A parameter whose dims annotate and no more: sharding.parameter_shardings decides for all of them at once."""
    return nnx.Param(value, eager_sharding=False)


def parameter(rngs: nnx.Rngs, dims: str, shape: tuple[int, ...], *, fan_in: str) -> nnx.Param:
    """A normal draw with variance 1 / (product of the dims in `fan_in`), annotated with its dims.

    The report does not publish initial values: this choice keeps activations near unit variance at the first step.
    """
    letters = tuple(dims.split())
    scale = math.prod(size for letter, size in zip(letters, shape, strict=True) if letter in fan_in.split()) ** -0.5
    init = nnx.with_partitioning(nnx.initializers.normal(scale), letters)
    return annotated(init(rngs.params(), shape, jnp.float32))


def project(
    spec: str, x: Float[Array, "..."], weight: Float[Array, "..."], dtype: DTypeLike | None = None
) -> Float[Array, "..."]:
    """einsum(spec, x, weight) in `dtype`, or that of `x`, laid out over the mesh as the letters of `spec` say.

    This is ZeRO-3, once for all layers. The weight is cast to the dtype of `x`, then gathered, and only for the moment:
    the backward pass gathers it again. Its gradient is summed in float32, over tokens and over devices, and scattered
    to where the weight rests: thousands of devices would lose it in bfloat16.
    """
    return _project(spec, jnp.dtype(dtype or x.dtype), x, weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _project(spec: str, dtype: jnp.dtype, x: jax.Array, weight: jax.Array) -> jax.Array:
    _, weight_dims, out_dims = re.split(",|->", spec)
    out = jnp.einsum(spec, x, gathered(weight, weight_dims, x.dtype), preferred_element_type=dtype)
    return sharding.constrain(out, out_dims)


def _project_forward(spec: str, dtype: jnp.dtype, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple]:
    return _project(spec, dtype, x, weight), (x, weight)


def _project_backward(spec: str, dtype: jnp.dtype, saved: tuple, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_dims, weight_dims, out_dims = re.split(",|->", spec)
    x, weight = saved
    grad = grad.astype(x.dtype)  # float32 logits, too: both products run at the speed of the activations' dtype
    grad_x = jnp.einsum(f"{out_dims},{weight_dims}->{x_dims}", grad, gathered(weight, weight_dims, x.dtype))
    grad_weight = jnp.einsum(f"{x_dims},{out_dims}->{weight_dims}", x, grad, preferred_element_type=jnp.float32)
    grad_weight = sharding.constrain_at_rest(grad_weight, weight_dims).astype(weight.dtype)
    return sharding.constrain(grad_x, x_dims), grad_weight


_project.defvjp(_project_forward, _project_backward)


def gathered(weight: Float[Array, "..."], dims: str, dtype: DTypeLike) -> Float[Array, "..."]:
    """The weight in `dtype`, gathered from the shards it rests in: cast first, so that fewer bytes travel."""
    return sharding.constrain(sharding.constrain_at_rest(weight.astype(dtype), dims), dims)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def look_up(dtype: jnp.dtype, table: Float[Array, "V D"], tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Rows of the table in `dtype`. The gradient is summed in float32 over every use of a token: bfloat16 stops adding
    to a sum once it is a few hundred times the next term, and some tokens come thousands of times in a row.
    """
    return sharding.constrain(gathered(table, "VD", dtype)[tokens], "BTD")


def _look_up_forward(dtype: jnp.dtype, table: jax.Array, tokens: jax.Array) -> tuple[jax.Array, tuple]:
    return look_up(dtype, table, tokens), (table, tokens)


def _look_up_backward(dtype: jnp.dtype, saved: tuple, grad: jax.Array) -> tuple[jax.Array, None]:
    table, tokens = saved
    summed = jnp.zeros(table.shape, jnp.float32).at[tokens].add(grad.astype(jnp.float32))
    return sharding.constrain_at_rest(summed, "VD").astype(table.dtype), None


look_up.defvjp(_look_up_forward, _look_up_backward)


class RMSNorm(nnx.Module):
    """x / rms(x) * (1 + scale), in float32 whatever the dtype of x; scale starts at 0."""

    def __init__(self, dim: str, width: int, epsilon: float, rngs: nnx.Rngs):
        self.epsilon = epsilon
        init = nnx.with_partitioning(nnx.initializers.zeros_init(), (dim,))
        self.scale = annotated(init(rngs.params(), (width,), jnp.float32))

    def __call__(self, x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        x_f32 = x.astype(jnp.float32)  # bf16 keeps 8 bits: a mean of thousands of squares drifts
        inverse_rms = jax.lax.rsqrt(jnp.mean(jnp.square(x_f32), axis=-1, keepdims=True) + self.epsilon)
        scale = jnp.expand_dims(1.0 + self.scale[...].astype(jnp.float32), range(x.ndim - 1))
        return (x_f32 * inverse_rms * scale).astype(x.dtype)


class Embedder(nnx.Module):
    """The vocabulary table, used at both ends: looked up going in, multiplied with coming out."""

    def __init__(self, vocab_size: int, width: int, rngs: nnx.Rngs):
        self.table = parameter(rngs, "V D", (vocab_size, width), fan_in="D")

    def encode(self, tokens: Int[Array, "B T"], dtype: DTypeLike) -> Float[Array, "B T D"]:
        """Table rows times sqrt(D), the factor rounded to `dtype` first (33.94 becomes 34 in bfloat16)."""
        rows = look_up(jnp.dtype(dtype), self.table[...], tokens)
        return rows * jnp.asarray(math.sqrt(rows.shape[-1]), dtype)

    def decode(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Float32 logits over the whole vocabulary, from the same table without the factor."""
        return project("BTD,VD->BTV", x, self.table[...], jnp.float32)


def place_soft_tokens(
    x: Float[Array, "B T D"], soft_tokens: Float[Array, "B I Q D"], images: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """`x` with its n-th image place (images > 0) of every row overwritten by the row's n-th soft token, unscaled.

    Source: Gemma 3 report, section 2.1; google-deepmind/gemma gm/nn/_transformer.py.
    """
    is_image = images > 0
    flat = soft_tokens.reshape(soft_tokens.shape[0], -1, soft_tokens.shape[-1]).astype(x.dtype)
    order = jnp.maximum(jnp.cumsum(is_image, axis=1) - 1, 0)
    return jnp.where(is_image[..., None], jnp.take_along_axis(flat, order[..., None], axis=1), x)


class GatedMLP(nnx.Module):
    """down(gelu(gate(x)) * up(x)), with the tanh form of GELU (GeGLU)."""

    def __init__(self, width: int, mlp_width: int, rngs: nnx.Rngs):
        self.gate = parameter(rngs, "D F", (width, mlp_width), fan_in="D")
        self.up = parameter(rngs, "D F", (width, mlp_width), fan_in="D")
        self.down = parameter(rngs, "F D", (mlp_width, width), fan_in="F")

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate, up = (project("BTD,DF->BTF", x, weight[...]) for weight in (self.gate, self.up))
        return project("BTF,FD->BTD", jax.nn.gelu(gate, approximate=True) * up, self.down[...])
