#!/usr/bin/env bash
# On a TPU, subtracting labels by `.at[tokens, labels].add(-1)` costs four passes over tokens x vocabulary.
#
# Natural guess: cross-entropy's gradient is softmax - one_hot; a scatter of one number per token is the cheap way to
#   subtract the one_hot, and a comparison with all ids the wasteful one.
# Version: jax 0.10.2, jaxlib 0.10.2, libtpu 0.0.42.1 (compiled for a v5e on a CPU; nothing runs)
# Seen: the bfloat16 gradient of [4096, 16384] float32 logits. For the scatter the compiler copies the array into one
#   flat dim, scatters, converts and reshapes it back (the last three without an estimate of cycles); the comparison is
#   part of one fusion:
#   scatter: 512 MiB of temporaries, 7988247 cycles estimated, 2 operations on a flat array
#   comparison: 0 MiB of temporaries, 4733308 cycles estimated, 0 operations on a flat array
# Here: gemma3_jax/losses/id_weights.py compares with an iota on a TPU, and scatters elsewhere. Cycles are the
#   compiler's estimates, not measured times.
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

TOKENS, VOCAB = 4096, 16384
chip = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
there = jax.sharding.SingleDeviceSharding(chip)
logits = jax.ShapeDtypeStruct((TOKENS, VOCAB), jnp.float32, sharding=there)
labels = jax.ShapeDtypeStruct((TOKENS,), jnp.int32, sharding=there)


def scatter(logits, labels):
    return jax.nn.softmax(logits).at[jnp.arange(TOKENS), labels].add(-1).astype(jnp.bfloat16)


def comparison(logits, labels):
    return (jax.nn.softmax(logits) - (labels[:, None] == jnp.arange(VOCAB))).astype(jnp.bfloat16)


def look(f):
    compiled = jax.jit(f).lower(logits, labels).compile()
    entry = compiled.as_text()
    entry = entry[entry.index("\nENTRY ") :]
    mebibytes = compiled.memory_analysis().temp_size_in_bytes >> 20
    cycles = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', entry)))
    flat = len(re.findall(rf"= \w+\[{TOKENS * VOCAB}\]\S* (?!bitcast)", entry))
    print(f"{f.__name__}: {mebibytes} MiB of temporaries, {cycles} cycles estimated, {flat} operations on a flat array")
    return mebibytes, flat


scattered, compared = look(scatter), look(comparison)
if not (scattered[0] >= 256 and scattered[1] and compared == (0, 0)):
    raise SystemExit("changed: the scatter of labels no longer makes a flat array of all logits")
PYTHON
