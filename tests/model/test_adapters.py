"""Adapters of a whole model: which matrices get them, how big they are, and that they start as nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.model import adapters, config, lora, masks, parameters
from tests import toys

MODEL = dataclasses.replace(toys.TOY, num_layers=7)
RANK_4 = lora.Lora(rank=4, alpha=8.0)


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, tokens):
    bound = parameters.bind(model, params)
    return bound.logits(bound(tokens, masks.whole_rows(tokens)))


def noisy(settings, model=MODEL):
    """Factors of which none is zero."""
    shapes = adapters.shapes(model, settings)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(toys.noise(str(path), leaf.shape)) * 0.3, shapes
    )


def merged(settings, factors, params, model=MODEL):
    """The parameters with the factors multiplied and added, by a loop over all layers."""
    out = jax.tree.map(np.array, params)
    for name, matrix in adapters.targets(model, settings).items():
        *parents, last = name.split("/")
        node, pair = out, factors
        for key in parents:
            node, pair = node[key], pair[key]
        for index in np.ndindex(*matrix.shape[: len(matrix.stacked)]):
            product = np.tensordot(pair[last]["down"][index], pair[last]["up"][index], axes=1)
            node[last][index] += settings.scale * product
    return out


def test_every_matrix_of_every_layer_has_two_factors_by_default():
    names = set(adapters.targets(MODEL, RANK_4))
    attention = [f"attention/{kind}" for kind in ("query", "key", "value", "output")]
    kinds = (*attention, "mlp/gate", "mlp/up", "mlp/down")
    stacks = ("periods/local_layers", "periods/global_layer", "remaining_layers")
    assert names == {f"{stack}/{kind}" for stack in stacks for kind in kinds}
    shapes = adapters.shapes(MODEL, RANK_4)["periods"]["local_layers"]["attention"]
    assert shapes["query"]["down"].shape == (1, 5, 24, 4) and shapes["query"]["up"].shape == (1, 5, 4, 4, 8)
    assert shapes["output"]["down"].shape == (1, 5, 4, 8, 4) and shapes["output"]["up"].shape == (1, 5, 4, 24)


def test_targets_are_patterns_in_paths():
    some = dataclasses.replace(RANK_4, targets=("attention/(query|value)", "global_layer/mlp/up"))
    assert set(adapters.targets(MODEL, some)) == {
        *(
            f"{stack}/attention/{kind}"
            for stack in ("periods/local_layers", "periods/global_layer", "remaining_layers")
            for kind in ("query", "value")
        ),
        "periods/global_layer/mlp/up",
    }


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rank": -1}, "rank is -1; it must be at least 1, or 0 for no adapters"),
        ({"alpha": 0.0}, "alpha is 0.0; it must be a finite number over 0"),
        ({"base_format": "int3"}, "base_format is 'int3'; it must be '' or one of int4, q4_0, sfp8, q8_0"),
        ({"rank": 0, "base_format": "int4"}, "base_format is 'int4', but rank is 0, which is no adapters; set it, too"),
        ({"targets": ()}, "targets is empty; name the matrices that get adapters, as "),
        ({"targets": ("(",)}, r"targets has '\(', which is not a regular expression"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RANK_4, **changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"targets": ("q_proj",)},
            "lora.targets has 'q_proj', which matches no matrix; they are periods/global",
        ),
        ({"targets": ("embedder",)}, "lora.targets has 'embedder', which matches no matrix"),
        (
            {"rank": 17},
            "rank is 17, but periods/.*/attention/key has 24 inputs and 16 outputs; make it at most 16",
        ),
    ],
)
def test_adapters_that_do_not_fit_the_model_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        adapters.shapes(MODEL, dataclasses.replace(RANK_4, **changes))


def test_a_base_that_is_not_whole_blocks_is_refused():
    with pytest.raises(ValueError, match="attention/key .24, 2, 8. sums over 24 weights; q4_0 needs a multiple of 32"):
        adapters.base_shapes(MODEL, dataclasses.replace(RANK_4, base_format="q4_0"), np.float32)


def test_scales_are_alpha_over_the_rank_or_over_its_root():
    assert RANK_4.scale == 2.0 and dataclasses.replace(RANK_4, rslora=True).scale == 4.0


def test_fresh_factors_change_no_bit_of_the_logits():
    params, tokens = toys.params(MODEL), jnp.asarray(toys.tokens(MODEL, 2, 12))
    mesh = sharding.make_mesh()
    factors = adapters.init(MODEL, RANK_4, jax.random.key(3), mesh)
    down = factors["remaining_layers"]["mlp"]["down"]["down"]
    assert np.abs(down).max() <= 40**-0.5 and np.std(down) == pytest.approx((3 * 40) ** -0.5, rel=0.15)
    base = adapters.freeze(MODEL, RANK_4, np.float32, params)
    np.testing.assert_array_equal(
        logits(MODEL, adapters.attach(MODEL, RANK_4, factors, base), tokens), logits(MODEL, params, tokens)
    )


@pytest.mark.parametrize("changes", [{}, {"targets": ("global_layer/mlp", "attention/output")}, {"rslora": True}])
def test_factors_beside_the_matrices_are_the_merged_model(changes):
    settings = dataclasses.replace(RANK_4, **changes)
    params, tokens, factors = toys.params(MODEL), jnp.asarray(toys.tokens(MODEL, 2, 12)), noisy(settings)
    beside = logits(MODEL, adapters.attach(MODEL, settings, factors, params), tokens)
    expected = logits(MODEL, merged(settings, factors, params), tokens)
    np.testing.assert_allclose(beside, expected, atol=toys.ROUNDING)
    assert np.abs(beside - logits(MODEL, params, tokens)).max() > 0.1


def test_factors_are_the_same_on_any_mesh_and_split_over_it():
    one, many = sharding.make_mesh(), sharding.make_mesh(data=2, seq=2, model=2)
    here, there = (adapters.init(MODEL, RANK_4, jax.random.key(1), mesh) for mesh in (one, many))
    jax.tree.map(np.testing.assert_array_equal, here, there)
    query = there["periods"]["local_layers"]["attention"]["query"]
    assert query["down"].sharding.shard_shape(query["down"].shape) != query["down"].shape


def test_a_packed_base_is_the_rounded_model():
    from gemma3_jax.quant import settings as quant_settings
    from gemma3_jax.quant import view

    model = dataclasses.replace(MODEL, embed_dim=32, mlp_dim=64)
    settings = dataclasses.replace(RANK_4, base_format="q4_0")
    params, tokens, factors = toys.params(model), jnp.asarray(toys.tokens(model, 2, 12)), noisy(settings, model)
    base = jax.jit(functools.partial(adapters.freeze, model, settings, np.float32))(params)
    quant = quant_settings.Quant(format="q4_0", embedding="float32")
    rounded = jax.jit(view.make(quant, parameters.dims(model)))(params)
    got, expected = (logits(model, adapters.attach(model, settings, factors, one), tokens) for one in (base, rounded))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("size", config.SIZES)
def test_rank_16_is_a_hundredth_of_each_published_size(size):
    model = config.SIZES[size]
    share = adapters.count(model, lora.Lora(rank=16)) / parameters.count(model)
    assert 0.002 < share < 0.02
