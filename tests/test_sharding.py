"""Legal layouts for real sizes on the published meshes, and the same results however the arrays are split."""

import dataclasses
import functools
import itertools
import math
import pathlib
import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from gemma3_jax import sharding
from gemma3_jax.model import config, execution, masks, parameters
from tests import toys

# Gemma 3 report, Table 2.
PUBLISHED_MESHES = {
    "1b": {"replica": 2, "data": 16, "seq": 16, "model": 1},
    "4b": {"replica": 8, "data": 16, "seq": 16, "model": 1},
    "12b": {"replica": 24, "data": 16, "seq": 16, "model": 1},
    "27b": {"replica": 32, "data": 24, "seq": 8, "model": 1},
}


def abstract_mesh(sizes):
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 4)


def num_shards(spec, sizes):
    return math.prod(sizes[axis] for axes in spec if axes for axis in ([axes] if isinstance(axes, str) else axes))


@pytest.mark.parametrize("size", PUBLISHED_MESHES)
def test_every_matrix_splits_over_all_zero_shards_on_the_published_mesh(size):
    sizes, model = PUBLISHED_MESHES[size], config.SIZES[size]
    dims, shapes = parameters.dims(model), parameters.shapes(model)
    specs = jax.tree.map(
        lambda shape, dims: sharding.parameter_spec(dims, shape.shape, sizes), shapes, dims,
    )  # fmt: skip
    for shape, spec in zip(jax.tree.leaves(shapes), jax.tree.leaves(specs), strict=True):
        NamedSharding(abstract_mesh(sizes), spec).shard_shape(shape.shape)  # raises if a dim does not divide
        if shape.size > sharding.BIG_ELEMENTS:
            assert num_shards(spec, sizes) == sizes["data"] * sizes["seq"], (shape.shape, spec)


def test_the_27b_table_splits_its_vocabulary_over_seq_and_its_embed_dim_over_data():
    spec = sharding.parameter_spec(("V", "D"), (262_144, 5376), PUBLISHED_MESHES["27b"])
    assert spec == PartitionSpec(
        "seq", "data"
    )  # 262,144 is no multiple of 192, and 5376 / 192 would waste 100 of 128 lanes


def test_the_embed_dim_of_1b_takes_part_of_the_axes_and_heads_the_rest():
    spec = sharding.parameter_spec(("L", "D", "N", "H"), (26, 1152, 4, 256), PUBLISHED_MESHES["1b"])
    assert spec[0] is None and num_shards(spec, PUBLISHED_MESHES["1b"]) == 256  # 1152 is no multiple of 256


def test_the_embed_dim_of_1b_is_split_differently_for_blocks():
    dims, shape, sizes = ("L", "D", "N", "H"), (26, 1152, 4, 256), PUBLISHED_MESHES["1b"]
    at_rest = NamedSharding(abstract_mesh(sizes), sharding.parameter_spec(dims, shape, sizes))
    assert at_rest.shard_shape(shape)[1] == 72  # two blocks and a quarter
    spec = sharding.parameter_spec(dims, shape, sizes, shard_multiples={"D": 32})
    assert NamedSharding(abstract_mesh(sizes), spec).shard_shape(shape)[1] % 32 == 0


def test_a_dim_whose_blocks_span_it_is_never_split():
    sizes = {"replica": 1, "data": 2, "seq": 2, "model": 2}
    spec = sharding.parameter_spec(("N", "H", "D"), (4, 8, 64), sizes, shard_multiples={"N": 4, "H": 8})
    assert spec == PartitionSpec(None, None, ("data", "seq", "model"))


def test_tensor_parallel_dims_take_the_model_axis_and_one_key_head_falls_back_to_storage():
    sizes = {"replica": 1, "data": 2, "seq": 2, "model": 2}
    assert sharding.parameter_spec(("D", "N", "H"), (64, 4, 8), sizes) == PartitionSpec(("data", "seq"), "model", None)
    one_head = sharding.parameter_spec(("D", "K", "H"), (64, 1, 8), sizes)
    assert one_head[1] is None and num_shards(one_head, sizes) == 8


def test_vectors_and_indivisible_shapes_stay_whole_and_big_ones_warn():
    sizes = {"replica": 1, "data": 2, "seq": 2, "model": 2}
    mesh = sharding.make_mesh(**sizes)
    shapes = {"norm": jax.ShapeDtypeStruct((8,), jnp.float32), "odd": jax.ShapeDtypeStruct((1025, 1027), jnp.float32)}
    shardings = sharding.parameter_shardings({"norm": ("D",), "odd": ("D", "F")}, shapes, mesh)
    text = sharding.describe(shapes, shardings)
    assert "warning: odd (1025, 1027) divides into 1 shards, not 8: 4.0 MiB on every device" in text
    assert "warning: norm" not in text and "parameters: 4.0 MiB, 4.0 MiB per device" in text


