#!/usr/bin/env bash
# jax.make_mesh and jax.sharding.Mesh make different meshes, and Flax's sharding annotations work on one of them.
#
# Natural guess: jax.make_mesh(shape, names) is Mesh with well arranged devices; code that runs on one runs on the
#   other.
# Version: jax 0.10.2, jaxlib 0.10.2, flax 0.12.8 (CPU, 8 virtual devices)
# Seen: make_mesh makes Explicit axes, Mesh makes Auto ones. An MLP of two nnx.Linear with nnx.with_partitioning:
#   Mesh: axes Auto, output (8, 16); constraint P(None, 'model')
#   make_mesh: axes Explicit, output ShardingTypeError: Contracting dimensions are sharded and it is ambiguous ...;
#   constraint AssertionError: `with_sharding_constraint` acts as an assert when all axes ...
# Here: gemma3_jax/sharding.py passes axis_types=Auto, and refuses other meshes at start-up. With make_mesh:
#   axis_types=(jax.sharding.AxisType.Auto,) * len(names).
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cd "$work"
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 venv/bin/python -I - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

AXES = ("data", "model")
MESHES = {
    "Mesh": Mesh(np.asarray(jax.devices()).reshape(4, 2), AXES),
    "make_mesh": jax.make_mesh((4, 2), AXES),
}


class MLP(nnx.Module):
    def __init__(self, rngs):
        init = nnx.initializers.lecun_normal()
        self.up = nnx.Linear(16, 64, rngs=rngs, kernel_init=nnx.with_partitioning(init, AXES))
        self.down = nnx.Linear(64, 16, rngs=rngs, kernel_init=nnx.with_partitioning(init, AXES[::-1]))

    def __call__(self, x):
        return self.down(jax.nn.gelu(self.up(x)))


def forward():
    model = jax.jit(lambda: MLP(nnx.Rngs(0)))()
    x = jax.device_put(jnp.ones((8, 16)), PartitionSpec("data"))
    return jax.jit(lambda model, x: model(x))(model, x).shape


def constrained():
    moved = jax.jit(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec(None, "model")))(jnp.ones((8, 16)))
    return moved.sharding.spec


def outcome(f, mesh):
    with jax.set_mesh(mesh):
        try:
            return str(f())
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:65]} ..."


seen = {name: [outcome(f, mesh) for f in (forward, constrained)] for name, mesh in MESHES.items()}
for name, (output, constraint) in seen.items():
    print(f"{name}: axes {MESHES[name].axis_types[0].name}, output {output}; constraint {constraint}")
if seen["Mesh"][0] != "(8, 16)" or not seen["make_mesh"][0].startswith("ShardingTypeError"):
    raise SystemExit("changed: Flax's annotations do on a mesh of make_mesh what they do on one of Mesh")
PYTHON
