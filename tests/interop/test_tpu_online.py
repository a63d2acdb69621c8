"""Drawing weights in the loss as XLA compiles it for TPUs: two kernels, and nothing that TPUs are slow at."""

import json
import math
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("libtpu")

pytestmark = pytest.mark.interop

# 1,024 tokens on each shard of 16,384 ids; in a process of its own, as libtpu wants these variables.
COMPILE = """
import functools, json
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from gemma3_jax import sharding
from gemma3_jax.distill import online, settings
from gemma3_jax.losses import vocab_parallel

texts = {}
for topology in ("v5e:2x2", "v4:2x2x1", "v5p:2x2x1"):
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = Mesh(np.reshape(devices, (1, 1, 1, -1)), sharding.AXES, axis_types=(AxisType.Auto,) * 4)
    with jax.set_mesh(mesh):
        shard = vocab_parallel.shard_of(16_384 * len(devices))

        def weights(logits, labels, words):
            drawn = online.draw(shard, logits, labels, words, samples=settings.Samples())
            return drawn.weigh(logits, lambda logits, weights, ids: weights, dtype=jnp.bfloat16).gradient

        logits = PartitionSpec(None, None, "model")
        whole = PartitionSpec()
        run = vocab_parallel.shard_map(weights, (logits, whole, whole), logits)
        ids = jax.ShapeDtypeStruct((4, 256), jnp.int32, sharding=NamedSharding(mesh, whole))
        words = jax.ShapeDtypeStruct((4, 256), jnp.uint32, sharding=NamedSharding(mesh, whole))
        split = NamedSharding(mesh, logits)
        scores = jax.ShapeDtypeStruct((4, 256, 16_384 * len(devices)), jnp.float32, sharding=split)
        texts[topology] = jax.jit(run).lower(scores, ids, (words, words)).compile().as_text()
print(json.dumps(texts))
"""


def test_weights_are_drawn_by_two_kernels_without_a_sort_gather_scatter_or_change_of_layout():
    variables = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    environment = os.environ | variables | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for topology, text in json.loads(done.stdout.splitlines()[-1]).items():
        assert text.count('custom_call_target="tpu_custom_call"') == 2, topology
        slow = re.findall(r" (sort|gather|scatter|reduce-window)\(", text)
        assert not slow, (topology, slow)
        # All of the logits, apart from moving them into vector memory ahead of a kernel.
        large = re.findall(r"= \w+\[([\d,]+)\]\S* ((?!bitcast|parameter|get-tuple|copy-done)[\w-]+)\(", text)
        assert not [x for x in large if math.prod(map(int, x[0].split(","))) >= 1024 * 16_384], topology
