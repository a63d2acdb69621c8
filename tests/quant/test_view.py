"""What the forward pass sees is what a file will hold, on any mesh; and the gradient goes straight through."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gemma3_jax import sharding
from gemma3_jax.checkpoint import names
from gemma3_jax.model import config, parameters
from gemma3_jax.quant import formats, view
from gemma3_jax.quant.settings import Quant
from tests import toys
from tests.quant.matrices import bits
from tests.test_sharding import PUBLISHED_MESHES, abstract_mesh, num_shards

# Whole blocks in every contraction. N * H, which `output` sums over, is one block over all heads.
MODEL = dataclasses.replace(toys.TOY, embed_dim=64, mlp_dim=96, num_layers=2)

# One matrix of each kind of contraction, stacked once, twice and not at all; two blocks in each head of `wide`.
DIMS = {
    "embedder": {"table": ("V", "D")},
    "final_norm": {"scale": ("D",)},
    "layers": {"attention": {"query": ("L", "L", "D", "N", "H"), "output": ("L", "N", "H", "D")}},
    "wide": {"attention": {"output": ("L", "N", "H", "D")}},
    "last": {"mlp": {"down": ("F", "D")}},
}
SHAPES = {"L": 2, "V": 24, "D": 64, "N": 4, "H": 8, "F": 96}
WIDE_HEAD = 64


@functools.cache
def tree():
    rng = np.random.default_rng(0)

    def matrix(path, dims):
        sizes = [WIDE_HEAD if (path[0].key, letter) == ("wide", "H") else SHAPES[letter] for letter in dims]
        return rng.standard_normal(sizes).astype(np.float32) * 2

    return jax.tree_util.tree_map_with_path(matrix, DIMS, is_leaf=lambda node: isinstance(node, tuple))


@functools.cache
def rounded_by_numpy(format, embedding):
    """The tree with each layer's matrix rounded for itself."""
    wanted = jax.tree.map(np.array, tree())
    query, output = wanted["layers"]["attention"]["query"], wanted["layers"]["attention"]["output"]
    for layer in (0, 1):
        for place in (0, 1):
            query[layer, place] = formats.rounded(format, query[layer, place], (0,))
        for x in (output, wanted["wide"]["attention"]["output"]):
            x[layer] = formats.rounded(format, x[layer], (0, 1))
    wanted["last"]["mlp"]["down"] = formats.rounded(format, wanted["last"]["mlp"]["down"], (0,))
    wanted["embedder"]["table"] = formats.rounded(embedding, wanted["embedder"]["table"], (1,))
    return wanted


def assert_same_bits(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), found, wanted)


def test_what_is_summed_over_comes_last_in_the_rows_of_a_file():
    rows = {row.path: row for row in (*names.ROOT, *names.LAYER)}
    for kind, contracted in view.CONTRACTED.items():
        *_, last = re.findall(r"\(([^)]*)\)|(\w)", rows[kind].hf_layout)
        assert "".join(last).replace(" ", "") == contracted
    assert {path for path in rows if path not in view.CONTRACTED} == {p for p in rows if p.endswith("norm/scale")}


@pytest.mark.parametrize("format, embedding", [*zip(formats.MATRICES, formats.TABLES, strict=True)])
def test_every_layer_is_rounded_for_itself_and_norms_stay(format, embedding):
    found = jax.jit(view.make(Quant(format=format, embedding=embedding), DIMS))(tree())
    assert_same_bits(found, rounded_by_numpy(format, embedding))


def test_a_model_is_rounded_as_the_rows_of_its_file():
    params, sizes = toys.params(MODEL), names.dim_sizes(MODEL)
    found = jax.jit(view.make(Quant(format="q4_0"), parameters.dims(MODEL)))(params)
    for slot in names.slots(MODEL):
        ours, rounded = (
            names.relayout(
                np.asarray(names.get(x, slot.path)[slot.index]), slot.spec.layout, slot.spec.hf_layout, sizes
            )
            for x in (params, found)
        )
        if slot.spec.path in view.CONTRACTED:
            ours = formats.rounded(
                "float16" if slot.spec.path == view.TABLE else "q4_0", np.ascontiguousarray(ours), (1,)
            )
        np.testing.assert_array_equal(bits(rounded), bits(ours))


@pytest.mark.parametrize(
    "format, axes",
    [
        ("q4_0", {"data": 2, "seq": 2, "model": 2}),
        pytest.param("q4_0", {"replica": 2, "data": 4}, marks=pytest.mark.slow),
        ("int4", {"data": 2, "seq": 2, "model": 2}),
        ("sfp8", {"data": 2, "seq": 2, "model": 2}),
    ],
)
def test_a_mesh_changes_no_bit_and_nothing_rests_elsewhere(format, axes):
    mesh = sharding.make_mesh(**axes)
    places = sharding.parameter_shardings(DIMS, tree(), mesh)
    with jax.set_mesh(mesh):
        found = jax.jit(view.make(Quant(format=format, embedding="q8_0"), DIMS))(jax.device_put(tree(), places))
    assert_same_bits(found, rounded_by_numpy(format, "q8_0"))
    for x, place in zip(jax.tree.leaves(found), jax.tree.leaves(places), strict=True):
        assert x.sharding.is_equivalent_to(place, x.ndim), (x.shape, x.sharding)


