import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax.model import fsdp
from tests import toys


@pytest.mark.parametrize(
    "spec, shapes", [("BTD,DNH->BTNH", ((2, 3, 4), (4, 2, 5))), ("BTNH,NHD->BTD", ((2, 3, 2, 5), (2, 5, 4)))]
)
def test_project_is_einsum_forward_and_backward(spec, shapes):
    x, weight = (jnp.asarray(toys.noise(str(shape), shape)) for shape in shapes)
    loss = lambda einsum: lambda x, w: jnp.sum(jnp.sin(einsum(spec, x, w)))  # noqa: E731
    expected = jax.value_and_grad(loss(jnp.einsum), argnums=(0, 1))(x, weight)
    got = jax.value_and_grad(loss(fsdp.project), argnums=(0, 1))(x, weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)


def test_weight_gradients_are_float32_sums_under_bfloat16_activations():
    x, weight = jnp.ones((1, 1001, 1), jnp.bfloat16), jnp.ones((1, 1))
    grad = jax.grad(lambda w: jnp.sum(fsdp.project("BTD,DF->BTF", x, w).astype(jnp.float32)))(weight)
    assert grad.dtype == jnp.float32 and grad[0, 0] == 1001.0  # bfloat16 has 1000 and 1004


def test_the_tied_head_too_sums_its_gradient_in_float32():
    x, table = jnp.ones((1, 1001, 1), jnp.bfloat16), jnp.ones((2, 1))
    grad = jax.grad(lambda table: jnp.sum(fsdp.project("BTD,VD->BTV", x, table, jnp.float32)))(table)
    np.testing.assert_array_equal(grad, [[1001.0], [1001.0]])
