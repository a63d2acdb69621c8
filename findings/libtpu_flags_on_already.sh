#!/usr/bin/env bash
# Most compiler flags of TPU recipes change nothing any more: the compiled program stays the same, byte for byte.
#
# Natural guess: LIBTPU_INIT_ARGS of a published recipe (async collective fusion, latency hiding scheduler, ...) is what
#   makes gathers overlap products, and a job without them is slower.
# Version: jax 0.10.2, jaxlib 0.10.2, libtpu 0.0.42.1 (compiled for v5e:2x2 on a CPU; nothing runs)
# Seen: a ZeRO-3 step of three scanned layers, compiled once as it is and once with each flag set to true:
#   7 of 7 flags leave every byte of the compiled program as it is
#   xla_tpu_enable_async_collective_fusion=false makes another program: it was on
# Here: gemma3_jax/planning/compiler_flags.py has only flags that change something; tests/interop/test_launch.py
#   compares. Do so with a recipe's flags before copying them: lowered.compile(compiler_options={FLAG: "true"}).
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
cd "$work"
export TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost ALLOW_MULTIPLE_LIBTPU_LOAD=1
export JAX_PLATFORMS=cpu LIBTPU_INIT_ARGS='' XLA_FLAGS=''
venv/bin/python -I - <<'PYTHON'
import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils, topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

FUSION = "xla_tpu_enable_async_collective_fusion"
NAMED = [
    FUSION,
    f"{FUSION}_fuse_all_gather",
    f"{FUSION}_multiple_steps",
    "xla_tpu_overlap_compute_collective_tc",
    "xla_enable_async_all_gather",
    "xla_enable_async_collective_permute",
    "xla_tpu_enable_latency_hiding_scheduler",
]
LAYERS, TOKENS, WIDTH, MLP = 3, 256, 512, 2048
chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
mesh = Mesh(mesh_utils.create_device_mesh((len(chips),), chips), ("data",))
at_rest = NamedSharding(mesh, PartitionSpec(None, "data"))


def layer(x, weights):
    up, down = (jax.lax.with_sharding_constraint(w, PartitionSpec()).astype(jnp.bfloat16) for w in weights)
    return x + jax.nn.gelu(x @ up) @ down, None


def step(weights, x):
    def loss(weights):
        y, _ = jax.lax.scan(jax.checkpoint(layer), x, weights)
        return jnp.mean(jnp.square(y.astype(jnp.float32)))

    return jax.tree.map(jnp.subtract, weights, jax.grad(loss)(weights))


shapes = (LAYERS, WIDTH, MLP), (LAYERS, MLP, WIDTH)
weights = tuple(jax.ShapeDtypeStruct(shape, jnp.float32, sharding=at_rest) for shape in shapes)
rows = NamedSharding(mesh, PartitionSpec("data"))
x = jax.ShapeDtypeStruct((len(chips), TOKENS, WIDTH), jnp.bfloat16, sharding=rows)
with jax.set_mesh(mesh):
    lowered = jax.jit(step, out_shardings=(at_rest, at_rest), donate_argnums=0).lower(weights, x)
as_it_is = lowered.compile().as_text()
same = [flag for flag in NAMED if lowered.compile(compiler_options={flag: "true"}).as_text() == as_it_is]
print(f"{len(same)} of {len(NAMED)} flags leave every byte of the compiled program as it is")
is_taken = lowered.compile(compiler_options={FUSION: "false"}).as_text() != as_it_is
print(f"{FUSION}=false {'makes another program: it was on' if is_taken else 'leaves it, too'}")
if same != NAMED or not is_taken:
    raise SystemExit(f"changed: {', '.join(sorted({*NAMED} - {*same})) or FUSION} is not what was on already")
PYTHON
