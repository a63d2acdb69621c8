import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.model import dense, execution, masks, parameters, rope
from tests import toys

NUM_TOKENS = 24


@functools.partial(jax.jit, static_argnames=("model", "execute"))
def logits(model, params, tokens, layout=None, soft_tokens=None, execute=execution.REFERENCE):
    bound = parameters.bind(model, params)
    return bound.logits(bound(tokens, layout or masks.whole_rows(tokens), soft_tokens, execute=execute))


# One of each way to divide layers into periods; test_golden.py has all variants.
DEPTHS = ("toy", "one_layer", "every_layer_global", "other_pattern_and_bases")
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in toys.VARIANTS if name not in DEPTHS]


@pytest.mark.parametrize("name", [*DEPTHS, *OTHERS])
def test_scanned_layers_equal_layers_called_one_by_one(name):
    model = toys.variant(name)
    tokens = jnp.asarray(toys.tokens(model, 2, NUM_TOKENS))
    scanned, unrolled = jax.jit(lambda params: both_ways(model, params, tokens))(toys.params(model))
    np.testing.assert_allclose(scanned, unrolled, atol=toys.ROUNDING)


def both_ways(model, params, tokens):
    """Hidden states as the transformer computes them, and as a Python loop over its layers does."""
    bound, layout = parameters.bind(model, params), masks.whole_rows(tokens)
    x = bound.embedder.encode(tokens, jnp.float32)

    def attend(query, key, value, sliding_window):
        return dense.attend(query, key, value, layout, sliding_window), None

    for layer in range(model.num_layers):
        period, index_in_period = divmod(layer, model.period)
        if period == model.num_periods:
            stack, index = bound.remaining_layers, (index_in_period,)
        elif model.is_global(layer):
            stack, index = bound.periods.global_layer, (period,)
        else:
            stack, index = bound.periods.local_layers, (period, index_in_period)
        base, scale = (
            (model.rope_base_global, model.rope_scale) if model.is_global(layer) else (model.rope_base_local, 1.0)
        )
        angles = rope.angles(layout.positions, model.head_dim, base=base, scale=scale)
        x = jax.tree.map(lambda leaf, index=index: leaf[index], stack)(x, angles, attend)[0]
    return bound(tokens, layout), bound.final_norm(x)


# Sharded, dense packed rows equal those of one device in tests/test_sharding.py.
@pytest.mark.parametrize("path", ["banded", pytest.param("dense", marks=pytest.mark.slow)])
def test_packed_documents_equal_each_document_alone(path):
    model = toys.TOY
    params, execute = toys.params(model), execution.Execution(attention=path)
    tokens, lengths = toys.tokens(model, 1, 64), [9, 1, 30, 17]
    layout = masks.TokenLayout(*(jnp.asarray(x) for x in toys.packed(lengths, 64)))
    row = logits(model, params, tokens, layout, execute=execute)
    start = 0
    for length in lengths:
        alone = logits(model, params, tokens[:, start : start + length], execute=execute)
        np.testing.assert_allclose(row[:, start : start + length], alone, atol=toys.ROUNDING)
        start += length
    assert not np.isnan(row).any()


@pytest.mark.parametrize("path", ["dense", "banded"])
@pytest.mark.parametrize("num_layers, reach", [pytest.param(1, 5, marks=pytest.mark.slow), (3, 13), (6, NUM_TOKENS)])
def test_gradient_comes_from_no_later_token_and_from_as_far_back_as_windows_reach(num_layers, reach, path):
    """L local layers of window W see L * (W - 1) tokens back; a global layer sees everything; none looks ahead."""
    model = dataclasses.replace(toys.TOY, num_layers=num_layers)
    params, at = toys.params(model), 18
    tokens = jnp.arange(NUM_TOKENS)[None]  # all distinct: a row of the table stands for a position

    def hidden_at(table):
        bound = parameters.bind(model, params | {"embedder": {"table": table}})
        hidden = bound(tokens, masks.whole_rows(tokens), execute=execution.Execution(attention=path))
        return jnp.sum(jnp.sin(hidden[0, at]))

    size = np.abs(jax.jit(jax.grad(hidden_at))(params["embedder"]["table"])).sum(axis=-1)[:NUM_TOKENS]
    seen = np.arange(NUM_TOKENS) <= at
    seen &= np.arange(NUM_TOKENS) > at - reach
    np.testing.assert_array_equal(size > 0, seen)


SLOW_ONES = [pytest.param(remat, marks=pytest.mark.slow) for remat in ("full", "keep_attention")]


@pytest.mark.parametrize("remat", ["keep_global", *SLOW_ONES])
def test_remat_changes_neither_loss_nor_gradients(remat):
    model = dataclasses.replace(toys.TOY, num_layers=6)
    params, tokens = toys.params(model), toys.tokens(model, 2, NUM_TOKENS)

    def loss(params, remat):
        return jnp.mean(jnp.square(logits(model, params, tokens, execute=execution.Execution(remat=remat))))

    expected, got = (jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, name) for name in ("none", remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, expected)


