#!/usr/bin/env bash
# On a TPU, jax.lax.top_k of an array of rank 3 sorts every row; of rank 2 it is the compiler's TopK.
#
# Natural guess: top_k over the last dim costs the same whatever leading dims there are.
# Version: jax 0.10.2, jaxlib 0.10.2, libtpu 0.0.42.1 (compiled for a v5e on a CPU; nothing runs)
# Seen: the 128 largest of the same 67 million numbers:
#   [4096, 16384]: 1 TopK, 0 sorts
#   [16, 256, 16384]: 0 TopK, 1 sorts
# Here: gemma3_jax/distill/search.py looks for the largest in blocks first, which leaves top_k short rows, but of rank
#   3. Reshape to two dims before top_k, and back after it.
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

chip = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]


def look(*shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.sharding.SingleDeviceSharding(chip))
    text = jax.jit(lambda x: jax.lax.top_k(x, 128)).lower(x).compile().as_text()
    seen = text.count('custom_call_target="TopK"'), len(re.findall(r" sort\(", text))
    print(f"{list(shape)}: {seen[0]} TopK, {seen[1]} sorts")
    return seen


if (look(4096, 16384), look(16, 256, 16384)) != ((1, 0), (0, 1)):
    raise SystemExit("changed: top_k of rank 2 and of rank 3 are no longer TopK and a sort")
PYTHON
