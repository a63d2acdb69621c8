"""A frozen weight with factors beside it: its product, its gradients, and what is packed of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax.model import fsdp, low_rank
from gemma3_jax.quant import formats
from tests import toys

PRODUCTS = [
    ("BTD,DNH->BTNH", (2, 3, 4), (4, 2, 5), "D"),
    ("BTNH,NHD->BTD", (2, 3, 2, 5), (2, 5, 4), "NH"),
    ("BTF,FD->BTD", (2, 3, 6), (6, 4), "F"),
]


def adapted(spec, shape, contracted, rank=2, scale=1.5):
    dims = spec.split(",")[1].partition("->")[0]
    sizes = dict(zip(dims, shape, strict=True)) | {"C": rank}
    down, up = (
        jnp.asarray(toys.noise(f"{name} {shape}", tuple(sizes[letter] for letter in letters)))
        for name, letters in zip(("down", "up"), low_rank.factor_dims(dims, contracted), strict=True)
    )
    value = jnp.asarray(toys.noise(f"value {shape}", shape))
    return low_rank.FrozenWeight(value, low_rank.Factors(down, up, scale))


def merged(weight):
    """The matrix that a weight stands for."""
    factors = weight.factors
    return weight.value + factors.scale * jnp.tensordot(factors.down, factors.up, axes=1)


def test_a_product_by_hand():
    weight = low_rank.FrozenWeight(
        jnp.asarray([[1.0, 2.0], [3.0, 4.0]]),
        low_rank.Factors(jnp.asarray([[1.0], [2.0]]), jnp.asarray([[10.0, 20.0]]), 0.5),
    )
    # x W = [1*5 + 3*7, 2*5 + 4*7]; x down = 5 + 14 = 19, times 0.5 = 9.5, times up = [95, 190].
    out = fsdp.project("BTD,DF->BTF", jnp.asarray([[[5.0, 7.0]]]), weight)
    np.testing.assert_array_equal(out, [[[26 + 95, 38 + 190]]])


def test_the_dims_of_factors_are_those_of_the_matrix_around_the_rank():
    assert low_rank.factor_dims("DNH", "D") == ("DC", "CNH")
    assert low_rank.factor_specs("BTNH,NHD->BTD") == ("BTNH,NHC->BTC", "BTC,CD->BTD")


@pytest.mark.parametrize("spec, x_shape, shape, contracted", PRODUCTS)
def test_output_and_gradients_are_those_of_dense_autodiff_through_the_merged_matrix(spec, x_shape, shape, contracted):
    x, weight = jnp.asarray(toys.noise("x", x_shape)), adapted(spec, shape, contracted)

    def ours(x, down, up):
        factors = low_rank.Factors(down, up, weight.factors.scale)
        return jnp.sum(jnp.sin(fsdp.project(spec, x, low_rank.FrozenWeight(weight.value, factors))))

    def dense(x, down, up):
        factors = low_rank.Factors(down, up, weight.factors.scale)
        return jnp.sum(jnp.sin(jnp.einsum(spec, x, merged(low_rank.FrozenWeight(weight.value, factors)))))

    arguments = x, weight.factors.down, weight.factors.up
    expected, got = (jax.value_and_grad(loss, argnums=(0, 1, 2))(*arguments) for loss in (dense, ours))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)


@pytest.mark.parametrize("spec, x_shape, shape, contracted", PRODUCTS)
def test_a_frozen_matrix_has_no_gradient(spec, x_shape, shape, contracted):
    x, weight = jnp.asarray(toys.noise("x", x_shape)), adapted(spec, shape, contracted)
    grad = jax.grad(lambda weight: jnp.sum(fsdp.project(spec, x, weight)))(weight)
    assert not np.any(grad.value) and np.any(grad.factors.down) and np.any(grad.factors.up)


def test_factors_whose_second_is_zero_change_no_bit():
    spec, x_shape, shape, contracted = PRODUCTS[0]
    x, weight = jnp.asarray(toys.noise("x", x_shape)), adapted(spec, shape, contracted)
    fresh = low_rank.Factors(weight.factors.down, jnp.zeros_like(weight.factors.up), 7.0)
    with_factors = fsdp.project(spec, x, low_rank.FrozenWeight(weight.value, fresh))
    np.testing.assert_array_equal(with_factors, fsdp.project(spec, x, weight.value))


PACKED = [("BTD,DNH->BTNH", (64, 3, 5), "D"), ("BTNH,NHD->BTD", (4, 8, 6), "NH"), ("BTNH,NHD->BTD", (3, 32, 6), "NH")]


@pytest.mark.parametrize("format", formats.MATRICES)
@pytest.mark.parametrize("spec, shape, contracted", PACKED)
def test_a_packed_matrix_is_the_rounded_one_forward_and_backward(format, spec, shape, contracted):
    x_dims, dims, _ = spec.replace("->", ",").split(",")
    stack = jnp.asarray(toys.noise("stack", (2, *shape)))
    packed = jax.jit(lambda x: low_rank.pack(format, x, f"L{dims}", contracted))(stack)
    one = jax.tree.map(lambda leaf: leaf[1], packed)
    sizes = dict(zip(dims, shape, strict=True)) | {"B": 2, "T": 3}
    x = jnp.asarray(toys.noise("x", tuple(sizes[letter] for letter in x_dims)))
    rounded = formats.rounded(format, stack[1], tuple(dims.index(letter) for letter in contracted))
    np.testing.assert_array_equal(low_rank.unpack(one, dims, contracted, jnp.float32), rounded)
    weights = low_rank.FrozenWeight(one, None), low_rank.FrozenWeight(rounded, None)
    got, expected = (jax.value_and_grad(lambda x: jnp.sum(jnp.sin(fsdp.project(spec, x, w))))(x) for w in weights)  # noqa: B023
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_four_bits_are_four_bits_on_a_device():
    packed = low_rank.pack("q4_0", jnp.ones((1, 64, 8)), "LDF", "D")
    assert packed.scale.shape == (1, 2, 1, 8)
    unpack = jax.jit(lambda packed: low_rank.unpack(jax.tree.map(lambda x: x[0], packed), "DF", "D", jnp.float32))
    num_bytes = unpack.lower(packed).compile().memory_analysis().argument_size_in_bytes
    assert num_bytes == 64 * 8 // 2 + 4 * 2 * 8
    assert low_rank.scale_dims("q4_0", (1, 64, 8), "LDF", "D") == "LRZF"
    assert low_rank.scale_dims("int4", (1, 64, 8), "LDF", "D") == "LDF"
