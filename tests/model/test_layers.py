import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gemma3_jax.model import config, execution, layers
from tests import toys


def test_rms_norm_multiplies_by_one_plus_scale_in_float32():
    norm = layers.RMSNorm("D", 4, 1e-6, nnx.Rngs(0))
    norm.scale[...] = jnp.asarray([0.0, 1.0, -1.0, 0.5])
    x = jnp.asarray([2.0, 2.0, 2.0, 2.0])
    np.testing.assert_allclose(norm(x), [1.0, 2.0, 0.0, 1.5], rtol=1e-5)


def test_rms_norm_of_bfloat16_is_the_float32_norm_rounded_once():
    norm = layers.RMSNorm("D", 4096, 1e-6, nnx.Rngs(0))
    x = jnp.asarray(toys.noise("x", (4096,)), jnp.bfloat16)
    np.testing.assert_array_equal(norm(x), norm(x.astype(jnp.float32)).astype(jnp.bfloat16))


@pytest.mark.parametrize("size, factor", [("270m", 25.25), ("1b", 34.0), ("4b", 50.5), ("12b", 62.0), ("27b", 73.5)])
def test_the_embedding_factor_is_rounded_to_bfloat16_before_use(size, factor):
    embed_dim = config.SIZES[size].embed_dim
    embedder = layers.Embedder(2, embed_dim, nnx.Rngs(0))
    embedder.table[...] = jnp.ones((2, embed_dim))
    assert embedder.encode(jnp.asarray([[1]]), jnp.bfloat16)[0, 0, 0] == factor
    assert embedder.encode(jnp.asarray([[1]]), jnp.float32)[0, 0, 0] == np.float32(embed_dim**0.5)


def test_decode_uses_the_table_as_it_is():
    embedder = layers.Embedder(3, 2, nnx.Rngs(0))
    embedder.table[...] = jnp.asarray([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    logits = embedder.decode(jnp.asarray([[[3.0, 5.0]]], jnp.bfloat16))
    assert logits.dtype == jnp.float32 and logits[0, 0].tolist() == [3.0, 10.0, 8.0]


def test_the_mlp_is_gated_by_the_tanh_gelu():
    mlp = layers.GatedMLP(1, 1, nnx.Rngs(0))
    mlp.gate[...], mlp.up[...], mlp.down[...] = (jnp.full((1, 1), value) for value in (1.0, 3.0, 5.0))
    x = 0.7
    gelu = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(mlp(jnp.full((1, 1, 1), x)), np.full((1, 1, 1), gelu * 3 * x * 5), rtol=1e-6)


def test_the_gradients_of_the_gate_and_of_what_it_gates_are_those_of_the_formula():
    gate, up, grad = (np.asarray(toys.noise(name, (2, 3, 5)), np.float64) for name in ("gate", "up", "grad"))
    gelu = lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))  # noqa: E731
    slope = (gelu(gate + 1e-5) - gelu(gate - 1e-5)) / 2e-5
    _, pull_back = jax.vjp(layers.geglu, jnp.asarray(gate, jnp.float32), jnp.asarray(up, jnp.float32))
    got = pull_back(jnp.asarray(grad, jnp.float32))
    np.testing.assert_allclose(got[0], grad * up * slope, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[1], grad * gelu(gate), rtol=1e-5, atol=1e-6)


def test_soft_tokens_replace_image_tokens_in_order_and_nothing_else():
    x = jnp.zeros((1, 6, 2))
    soft = jnp.arange(1.0, 9.0).reshape(1, 2, 2, 2)
    out = layers.insert_soft_tokens(x, soft, jnp.asarray([[0, 1, 1, 0, 2, 2]]))
    assert out[0].tolist() == [[0, 0], [1, 2], [3, 4], [0, 0], [5, 6], [7, 8]]


def test_fresh_parameters_keep_activations_near_unit_variance():
    x = jax.random.normal(jax.random.key(0), (4, 32, 256))
    assert 0.3 < float(jnp.std(layers.GatedMLP(256, 512, nnx.Rngs(0))(x))) < 1.2
    assert 0.9 < float(jnp.std(layers.Embedder(512, 256, nnx.Rngs(0)).encode(jnp.arange(512)[None], jnp.float32))) < 1.1


@pytest.mark.parametrize("field", ["dtype", "remat", "attention"])
def test_an_unknown_choice_is_refused_with_the_allowed_ones(field):
    with pytest.raises(ValueError, match=rf"{field} is 'fast'; it must be one of \w+, "):
        execution.Execution(**{field: "fast"})
