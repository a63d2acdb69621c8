#!/usr/bin/env bash
# From a relative path Orbax returns metadata without the arrays, and loading fails with a misleading error.
#
# Natural guess: a checkpoint that opens by its absolute path opens by a relative one, or neither call accepts it.
# Version: orbax-checkpoint 0.12.8 on jax 0.10.2 (CPU)
# Seen: custom metadata is there, so the checkpoint seems to open; its tree is None, and the error does not mention
#   paths:
#   absolute: custom metadata {'size': 'toy'}, params {'w': (64, 64)}; loads
#   relative: custom metadata {'size': 'toy'}, params None; NoEntryError "Failed to load checkpointable: params due to
#   incompatible handler
# Here: gemma3_jax/checkpoint/orbax.py makes every path absolute before Orbax sees it.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
cd "$work"
JAX_PLATFORMS=cpu XLA_FLAGS='' venv/bin/python -I -W ignore - <<'PYTHON'
import logging
import pathlib

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

logging.disable(logging.ERROR)
ocp.save_checkpointables(
    pathlib.Path("one").absolute(), {"params": {"w": jnp.ones((64, 64))}}, custom_metadata={"size": "toy"}
)


def look(name, path):
    metadata = ocp.checkpointables_metadata(path)
    tree = metadata.metadata["params"]
    shapes = tree and {name: leaf.shape for name, leaf in tree.items()}
    try:
        jax.block_until_ready(ocp.load_checkpointables(path))
        outcome = "loads"
    except Exception as error:
        outcome = f"{type(error).__name__} {str(error)[:71]}"
    print(f"{name}: custom metadata {metadata.custom_metadata}, params {shapes}; {outcome}")
    return shapes, outcome


absolute = look("absolute", pathlib.Path("one").absolute())
relative = look("relative", pathlib.Path("one"))
if absolute[1] != "loads" or relative[0] is not None or relative[1] == "loads":
    raise SystemExit("changed: a relative path is read as an absolute one is, or refused")
PYTHON
