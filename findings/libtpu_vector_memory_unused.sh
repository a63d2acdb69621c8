#!/usr/bin/env bash
# A product that a loop runs beside others gets 16 MiB of vector memory, whatever the chip has, at the cost of cycles.
#
# Natural guess: the compiler gives an operation the vector memory that its chip has: 128 MiB on a v5e, 64 a core on a
#   v5p. Recipes set xla_tpu_scoped_vmem_limit_kib for a v6e alone, and there is nothing to gain elsewhere.
# Version: jax 0.10.2, jaxlib 0.10.2, libtpu 0.0.42.1 (compiled on a CPU; nothing runs: cycles are estimates)
# Seen: the loss of 8 chunks (logits, and both gradients from them: three products of 4096 x 1152 x 16384), cycles of a
#   chunk by the compiler's estimate:
#   v5e:2x2 5562106 by default, 4929303 with 48 MiB: 0.886 x
#   v5p:2x2x1 2949533 by default, 2362814 with 32 MiB: 0.801 x
# Here: gemma3_jax/chips.py has a limit for each chip, and steps are compiled with it.
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
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

CHUNKS, TOKENS, WIDTH, IDS = 8, 4096, 1152, 16384


def loss_gradients(hidden, table):
    def of_chunk(table_gradient, chunk):
        def product(left, right, dims, out=jnp.float32):
            return jax.lax.dot_general(left, right, ((dims[:1], dims[1:]), ((), ())), preferred_element_type=out)

        logits = product(chunk, table, (1, 1))
        probs = jnp.exp(logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)).astype(jnp.bfloat16)
        return table_gradient + product(probs, chunk, (0, 0)), product(probs, table, (1, 0)).astype(jnp.bfloat16)

    return jax.lax.scan(of_chunk, jnp.zeros(table.shape, jnp.float32), hidden)


def cycles(lowered, **options):
    text = lowered.compile(compiler_options=options).as_text()
    return sum(count for count in map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)) if count > 1000)


changed = False
for topology, mib, least, most in (("v5e:2x2", 48, 0.8, 0.95), ("v5p:2x2x1", 32, 0.7, 0.9)):
    chip = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    shapes = (CHUNKS, TOKENS, WIDTH), (IDS, WIDTH)
    inputs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=SingleDeviceSharding(chip)) for shape in shapes]
    lowered = jax.jit(loss_gradients).lower(*inputs)
    default, more = cycles(lowered), cycles(lowered, xla_tpu_scoped_vmem_limit_kib=str(mib << 10))
    print(f"{topology} {default} by default, {more} with {mib} MiB: {more / default:.3f} x")
    changed |= not least < more / default < most
if changed:
    raise SystemExit("changed: the limit no longer makes the difference stated above")
PYTHON
