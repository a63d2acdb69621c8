"""Dense attention by hand, and every other path against dense."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax.model import attention, banded, dense, masks
from tests import toys

NUM_HEADS, HEAD_DIM = 4, 8


def inputs(num_tokens, num_kv_heads, num_rows=2):
    shape = lambda heads: (num_rows, num_tokens, heads, HEAD_DIM)  # noqa: E731
    query, key, value = (
        jnp.asarray(toys.noise(name, shape(heads)) * 2)
        for name, heads in (("query", NUM_HEADS), ("key", num_kv_heads), ("value", num_kv_heads))
    )
    return query, key, value


def packed_layout(lengths, num_tokens, images=False):
    segments, positions = (jnp.tile(x, (2, 1)) for x in toys.packed(lengths, num_tokens))
    if not images:
        return masks.TokenLayout(segments, positions)
    index = jnp.arange(num_tokens)
    image = jnp.where((index % 10 > 3)[None] & (segments > 0), 1 + index[None] // 10, 0)  # across blocks of 128
    return masks.TokenLayout(segments, positions, image.astype(jnp.int32))


def test_dense_by_hand():
    query = jnp.asarray([0.0, np.log(3.0)]).reshape(1, 2, 1, 1)
    key = jnp.asarray([0.0, 1.0]).reshape(1, 2, 1, 1)
    value = jnp.asarray([4.0, 8.0]).reshape(1, 2, 1, 1)
    out = dense.attend(query, key, value, masks.whole_rows(jnp.zeros((1, 2), jnp.int32)), None)
    np.testing.assert_allclose(out.ravel(), [4.0, 4.0 / 4 + 8.0 * 3 / 4], rtol=1e-6)


def test_query_heads_share_key_heads_in_order():
    query, key, value = inputs(6, num_kv_heads=2)
    layout = masks.whole_rows(jnp.zeros((2, 6), jnp.int32))
    repeated = dense.attend(query, jnp.repeat(key, 2, axis=2), jnp.repeat(value, 2, axis=2), layout, None)
    np.testing.assert_allclose(dense.attend(query, key, value, layout, None), repeated, atol=1e-6)


# Row lengths below, at and beyond the block; windows of one token, odd, larger than a block, larger than the row.
@pytest.mark.parametrize(
    "num_tokens, sliding_window",
    [
        *[(40, 1), (40, 7), (7, 7), (7, 50), (300, 5), (300, 129), (513, 200), (256, 128)],
        pytest.param(1100, 700, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "num_kv_heads, images", [(2, True), *(pytest.param(n, False, marks=pytest.mark.slow) for n in (1, 4))]
)
def test_banded_equals_dense_forward_and_backward(num_tokens, sliding_window, num_kv_heads, images):
    layout = packed_layout([num_tokens // 3, num_tokens // 2], num_tokens, images)
    weight = jnp.asarray(toys.noise("weight", (2, num_tokens, NUM_HEADS, HEAD_DIM)))

    def loss(arrays, path):
        out = attention.attend(*arrays, layout, sliding_window, path)
        return jnp.sum(out * weight), out

    arrays, gradient = inputs(num_tokens, num_kv_heads), jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    grads, outs = zip(*(gradient(arrays, path) for path in ("dense", "banded")), strict=True)
    np.testing.assert_allclose(*outs, atol=1e-5)  # float32 sums of up to 700 products of size 2, in another order
    for of_dense, of_banded in zip(*grads, strict=True):
        np.testing.assert_allclose(of_banded, of_dense, atol=1e-5)
    assert np.abs(grads[0][2]).max() > 0.1


@pytest.mark.parametrize("path", ["dense", "banded"])
def test_padding_attends_to_zero_and_sends_no_gradient(path):
    layout = packed_layout([10, 5], 40)
    arrays = inputs(40, 2)
    attend = jax.jit(lambda arrays: attention.attend(*arrays, layout, 4, path))
    out = attend(arrays)
    assert not np.isnan(out).any() and (out[:, 15:] == 0).all() and (out[:, :15] != 0).all()
    for grad in jax.jit(jax.grad(lambda arrays: jnp.sum(attend(arrays))))(arrays):
        assert not np.isnan(grad).any() and (grad[:, 15:] == 0).all()


def test_banded_scores_grow_with_the_window_not_with_the_row():
    def largest(num_tokens):
        arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs(num_tokens, 1, num_rows=1)]
        layout = masks.whole_rows(jnp.zeros((1, num_tokens), jnp.int32))
        jaxpr = jax.make_jaxpr(lambda *a: banded.attend(*a, layout, 128))(*arrays)
        return max(var.aval.size for eqn in jaxpr.eqns for var in eqn.outvars)

    assert largest(4096) == 8 * largest(512) == NUM_HEADS * 4096 * banded.keys_per_query(128, 4096, both_ways=False)


def choose(attention_path, num_tokens, sliding_window, platform="cpu"):
    return attention.choose_path(attention_path, num_tokens, sliding_window, both_ways=False, platform=platform)


def test_the_path_is_chosen_by_cost_and_can_be_forced():
    assert choose("auto", 4096, 512) == "banded" and choose("auto", 1024, 512) == "dense"
    assert choose("auto", 4096, None) == choose("banded", 4096, None) == "dense"
    assert choose("dense", 4096, 512) == "dense" and choose("banded", 16, 512) == "banded"


def test_splash_is_chosen_on_tpus_alone_and_can_be_forced_on_cpus():
    assert choose("auto", 128, 512, "tpu") == choose("auto", 128, None, "tpu") == "splash"
    assert choose("auto", 4096, 512, "gpu") == choose("banded", 4096, 512, "tpu") == "banded"
    assert choose("auto", 127, None, "tpu") == choose("dense", 4096, None, "tpu") == "dense"  # no block of it is full
    assert choose("splash", 16, 512, "cpu") == "splash"


def test_block_covers_window_reach_for_every_row_and_window():
    for num_tokens, sliding_window in itertools.product((1, 5, 127, 128, 129, 1000), (1, 2, 127, 128, 129, 999, 5000)):
        block = banded.block_size(sliding_window, num_tokens)
        assert banded.keys_per_query(sliding_window, num_tokens, both_ways=False) >= min(sliding_window, num_tokens)
        assert 1 <= block <= num_tokens