def loss(model, params, tokens, segments, positions, attention):
    """Mean next-token loss inside documents."""
    bound, layout = parameters.bind(model, params), masks.TokenLayout(segments, positions)
    execute = execution.Execution(attention=attention, remat="full")
    logits = bound.logits(bound(tokens, layout, execute=execute))
    logprobs = jax.nn.log_softmax(logits)
    targets = jnp.roll(tokens, -1, axis=1)
    picked = jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]
    inside = (segments > 0) & (segments == jnp.roll(segments, -1, axis=1))
    return -jnp.sum(picked * inside) / jnp.sum(inside)


@pytest.mark.parametrize(
    "name, axes, attention",
    [
        ("toy", {"replica": 2, "data": 2, "seq": 2}, "banded"),
        pytest.param("toy", {"data": 2, "seq": 2, "model": 2}, "dense", marks=pytest.mark.slow),
        pytest.param("toy", {"replica": 2, "data": 2, "seq": 2}, "dense", marks=pytest.mark.slow),
        pytest.param("toy", {"seq": 4, "model": 2}, "banded", marks=pytest.mark.slow),
        pytest.param("toy", {"model": 2}, "dense", marks=pytest.mark.slow),
        ("one_key_head", {"data": 2, "model": 2}, "banded"),
    ],
)
def test_sharded_loss_and_gradients_equal_those_of_one_device(name, axes, attention):
    model = toys.variant(name)
    params = toys.params(model)
    tokens = jnp.asarray(toys.tokens(model, 4, 32))
    rows = [toys.packed(lengths, 32) for lengths in ([32], [20, 9], [3, 3, 26], [1, 30])]
    segments, positions = (jnp.concatenate([row[part] for row in rows]) for part in (0, 1))
    step = jax.jit(jax.value_and_grad(functools.partial(loss, model), argnums=0), static_argnums=4)
    expected = step(params, tokens, segments, positions, attention)

    mesh = sharding.make_mesh(**axes)
    shardings = parameters.shardings(model, mesh)
    spread = jax.device_put(params, shardings)
    batch_sharding = NamedSharding(mesh, PartitionSpec(("replica", "data"), "seq"))
    inputs = jax.device_put((tokens, segments, positions), batch_sharding)
    with jax.set_mesh(mesh):
        value, grads = step(spread, *inputs, attention)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=toys.ROUNDING, rtol=1e-4), grads, expected[1])
    assert jax.tree.reduce(max, jax.tree.map(lambda g: float(jnp.abs(g).max()), grads)) > 0.01


def collectives(model, mesh, execute, num_rows, num_tokens):
    """(kind, dtype, shape) of each collective in one gradient's partitioned program, before the CPU rewrites it."""
    batch_sharding = NamedSharding(mesh, PartitionSpec(("replica", "data"), "seq"))
    tokens = jax.ShapeDtypeStruct((num_rows, num_tokens), jnp.int32, sharding=batch_sharding)
    shapes = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        parameters.shapes(model),
        parameters.shardings(model, mesh),
    )

    def hidden(params, tokens):
        return jnp.sum(parameters.bind(model, params)(tokens, masks.whole_rows(tokens), execute=execute))

    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as dump:
        options = {"xla_dump_to": dump, "xla_dump_hlo_pass_re": "spmd.*"}
        jax.jit(jax.grad(hidden)).lower(shapes, tokens).compile(compiler_options=options)
        (text,) = (path.read_text() for path in pathlib.Path(dump).glob("*after_spmd-partitioning*"))
    ops = re.findall(
        r"= (\w+)\[([\d,]*)\]\S* (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)\(", text
    )
    return [(kind, dtype, tuple(int(size) for size in shape.split(",") if size)) for dtype, shape, kind in ops]


# Two periods: layers that are left over are sharded like local ones.
TWO_PERIODS = dataclasses.replace(toys.TOY, num_layers=12)


def test_zero3_gathers_weights_in_bfloat16_and_sums_their_gradients_in_float32():
    model, mesh = TWO_PERIODS, sharding.make_mesh(data=2, seq=2, model=2)
    execute = execution.Execution(dtype="bfloat16", remat="full")
    ops = collectives(model, mesh, execute, 4, 64)
    weights = {(24, 20), (20, 24), (24, 2, 8), (2, 8, 24), (24, 1, 8), (48, 24)}  # halved by `model` where it has a dim
    gathers = [dtype for kind, dtype, shape in ops if kind == "all-gather" and shape in weights]
    sums = [dtype for kind, dtype, shape in ops if kind == "reduce-scatter"]
    assert len(gathers) > 10 and set(gathers) == {"bf16"}
    assert len(sums) > 10 and set(sums) == {"f32"}
    assert [shape for kind, _, shape in ops if kind == "all-reduce" and shape in weights] == []


