#!/usr/bin/env bash
# On a TPU, a reduce-scatter over a whole slice, or into two dims, is compiled to an all-reduce and a slice.
#
# Natural guess: ZeRO gradients that are summed over devices and rest split over them are reduce-scattered: no device
#   receives the whole sum.
# Version: jax 0.10.2, jaxlib 0.10.2, libtpu 0.0.42.1 (compiled for v5e:4x4 on a CPU; nothing runs)
# Seen: what each device computes of a float32 [2048, 1024] that is to be scattered:
#   psum_scatter over 4 of 16 chips: reduce-scatter(f32[512,1024])
#   psum_scatter over all 16 chips: all-reduce(f32[2048,1024])
#   gradient at rest as P("data", "seq"): all-reduce(f32[2048,1024])
# Here: gemma3_jax/sharding.py sums over a whole mesh in two steps, over groups that cross each other;
#   gemma3_jax/model/fsdp.py scatters gradients explicitly in a shard_map.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
cd "$work"
export TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost ALLOW_MULTIPLE_LIBTPU_LOAD=1
export JAX_PLATFORMS=cpu LIBTPU_INIT_ARGS='' XLA_FLAGS=''
venv/bin/python -I - <<'PYTHON'
import re

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils, topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

ROWS, COLUMNS = 2048, 1024
chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices
grid = Mesh(mesh_utils.create_device_mesh((4, 4), chips), ("data", "seq"))
line = Mesh(mesh_utils.create_device_mesh((16,), chips), ("data",))


def look(name, f, *arguments, **options):
    text = jax.jit(f, **options).lower(*arguments).compile().as_text()
    sums = re.findall(r"= (f32\[[\d,]+\])\S* ((?:all-reduce|reduce-scatter)\()", text[text.index("\nENTRY ") :])
    sums = " ".join(f"{operation}{result})" for result, operation in sums)
    print(f"{name}: {sums}")
    return sums


def scattered(mesh):
    def run(x):
        return jax.lax.psum_scatter(x, "data", scatter_dimension=0, tiled=True)

    x = jax.ShapeDtypeStruct((ROWS, COLUMNS), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    return jax.shard_map(
        run, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec("data"), check_vma=False
    ), x


def tokens(width):
    at = NamedSharding(grid, PartitionSpec("data", "seq"))
    return jax.ShapeDtypeStruct((16, 512, width), jnp.bfloat16, sharding=at)


def gradient(x, y):
    return jnp.einsum("btd,btf->df", x, y, preferred_element_type=jnp.float32)


part = look("psum_scatter over 4 of 16 chips", *scattered(grid))
every = look("psum_scatter over all 16 chips", *scattered(line))
at_rest = NamedSharding(grid, PartitionSpec("data", "seq"))
two = look('gradient at rest as P("data", "seq")', gradient, tokens(ROWS), tokens(COLUMNS), out_shardings=at_rest)
whole = f"all-reduce(f32[{ROWS},{COLUMNS}])"
if (part, every, two) != (f"reduce-scatter(f32[{ROWS // 4},{COLUMNS}])", whole, whole):
    raise SystemExit("changed: the compiler scatters another of these sums, or none")
PYTHON
