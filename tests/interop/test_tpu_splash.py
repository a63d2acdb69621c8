"""Attention as XLA compiles it for TPUs, none of which is needed: by a kernel, without scores, fetching a halo."""

import json
import os
import re
import subprocess
import sys

import pytest

from gemma3_jax.planning import costs, hlo, kernels

pytest.importorskip("libtpu")

pytestmark = pytest.mark.interop

ROWS, TOKENS = 2, 4096  # on a mesh of 2 data shards and 2 sequence shards
ONE_KEY_HEAD, NARROW_HEADS = (4, 1, 256), (8, 4, 128)  # heads of 1B; a quarter of the heads of 27B

# A layer's attention, forward and backward; in a process of its own, as libtpu wants these variables and JAX no other
# devices.
COMPILE = """
import json, sys
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from gemma3_jax import sharding
from gemma3_jax.model import attention, masks

topology, rows, tokens, (query_heads, key_heads, width), window, images = json.loads(sys.argv[1])
devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
mesh = Mesh(np.array(devices[:4]).reshape(1, 2, 2, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 4)


def array(*dims, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct((rows, tokens, *dims), dtype, sharding=sharding.batch_sharding(mesh))


def loss(arrays, places):
    return jnp.sum(jnp.square(attention.attend(*arrays, places, window, "auto").astype(jnp.float32)))


ids = array(dtype=jnp.int32)
arrays = [array(num_heads, width) for num_heads in (query_heads, key_heads, key_heads)]
with jax.set_mesh(mesh):
    lowered = jax.jit(jax.grad(loss)).lower(arrays, masks.TokenLayout(ids, ids, ids if images else None))
print(json.dumps(lowered.compile().as_text()))
"""


def compiled(topology, heads, window, images=False):
    """The program of the gradients of queries, keys and values."""
    variables = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    environment = os.environ | variables | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", COMPILE, json.dumps([topology, ROWS, TOKENS, heads, window, images])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def sent(text):
    """(kind, dtype, shape) of each collective."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    found = re.findall(rf"= \(?(\w+)\[([\d,]*)\].* ({kinds})(?:-start)?\(", text)
    return {(kind, dtype, tuple(int(size) for size in shape.split(",") if size)) for dtype, shape, kind in found}


def assert_by_kernel_and_without_scores(text):
    assert text.count('custom_call_target="tpu_custom_call"') == 3  # forward; of queries; of keys and values
    shapes = [[int(size) for size in shape.split(",")] for shape in re.findall(r"\w+\[([\d,]+)\]", text)]
    assert max(max(shape) for shape in shapes) >= TOKENS // 2
    assert [shape for shape in shapes if sum(size >= TOKENS // 4 for size in shape) > 1] == []


@pytest.mark.parametrize("heads, window", [(ONE_KEY_HEAD, 512), (NARROW_HEADS, 1024)])
def test_a_local_layer_fetches_the_last_window_of_its_neighbor_and_no_more(heads, window):
    text = compiled("v5e:2x2", heads, window)
    assert_by_kernel_and_without_scores(text)
    assert sent(text) == {("collective-permute", "bf16", (1, window, *heads[1:]))}


@pytest.mark.parametrize(
    "topology, heads",
    [("v5e:2x2", ONE_KEY_HEAD), ("v5e:2x2", NARROW_HEADS), ("v4:2x2x1", ONE_KEY_HEAD), ("v5p:2x2x1", ONE_KEY_HEAD)],
)
def test_a_global_layer_gathers_keys_and_values_as_bfloat16(topology, heads):
    text = compiled(topology, heads, None)
    assert_by_kernel_and_without_scores(text)
    calls = [call for call in costs.flops(hlo.read(text)).custom_calls if kernels.is_global(call)]
    assert sorted(map(kernels.kind, calls)) == ["dkv", "dq", "fwd"]
    assert all(scores.mean == scores.most for scores in map(kernels.num_scores, calls))  # queries are balanced
    gathered = {(dtype, shape) for kind, dtype, shape in sent(text) if kind == "all-gather"}
    assert gathered == {("bf16", (1, TOKENS, *heads[1:])), ("s32", (1, TOKENS))}  # and segments


def test_images_make_a_local_layer_look_ahead_as_well():
    text = compiled("v5e:2x2", ONE_KEY_HEAD, 512, images=True)
    assert_by_kernel_and_without_scores(text)
    halos = {shape[1] for kind, dtype, shape in sent(text) if (kind, dtype) == ("collective-permute", "bf16")}
    assert halos == {512, 511}