def test_remat_saves_less_the_more_it_recomputes():
    model = dataclasses.replace(toys.TOY, num_layers=12, mlp_dim=512)
    shapes, tokens = parameters.shapes(model), jax.ShapeDtypeStruct((2, 64), jnp.int32)

    def saved_bytes(remat):
        def loss(params, tokens):
            return jnp.sum(logits(model, params, tokens, execute=execution.Execution(remat=remat)))

        _, pullback = jax.eval_shape(lambda p, t: jax.vjp(lambda p: loss(p, t), p), shapes, tokens)
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    sizes = [saved_bytes(remat) for remat in ("full", "keep_global", "keep_attention", "none")]
    assert sizes == sorted(sizes) and len(set(sizes)) == 4 and sizes[2] < sizes[3] / 2
    # The attention output of two global layers, before its projection.
    assert sizes[1] - sizes[0] == 2 * 2 * 64 * model.num_heads * model.head_dim


def test_bfloat16_activations_stay_near_float32_and_logits_are_float32():
    model = toys.TOY
    params, tokens = toys.params(model), toys.tokens(model, 2, NUM_TOKENS)
    exact = logits(model, params, tokens)
    rounded = logits(model, params, tokens, execute=execution.Execution(dtype="bfloat16"))
    assert rounded.dtype == exact.dtype == jnp.float32
    error = jnp.sqrt(jnp.mean(jnp.square(rounded - exact))) / jnp.std(exact)
    assert 1e-4 < error < 0.05  # 8 bits, through 8 layers


def test_soft_tokens_replace_embedding_rows_whatever_the_ids():
    model = toys.TOY
    params, tokens = toys.params(model), toys.tokens(model, 1, 12)
    images = jnp.asarray([[0, 0, 1, 1, 1, 0, 0, 2, 2, 2, 0, 0]])
    layout = masks.whole_rows(jnp.asarray(tokens))._replace(images=images)
    soft = jnp.asarray(toys.noise("soft", (1, 2, 3, model.embed_dim)))
    expected = logits(model, params, tokens, layout, soft_tokens=soft)
    beyond = np.where(images > 0, model.vocab_size + 7, tokens)  # as Hugging Face numbers the placeholder
    np.testing.assert_array_equal(logits(model, params, beyond, layout, soft_tokens=soft), expected)
    changed = logits(model, params, tokens, layout, soft_tokens=soft.at[0, 0, 2].add(1.0))
    differs = np.abs(changed - expected).max(axis=-1)[0] > 0
    assert differs.tolist() == [False, False] + [True] * 10  # the image's own tokens look ahead to its last one


def test_paths_agree_through_the_whole_model_with_images():
    model = toys.TOY
    params, tokens = toys.params(model), toys.tokens(model, 1, 32)
    layout = masks.TokenLayout(*(jnp.asarray(x) for x in toys.packed([13, 12], 32)))
    layout = layout._replace(images=jnp.where((layout.positions > 2) & (layout.positions < 9), 1, 0))
    outs = [
        logits(model, params, tokens, layout, execute=execution.Execution(attention=path))
        for path in ("dense", "banded")
    ]
    np.testing.assert_allclose(*outs, atol=toys.ROUNDING)


def test_depth_does_not_grow_the_program():
    def num_operations(num_layers):
        model = dataclasses.replace(toys.TOY, num_layers=num_layers)
        lowered = jax.jit(lambda p, t: logits(model, p, t)).lower(
            parameters.shapes(model), jax.ShapeDtypeStruct((1, NUM_TOKENS), jnp.int32)
        )
        return lowered.as_text().count(" = ")

    assert num_operations(8) == num_operations(62) == num_operations(602)


def test_a_global_only_model_has_no_local_parameters_and_a_short_one_no_periods():
    assert "local_layers" not in parameters.shapes(toys.variant("every_layer_global"))["periods"]
    assert "periods" not in parameters.shapes(toys.variant("one_layer"))


def test_fresh_parameters_are_finite_and_depend_on_the_key_alone():
    model = dataclasses.replace(toys.TOY, num_layers=6)
    single = parameters.init(model, jax.random.key(1), sharding.make_mesh())
    spread = parameters.init(model, jax.random.key(1), sharding.make_mesh(data=2, seq=2, model=2))
    other = parameters.init(model, jax.random.key(2), sharding.make_mesh())
    jax.tree.map(np.testing.assert_array_equal, single, spread)
    table = spread["embedder"]["table"]
    assert table.addressable_shards[0].data.size == table.size // 8
    assert not np.array_equal(single["embedder"]["table"], other["embedder"]["table"])
    layers = single["periods"]["local_layers"]["mlp"]["gate"]
    assert np.isfinite(layers).all() and not np.array_equal(layers[0, 0], layers[0, 1])
