"""A cache row equals a whole row, in the bytes of the report's formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.model import config, kv_cache, masks, parameters
from tests import toys

NUM_TOKENS = 29
PADDING = (0, 6)  # of the two rows


def extended(model, params, tokens, parts, num_slots=32):
    """Logits of every token, read in parts of these sizes, and the last cache."""
    cache = kv_cache.empty(kv_cache.shapes(model, len(tokens), num_slots, jnp.float32), jnp.asarray(PADDING))

    @jax.jit
    def extend(params, tokens, cache):
        bound = parameters.bind(model, params)
        hidden, cache = bound.extend(tokens, cache)
        return bound.logits(hidden), cache

    parts_logits, start = [], 0
    for size in parts:
        logits, cache = extend(params, tokens[:, start : start + size], cache)
        parts_logits.append(logits)
        start += size
    assert start == tokens.shape[1]
    return np.concatenate(parts_logits, axis=1), cache


def whole(model, params, tokens):
    """Logits of every token without a cache."""
    positions = jnp.arange(NUM_TOKENS)[None] - jnp.asarray(PADDING)[:, None]
    layout = masks.TokenLayout((positions >= 0).astype(jnp.int32), positions)
    bound = parameters.bind(model, params)
    return np.asarray(jax.jit(lambda tokens: bound.logits(bound(tokens, layout)))(tokens))


SLOW_ONES = [pytest.param(name, marks=pytest.mark.slow) for name in ("every_layer_global", "one_layer")]


@pytest.mark.parametrize("name", ["toy", "window_1", "window_beyond_row", *SLOW_ONES])
def test_cached_is_uncached_at_every_token_with_windows_wrapped_and_rows_padded(name):
    """Chunks longer than the window (5, and 1) and single tokens, from an empty ring and from full ones."""
    model = toys.variant(name)
    params, tokens = toys.params(model), jnp.asarray(toys.tokens(model, 2, NUM_TOKENS))
    logits, _ = extended(model, params, tokens, (9, *[1] * 7, 9, 1, 1, 1, 1))
    expected = whole(model, params, tokens)
    for row, padding in enumerate(PADDING):
        np.testing.assert_allclose(logits[row, padding:], expected[row, padding:], atol=toys.ROUNDING, rtol=0)


def test_a_local_layer_keeps_a_window_and_no_more():
    model = toys.TOY
    shapes = kv_cache.shapes(model, 2, 32, jnp.float32)
    assert shapes.local_layers.keys.shape == (1, 5, 2, model.sliding_window, 2, 8)
    assert shapes.global_layers.keys.shape == (1, 2, 32, 2, 8)
    assert shapes.remaining_layers.keys.shape == (2, 2, model.sliding_window, 2, 8)


@pytest.mark.parametrize(
    ("size", "context", "gigabytes"),
    [
        ("1b", 32_768, 0.146),
        ("4b", 32_768, 0.793),
        ("12b", 32_768, 2.48),
        ("27b", 32_768, 3.12),
        ("27b", 131_072, 11.2),
    ],
)
def test_bytes_are_those_of_the_formula(size, context, gigabytes):
    """2 * K * H * bytes * (global layers * S + local layers * min(S, W)), in the dtype bfloat16."""
    model = config.SIZES[size]
    shapes = kv_cache.shapes(model, 1, context, jnp.bfloat16)
    num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    num_global = sum(model.is_global(layer) for layer in range(model.num_layers))
    slots = num_global * context + (model.num_layers - num_global) * model.sliding_window
    assert num_bytes == 2 * model.num_kv_heads * model.head_dim * 2 * slots
    assert num_bytes / 1e9 == pytest.approx(gigabytes, rel=5e-3)


def test_over_a_mesh_rows_and_heads_are_split_and_logits_are_the_same():
    model = toys.TOY
    params, tokens = toys.params(model), jnp.asarray(toys.tokens(model, 2, NUM_TOKENS))
    alone = whole(model, params, tokens)
    mesh = sharding.make_mesh(data=2, model=2)
    params = jax.device_put(params, parameters.shardings(model, mesh))
    shardings = kv_cache.shardings(kv_cache.shapes(model, 2, 32, jnp.float32), mesh)
    split = sharding.axes_by_dim(shardings.global_layers.keys.spec, 5)
    assert split == [(), ("replica", "data"), (), ("model",), ()]
    with jax.set_mesh(mesh):
        logits, _ = extended(model, params, tokens, (28, 1))
    np.testing.assert_allclose(logits[:, 6:], alone[:, 6:], atol=toys.ROUNDING, rtol=0)
