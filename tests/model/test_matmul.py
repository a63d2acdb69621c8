"""Products of activations against float32, and the result dtype on each platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax.model import matmul

SPEC = "BTF,FD->BTD"


def operands(dtype):
    shapes = (2, 3, 64), (64, 8), (2, 3, 8)
    return [jax.random.normal(jax.random.key(i), shape).astype(dtype) for i, shape in enumerate(shapes)]


def test_bfloat16_product_and_its_gradients_are_float32_ones_rounded_once():
    *operands_bf16, out_grad = operands(jnp.bfloat16)
    out, pullback = jax.vjp(jax.jit(lambda x, y: matmul.einsum(SPEC, x, y)), *operands_bf16)
    wide, wide_pullback = jax.vjp(lambda x, y: jnp.einsum(SPEC, x, y), *(x.astype(jnp.float32) for x in operands_bf16))
    narrow_results, expected = (out, *pullback(out_grad)), (wide, *wide_pullback(out_grad.astype(jnp.float32)))
    for narrow, exact in zip(narrow_results, expected, strict=True):
        assert narrow.dtype == jnp.bfloat16
        # Half a unit in the last of 8 bits, and a little more, as sums in another order may round the other way.
        np.testing.assert_allclose(narrow.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)


def test_float32_product_of_bfloat16_is_not_rounded():
    x, y, _ = operands(jnp.bfloat16)
    exact = jnp.einsum(SPEC, x.astype(jnp.float32), y.astype(jnp.float32))
    np.testing.assert_allclose(matmul.einsum(SPEC, x, y, jnp.float32), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("platform, dtype", [("cpu", "f32"), ("tpu", "bf16"), ("cuda", "bf16")])
def test_only_a_cpu_multiplies_into_float32(platform, dtype):
    x, y, _ = operands(jnp.bfloat16)
    traced = jax.jit(lambda x, y: matmul.einsum(SPEC, x, y)).trace(x, y)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    (dot,) = (line for line in text.splitlines() if "dot_general" in line)
    assert dot.endswith(f"(tensor<2x3x64xbf16>, tensor<64x8xbf16>) -> tensor<2x3x8x{dtype}>")
