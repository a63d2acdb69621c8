"""What a step costs as XLA compiles it for TPUs, none of which is needed, against a count by hand."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from jax.sharding import AbstractMesh, AxisType

from gemma3_jax import sharding
from gemma3_jax.planning import costs, hlo

pytest.importorskip("libtpu")

pytestmark = pytest.mark.interop
ROOT = pathlib.Path(__file__).parents[2]

NUM_LAYERS, WIDTH, MLP_WIDTH, NUM_ROWS = 6, 512, 1024, 1024
BLOCKS, QUERIES, KEYS, HEADS, HEAD_WIDTH = 16, 128, 640, 4, 256

# In a process of its own, as libtpu wants these variables and JAX no other devices.
COMPILE = """
import functools, json, sys
import jax
import jax.numpy as jnp
from jax.experimental import pallas, topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from gemma3_jax import sharding
from tests.interop import test_tpu_costs as sizes

what, axes, num_slices = json.loads(sys.argv[1])
slices = {"num_slices": num_slices} if num_slices > 1 else {}
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", **slices).devices
mesh = Mesh(sharding.device_grid(devices, tuple(axes)), sharding.AXES, axis_types=(AxisType.Auto,) * 4)
at_rest, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((None, ("data", "seq")), ()))
rows = NamedSharding(mesh, PartitionSpec(("replica", "data")))


def array(*shape, dtype=jnp.bfloat16, at=rows):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=at)


def mlp(up, down, x):
    @jax.checkpoint
    def layer(x, w):
        up, down = (jax.lax.with_sharding_constraint(part.astype(jnp.bfloat16), whole) for part in w)
        return jnp.tanh(jnp.tanh(x @ up) @ down), None

    return jnp.sum(jax.lax.scan(layer, x, (up, down))[0].astype(jnp.float32))


def attend(query, key, value):
    scores = jnp.einsum("BRTNH,BRSH->BRNTS", query, key)
    return jnp.sum(jnp.einsum("BRNTS,BRSH->BRTNH", jax.nn.softmax(scores), value).astype(jnp.float32) ** 2)


split = PartitionSpec("data")


@functools.partial(jax.shard_map, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
def doubled(x):
    def kernel(x, out):
        out[...] = 2 * x[...]

    def twice(x, _):
        cost = pallas.CostEstimate(flops=x.size, transcendentals=0, bytes_accessed=0)
        return pallas.pallas_call(kernel, out_shape=x, cost_estimate=cost, name="doubled")(x), None

    return jax.lax.scan(twice, x, length=5)[0]


if what == "mlp":
    place = functools.partial(array, dtype=jnp.float32, at=at_rest)
    up = place(sizes.NUM_LAYERS, sizes.WIDTH, sizes.MLP_WIDTH)
    down = place(sizes.NUM_LAYERS, sizes.MLP_WIDTH, sizes.WIDTH)
    run = jax.jit(jax.grad(mlp, argnums=(0, 1)), out_shardings=(at_rest, at_rest))
    arguments = (up, down, array(sizes.NUM_ROWS, sizes.WIDTH))
elif what == "attend":
    keys = array(4, sizes.BLOCKS, sizes.KEYS, sizes.HEAD_WIDTH)
    run = jax.jit(jax.grad(attend, argnums=(0, 1, 2)))
    arguments = (array(4, sizes.BLOCKS, sizes.QUERIES, sizes.HEADS, sizes.HEAD_WIDTH), keys, keys)
else:
    run, arguments = jax.jit(doubled), (array(512, 256, at=NamedSharding(mesh, split)),)
with jax.set_mesh(mesh):
    print(json.dumps(run.lower(*arguments).compile().as_text()))
"""


def compiled(what, axes=(1, 4, 1, 1), num_slices=1):
    variables = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    environment = os.environ | variables | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", COMPILE, json.dumps([what, axes, num_slices])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return hlo.read(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("axes, num_slices", [((1, 4, 1, 1), 1), ((1, 2, 2, 1), 1), ((2, 4, 1, 1), 2)])
def test_a_scanned_layer_and_its_gradient_cost_what_a_hand_counts(axes, num_slices):
    module = compiled("mlp", axes, num_slices)
    found = costs.flops(module)
    rows = NUM_ROWS // (axes[0] * axes[1])
    # Two products forward, both again before the backward pass, and two each for their operands' gradients.
    assert found.matmul_flops_by_dtype == {"bf16": 8 * NUM_LAYERS * 2 * rows * WIDTH * MLP_WIDTH}
    assert not found.custom_calls and not found.runs.unknown_loops and not found.runs.conditionals

    mesh = AbstractMesh(axes, sharding.AXES, axis_types=(AxisType.Auto,) * 4)
    traffic = costs.traffic(module, mesh, num_slices=num_slices)
    moved = {(each.kind, each.axes, each.crosses_slices): each.num_bytes for each in traffic.collectives}
    weight_bytes = NUM_LAYERS * 2 * WIDTH * MLP_WIDTH * 2  # bfloat16, as both weights and gradients travel
    split_axes = tuple(axis for axis, size in zip(sharding.AXES, axes, strict=True) if size > 1 and axis != "replica")
    assert moved.pop(("all-gather", split_axes, False)) == 2 * weight_bytes * 3 / 4  # forward and backward
    if axes[2] > 1:  # devices along `seq` have the same rows; XLA sums over `data` all that each will keep a half of
        assert moved == {("all-reduce", ("data",), False): 2 * weight_bytes / 2}
    else:
        assert moved.pop(("reduce-scatter", ("data",), False)) == weight_bytes * 3 / 4
        over_slices = {("all-reduce", ("replica",), True): 2 * (weight_bytes / 4) / 2}  # of a shard of the gradient
        assert moved == (over_slices if num_slices > 1 else {})


def test_products_over_batches_are_counted_where_they_meet():
    """Blocks and heads are batch dims, which a TPU writes as windows of convolutions, some padded, some dilated."""
    found = costs.flops(compiled("attend"))
    one = 2 * BLOCKS * HEADS * QUERIES * KEYS * HEAD_WIDTH  # of the one row a device has
    assert found.matmul_flops == 6 * one  # two products, and two for the gradients of each


def test_a_kernel_is_listed_with_its_estimate_and_as_often_as_it_runs():
    [call] = costs.flops(compiled("kernel")).custom_calls
    assert call.target == "tpu_custom_call" and call.name.startswith("doubled")
    assert call.operands == call.results == (hlo.Shape("bf16", (128, 256)),)
    assert (call.num_times, call.estimated_flops) == (5, 128 * 256)


def test_a_large_product_is_estimated_at_nine_tenths_of_its_peak():
    """The scale of every figure of `plan --profile`; the figures are in docs/tpu_pods.md."""
    command = [sys.executable, "experiments/benchmarks/tpu_products.py", "--sizes=4096"]
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["chip"]: line["size"] for line in lines} == dict.fromkeys(("v5e", "v4", "v5p"), 4096)
    assert all(0.85 < line["fraction_of_peak"] < 1 for line in lines)
