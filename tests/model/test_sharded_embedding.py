"""The lookup equals indexing a whole table, forward and backward, however table and tokens are split."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gemma3_jax import sharding
from gemma3_jax.model import sharded_embedding
from tests import toys

MESHES = [
    {"data": 4, "seq": 2},
    {"replica": 2, "data": 2, "seq": 2},
    {"data": 2, "seq": 2, "model": 2},
    {"seq": 4, "model": 2},
    {"replica": 8},
]
# Split into 8 shards by columns, by rows, by both, by neither.
SHAPES = [(24, 1024), (64, 6), (24, 12), (25, 7)]


def weighted(table, tokens, weights):
    return jnp.sum(sharded_embedding.lookup(jnp.dtype("float32"), table, tokens) * weights)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "axes", [axes if len(axes) == 3 else pytest.param(axes, marks=pytest.mark.slow) for axes in MESHES], ids=str
)
def test_on_a_mesh_it_is_indexing(axes, shape):
    mesh, table = sharding.make_mesh(**axes), jnp.asarray(toys.noise("table", shape))
    tokens = jnp.asarray(np.abs(toys.noise("tokens", (8, 16)) * shape[0]).astype(np.int32))
    weights = jnp.asarray(toys.noise("weights", (8, 16, shape[1])))
    at_rest = NamedSharding(mesh, sharding.parameter_spec(("V", "D"), shape, mesh.shape))
    with jax.set_mesh(mesh):
        spread = jax.device_put(table, at_rest), jax.device_put(tokens, sharding.batch_sharding(mesh))
        rows = jax.jit(sharded_embedding.lookup, static_argnums=0)(jnp.dtype("float32"), *spread)
        grad = jax.jit(jax.grad(weighted), out_shardings=at_rest)(*spread, weights)
    np.testing.assert_array_equal(rows, table[tokens])
    expected = np.zeros(shape, np.float64)
    np.add.at(expected, np.asarray(tokens), np.asarray(weights, np.float64))
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-6)


def test_rows_that_do_not_split_are_looked_up_whole():
    mesh, table = sharding.make_mesh(data=4, seq=2), jnp.asarray(toys.noise("table", (24, 16)))
    tokens = jnp.arange(9).reshape(3, 3)
    with jax.set_mesh(mesh):
        rows = jax.jit(sharded_embedding.lookup, static_argnums=0)(jnp.dtype("float32"), table, tokens)
        grad = jax.jit(jax.grad(weighted))(table, tokens, jnp.ones((3, 3, 16)))
    np.testing.assert_array_equal(rows, table[tokens])
    np.testing.assert_array_equal(grad[:, 0], (np.arange(24) < 9).astype(np.float32))


@pytest.mark.parametrize("axes", [None, {"data": 4, "seq": 2}], ids=str)
def test_the_gradient_of_a_frequent_token_is_a_float32_sum_in_bfloat16_too(axes):
    tokens, table = jnp.zeros((8, 512), jnp.int32), jnp.ones((8, 16))

    def total(table):
        return jnp.sum(sharded_embedding.lookup(jnp.dtype("bfloat16"), table, tokens).astype(jnp.float32))

    with jax.set_mesh(sharding.make_mesh(**(axes or {}))):
        grad = jax.jit(jax.grad(total))(table)
    np.testing.assert_array_equal(grad[:2], [[4096.0] * 16, [0.0] * 16])  # in bfloat16 it stops at 256


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_no_device_holds_the_table_or_its_gradient(shape):
    shape = 8 * shape[0], 8 * shape[1]  # larger than the looked-up rows
    mesh = sharding.make_mesh(data=4, seq=2)
    at_rest = NamedSharding(mesh, sharding.parameter_spec(("V", "D"), shape, mesh.shape))
    table = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=at_rest)
    tokens = jax.ShapeDtypeStruct((4, 2), jnp.int32, sharding=sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        run = jax.jit(jax.grad(lambda table, tokens: jnp.sum(weighted(table, tokens, 1.0))), out_shardings=at_rest)
        text = run.lower(table, tokens).compile().as_text()
    sizes = [np.prod([int(n) for n in dims.split(",")]) for dims in re.findall(r"f32\[([\d,]+)\]", text)]
    assert shape[0] * shape[1] // 8 in sizes and max(sizes) < shape[0] * shape[1]
