#!/usr/bin/env bash
# The TPU compiler's "memory required for HLO temporaries" counts arguments and results as well.
#
# Natural guess: as the words say, the program's temporaries have to shrink (another remat policy, smaller chunks), and
#   a chip needs that many bytes plus those of the parameters.
# Version: jax 0.10.2, jaxlib 0.10.2, libtpu 0.0.42.1 (compiled for a v5e with 15.75 GiB on a CPU; nothing runs)
# Seen: programs that need no temporaries at all:
#   sum of 17 GiB: HLO temporaries (17.00G)
#   one more than an argument of 9 GiB: HLO temporaries (18.00G)
#   one more than a donated argument of 9 GiB: compiles
# Here: gemma3_jax/planning/compiling.py reads the message for `plan`. The number is all that a chip would hold: look
#   first at the sharding of parameters and optimizer state, and whether the old state is donated.
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


def look(name, f, gibibytes, **options):
    """What the compiler says it wants; None if it compiles."""
    shape = (gibibytes * 2**18, 1024)
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.sharding.SingleDeviceSharding(chip))
    wanted = None
    try:
        jax.jit(f, **options).lower(x).compile()
    except jax.errors.JaxRuntimeError as error:
        wanted = float(re.search(r"HLO temporaries \(([\d.]+)G\)", str(error))[1])
    print(f"{name} of {gibibytes} GiB: {'compiles' if wanted is None else f'HLO temporaries ({wanted:.2f}G)'}")
    return wanted


summed = look("sum", jnp.sum, 17)
added = look("one more than an argument", lambda x: x + 1, 9)
donated = look("one more than a donated argument", lambda x: x + 1, 9, donate_argnums=0)
if (summed, added, donated) != (17, 18, None):
    raise SystemExit("changed: the compiler counts, or says, something else when memory runs out")
PYTHON
