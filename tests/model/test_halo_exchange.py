import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gemma3_jax import sharding
from gemma3_jax.model import halo_exchange

NUM_TOKENS, NUM_SHARDS = 12, 4
ROW = 1.0 + jnp.arange(NUM_TOKENS)[None]


def on_each(f):
    """The results of f for each device's three tokens, side by side."""
    mesh, spec = sharding.make_mesh(seq=NUM_SHARDS), PartitionSpec(None, "seq")
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))


@pytest.mark.parametrize("before, after", [(0, 0), (1, 0), (2, 3), (3, 1), (5, 4), (20, 30)])
def test_a_halo_is_the_tokens_around_and_zeros_beyond_the_ends_of_the_row(before, after):
    halo = functools.partial(halo_exchange.with_halo, before=before, after=after, num_shards=NUM_SHARDS)
    around = np.pad(ROW[0], (before, after))
    parts = [around[start : start + before + 3 + after] for start in range(0, NUM_TOKENS, 3)]
    np.testing.assert_array_equal(on_each(halo)(ROW)[0], np.concatenate(parts))


def test_gradients_go_back_to_the_device_that_sent_and_are_summed_there():
    weight = jnp.arange(1.0, 1 + NUM_SHARDS * 8)[None]

    def loss(row):
        return jnp.sum(on_each(lambda x: halo_exchange.with_halo(x, 4, 1, NUM_SHARDS))(row) * weight)

    expected = np.zeros(4 + NUM_TOKENS + 1)
    for device in range(NUM_SHARDS):
        expected[3 * device : 3 * device + 8] += weight[0, 8 * device : 8 * device + 8]
    np.testing.assert_array_equal(jax.grad(loss)(ROW)[0], expected[4:-1])


def test_all_gather_the_whole_row_and_know_their_first_token():
    whole = on_each(lambda x: halo_exchange.gather_row(x, NUM_SHARDS))(ROW)
    np.testing.assert_array_equal(whole[0], np.tile(ROW[0], NUM_SHARDS))
    first = on_each(lambda x: x * 0 + halo_exchange.first_token(3, NUM_SHARDS))(ROW)
    assert first[0, ::3].tolist() == [0, 3, 6, 9]


def test_one_device_has_the_whole_row():
    assert halo_exchange.gather_row(ROW, 1) is ROW and halo_exchange.first_token(12, 1) == 0
    np.testing.assert_array_equal(halo_exchange.with_halo(ROW, 0, 0, 1), ROW)