def collectives(format, shape, mesh):
    """The kinds in the compiled rounding of one matrix "DF" that rests on the mesh."""
    place = NamedSharding(mesh, sharding.parameter_spec(("D", "F"), shape, mesh.shape))
    params = {"mlp": {"up": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)}}
    with jax.set_mesh(mesh):
        compiled = jax.jit(view.make(Quant(format=format), {"mlp": {"up": ("D", "F")}})).lower(params).compile()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    return set(re.findall(rf" ({kinds})(?:-start)?\(", compiled.as_text()))


@pytest.mark.parametrize("format", formats.BLOCK_FORMATS)
def test_whole_blocks_are_rounded_where_they_rest_and_split_ones_moved(format):
    mesh = sharding.make_mesh(data=4)
    assert collectives(format, (128, 6), mesh) == set()  # D rests in four shards of a block
    moves = collectives(format, (64, 6), mesh)  # of half a block
    assert moves and "all-reduce" not in moves


@pytest.mark.parametrize("format", ["int4", "sfp8"])
def test_shards_of_a_channel_only_tell_each_other_their_largest(format):
    assert collectives(format, (64, 6), sharding.make_mesh(data=4)) == {"all-reduce"}


def test_the_gradient_is_that_at_the_rounded_weight():
    seen = view.make(Quant(format="q4_0", embedding="q8_0"), DIMS)
    grads = jax.jit(jax.grad(lambda x: sum(jnp.sum(leaf * leaf) / 2 for leaf in jax.tree.leaves(seen(x)))))(tree())
    assert_same_bits(grads, rounded_by_numpy("q4_0", "q8_0"))


def test_scanned_and_rematerialized_layers_train_through_it_on_a_mesh():
    rng, dims = np.random.default_rng(0), {"mlp": {"up": ("L", "D", "F")}}
    params = {"mlp": {"up": rng.standard_normal((3, 64, 64)).astype(np.float32) / 8}}
    hidden = rng.standard_normal((4, 64)).astype(np.float32)
    mesh = sharding.make_mesh(data=4, model=2)
    seen = view.make(Quant(format="q4_0"), dims)

    def loss(params):
        layer = jax.checkpoint(lambda hidden, weight: (jnp.tanh(hidden @ weight), None))
        return jnp.sum(jax.lax.scan(layer, hidden, params["mlp"]["up"])[0])

    wanted = {"mlp": {"up": np.stack([formats.rounded("q4_0", x, (0,)) for x in params["mlp"]["up"]])}}
    expected, expected_grads = jax.jit(jax.value_and_grad(loss))(wanted)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, sharding.parameter_shardings(dims, params, mesh))
        value, grads = jax.jit(jax.value_and_grad(lambda params: loss(seen(params))))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)  # sums in another order
    np.testing.assert_allclose(grads["mlp"]["up"], expected_grads["mlp"]["up"], rtol=1e-4, atol=toys.ROUNDING)


@pytest.mark.parametrize("size", PUBLISHED_MESHES)
def test_shards_on_the_published_meshes_hold_whole_blocks(size):
    sizes, model = PUBLISHED_MESHES[size], config.SIZES[size]
    dims = parameters.dims(model)
    for path, leaf in names.flatten(parameters.shapes(model)):
        letters, contracted = names.get(dims, path), view.CONTRACTED.get("/".join(path[-2:]), "")
        places = tuple(letters.index(letter) for letter in contracted)
        if not places:
            continue
        multiples = {letters[i]: unit for i, unit in formats.shard_multiples("q4_0", leaf.shape, places).items()}
        at_rest = sharding.parameter_spec(letters, leaf.shape, sizes)
        in_blocks = sharding.parameter_spec(letters, leaf.shape, sizes, shard_multiples=multiples)
        # 1B sums over 4 heads of 8 blocks, and over 216 blocks of F: axes of 16 split neither.
        few = size == "1b" and path[-1] in ("output", "down")
        wanted = 16 if few else num_shards(at_rest, sizes)
        assert num_shards(in_blocks, sizes) == wanted, (path, at_rest, in_blocks)
        shard = NamedSharding(abstract_mesh(sizes), in_blocks).shard_shape(leaf.shape)
        assert all(shard[letters.index(letter)] % unit == 0 for letter, unit in multiples.items())


def test_without_a_format_nothing_is_rounded():
    assert view.make(Quant(), DIMS)(tree()) is tree()


def test_a_width_that_is_not_whole_blocks_is_refused_before_anything_is_allocated():
    shapes, dims = parameters.shapes(toys.TOY), parameters.dims(toys.TOY)
    with pytest.raises(
        ValueError, match=r"embedder/table \(96, 24\) sums over 24 weights; q8_0 needs a multiple of 32"
    ):
        jax.eval_shape(view.make(Quant(format="int4", embedding="q8_0"), dims), shapes)
    with pytest.raises(ValueError, match=r"periods/.*/attention/key \(.*\) sums over 24 weights; q4_0 needs"):
        jax.eval_shape(view.make(Quant(format="q4_0"), dims), shapes)
