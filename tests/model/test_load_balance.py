"""Sequence shards of a causal row that score as many keys each, and give the numbers of one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gemma3_jax import sharding
from gemma3_jax.model import load_balance, masks, splash
from tests import toys
from tests.model import test_splash
from tests.model.test_attention import inputs


def on_each(f, num_shards):
    """The results of f for each device's part of a row, side by side."""
    mesh, spec = sharding.make_mesh(seq=num_shards), PartitionSpec(None, "seq")
    run = functools.partial(f, num_shards=num_shards)
    return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))


@pytest.mark.parametrize(
    "num_shards, chunks",
    [(2, [0, 3, 1, 2]), (3, [0, 5, 2, 3, 1, 4]), (4, [0, 7, 2, 5, 3, 4, 1, 6])],  # pairs with one sum, each in order
)
def test_a_shard_holds_two_chunks_as_far_from_either_end(num_shards, chunks):
    row = jnp.arange(6 * num_shards)[None]  # chunks of three
    dealt = on_each(load_balance.balanced, num_shards)(row)
    np.testing.assert_array_equal(dealt[0], np.concatenate([3 * chunk + np.arange(3) for chunk in chunks]))
    np.testing.assert_array_equal(on_each(load_balance.in_order, num_shards)(dealt), row)


def test_gradients_go_back_to_where_the_tokens_came_from():
    weight = jnp.arange(1.0, 17)[None]
    grad = jax.grad(lambda row: jnp.sum(on_each(load_balance.balanced, 4)(row) * weight))(jnp.zeros((1, 16)))
    np.testing.assert_array_equal(grad, on_each(load_balance.in_order, 4)(weight))


def test_chunks_are_whole_blocks():
    applies = load_balance.applies
    assert applies(256, 2) and applies(4096, 32) and not applies(128, 2) and not applies(384, 2)
    assert not applies(256, 1)  # of one shard


def visited(layout, num_shards, *, block, balances):
    """The pairs of blocks that each shard's kernel visits on a global layer."""
    spans = jax.tree.map(lambda x: x[0], masks.spans(layout, None))
    if balances:
        balanced = on_each(load_balance.balanced, num_shards)
        spans = jax.tree.map(lambda x: balanced(x[None])[0], spans)
    num_tokens = layout.segments.shape[1]
    is_visible = splash.visible_blocks(spans, block, num_tokens // block)
    return [pairs(part) for part in jnp.split(is_visible, num_shards)]


def pairs(is_visible):
    """How many blocks the lists of one shard hold, which are all that are visible, from both sides."""
    for rows in (is_visible, is_visible.T):
        indices, counts = splash.visits(rows, None)
        for row, listed, count in zip(np.asarray(rows), np.asarray(indices), np.asarray(counts), strict=True):
            np.testing.assert_array_equal(listed[count], np.flatnonzero(row))
    return int(is_visible.sum())


slow = pytest.mark.slow


@pytest.mark.parametrize("num_shards", [4, pytest.param(2, marks=slow), pytest.param(8, marks=slow)])
def test_shards_of_one_document_visit_as_many_blocks_each(num_shards):
    block = 128
    layout = masks.whole_rows(jnp.zeros((1, num_shards * 4 * block), jnp.int32))
    num_blocks = 4 * num_shards  # of queries and of keys; query block i meets i + 1
    each = num_blocks * (num_blocks + 1) / 2 / num_shards
    assert visited(layout, num_shards, block=block, balances=True) == [each] * num_shards  # busiest = mean
    in_order = visited(layout, num_shards, block=block, balances=False)
    assert in_order == [4 * (4 * shard) + 1 + 2 + 3 + 4 for shard in range(num_shards)]


def test_packed_documents_visit_as_many_blocks_as_before():
    segments, positions = map(jnp.asarray, toys.packed([700, 260, 1000, 60], 2048))
    layout = masks.TokenLayout(segments, positions)
    before, after = (sum(visited(layout, 4, block=128, balances=balances)) for balances in (False, True))
    assert before == after


@pytest.mark.parametrize(
    "axes, num_tokens, images",
    [
        ({"seq": 2}, 512, True),
        pytest.param({"seq": 4}, 1024, True, marks=slow),
        pytest.param({"seq": 8}, 2048, True, marks=slow),
        pytest.param({"data": 2, "seq": 2, "model": 2}, 1024, False, marks=slow),
    ],
)
def test_balanced_attention_equals_dense_forward_and_backward(axes, num_tokens, images, monkeypatch):
    monkeypatch.setattr(splash, "LARGEST_BLOCK", 128)
    layout = test_splash.packed_layout(num_tokens, images)
    mesh, arrays = sharding.make_mesh(**axes), inputs(num_tokens, 2)
    test_splash.assert_equals_dense(arrays, layout, None, mesh)
    with jax.set_mesh(mesh):
        program = str(jax.make_jaxpr(lambda *x: splash.attend(*x, layout, None))(*arrays))
    assert program.count("ppermute") == 3  # queries, their segments and spans, and what they read