def test_replicas_exchange_shards_of_gradients_alone():
    model, mesh = TWO_PERIODS, sharding.make_mesh(replica=2, data=2, seq=2)
    ops = collectives(model, mesh, execution.Execution(remat="full"), 4, 64)
    summed = {shape for kind, _, shape in ops if kind == "all-reduce"}
    weights = {(24, 40), (40, 24), (24, 4, 8), (24, 2, 8)}
    assert {(shape[0] // 4, *shape[1:]) for shape in weights} <= summed and not weights & summed


def test_local_layers_fetch_a_halo_and_gather_no_row():
    model = dataclasses.replace(toys.TOY, num_layers=3, sliding_window=100)
    execute = execution.Execution(attention="banded", remat="full")
    ops = collectives(model, sharding.make_mesh(seq=4), execute, 2, 1024)
    keys = model.num_kv_heads, model.head_dim
    others = [shape for kind, _, shape in ops if kind != "collective-permute"]
    assert others and not [shape for shape in others if 1024 in shape and shape[-2:] == keys]
    assert ("collective-permute", "f32", (2, 1, 128, 2, 8)) in ops  # one block of keys, or of values


def test_gradients_rest_where_their_parameters_do():
    model, mesh = TWO_PERIODS, sharding.make_mesh(data=2, seq=2, model=2)
    params = jax.device_put(toys.params(model), parameters.shardings(model, mesh))
    arrays = [jnp.asarray(np.tile(x, (2, 1))) for x in (toys.tokens(model, 1, 32), *toys.packed([32], 32))]
    with jax.set_mesh(mesh):
        grads = jax.jit(jax.grad(functools.partial(loss, model)), static_argnums=4)(params, *arrays, "auto")
    for grad, param in zip(jax.tree.leaves(grads), jax.tree.leaves(params), strict=True):
        assert grad.sharding.is_equivalent_to(param.sharding, param.ndim), (param.shape, grad.sharding)


@pytest.mark.parametrize("num_rows, expected", [(8, ("replica", "data")), (4, "replica"), (2, "replica"), (3, None)])
def test_activations_split_over_the_axes_that_divide_them(num_rows, expected):
    mesh = sharding.make_mesh(replica=2, data=4)
    with jax.set_mesh(mesh):
        x = jax.jit(lambda x: sharding.constrain(x, "BTD"))(jnp.zeros((num_rows, 4, 6)))
    assert x.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(expected)), 3)


class FakeChip:
    """The attributes of a TPU chip that mesh_utils reads."""

    platform, device_kind, core_on_chip = "tpu", "TPU v5p", 0

    def __init__(self, number, coords, slice_index=0):
        self.id, self.coords, self.slice_index, self.process_index = number, coords, slice_index, number // 4


def torus(x, y, z, num_slices=1):
    coords = itertools.product(range(num_slices), range(z), range(y), range(x))
    return [FakeChip(number, (x, y, z), part) for number, (part, z, y, x) in enumerate(coords)]


@pytest.mark.parametrize("topology, shape", [((16, 16, 24), (32, 24, 8, 1)), ((4, 4, 4), (1, 8, 8, 1))])
def test_published_meshes_fit_on_their_torus(topology, shape):
    grid = sharding.device_grid(torus(*topology), shape)
    assert grid.shape == shape and len({chip.id for chip in grid.flat}) == math.prod(shape)


def test_slices_lie_along_replica():
    grid = sharding.device_grid(torus(4, 4, 4, num_slices=2), (4, 8, 4, 1))
    assert [{chip.slice_index for chip in part.flat} for part in grid] == [{0}, {0}, {1}, {1}]


def test_replica_must_hold_whole_slices():
    with pytest.raises(ValueError, match=r"mesh has replica 3 over 2 slices; make replica a multiple"):
        sharding.device_grid(torus(4, 4, 6, num_slices=2), (3, 8, 8, 1))


def test_a_mesh_too_large_is_refused_with_its_size_and_the_number_of_devices():
    with pytest.raises(ValueError, match=r"replica 1 x data 5 x seq 1 x model 2 = 10 devices, but there are 8"):
        sharding.make_mesh(data=5, model=2)


def test_mesh_axis_below_one_is_refused():
    with pytest.raises(ValueError, match=r"mesh is replica 0 x .*; every axis must be >= 1"):
        sharding.make_mesh(replica=0)


def test_an_explicit_mesh_is_refused():
    explicit = jax.make_mesh((1, 1, 1, 1), sharding.AXES, axis_types=(AxisType.Explicit,) * 4)
    with pytest.raises(ValueError, match=r"mesh axis types are .*Explicit.*; all must be Auto"):
        parameters.shardings(toys.TOY, explicit)


def test_a_mesh_with_other_axes_is_refused():
    other = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)
    with pytest.raises(ValueError, match=r"mesh axes are \('fsdp', 'tp'\); they must be \('replica', 'data'"):
        parameters.shardings(toys.TOY, other)
