#!/usr/bin/env bash
# Orbax calls an empty directory a checkpoint, and returns empty metadata where the metadata file is damaged.
#
# Natural guess: is_orbax_checkpoint is False where nothing was saved, and checkpointables_metadata raises where a
#   metadata file is cut short.
# Version: orbax-checkpoint 0.12.8 on jax 0.10.2 (CPU)
# Seen: neither raises:
#   empty directory: is_orbax_checkpoint True, custom metadata {}, items []
#   _CHECKPOINT_METADATA cut short: is_orbax_checkpoint True, custom metadata {}, items ['params']
# Here: gemma3_jax/checkpoint/orbax.py looks for Orbax's files itself, and treats custom metadata without our key as
#   damage. A program that distinguishes kinds of checkpoints should write such a key.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
cd "$work"
JAX_PLATFORMS=cpu XLA_FLAGS='' venv/bin/python -I - <<'PYTHON'
import logging
import pathlib

import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

logging.disable(logging.ERROR)
empty, cut = pathlib.Path("empty").absolute(), pathlib.Path("cut").absolute()
empty.mkdir()
ocp.save_checkpointables(cut, {"params": {"w": jnp.ones((64, 64))}}, custom_metadata={"size": "toy"})
file = cut / "_CHECKPOINT_METADATA"
file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def look(name, path):
    metadata = ocp.checkpointables_metadata(path)
    seen = ocp.is_orbax_checkpoint(path), metadata.custom_metadata, list(metadata.metadata)
    print(f"{name}: is_orbax_checkpoint {seen[0]}, custom metadata {seen[1]}, items {seen[2]}")
    return seen


if (look("empty directory", empty), look("_CHECKPOINT_METADATA cut short", cut)) != (
    (True, {}, []),
    (True, {}, ["params"]),
):
    raise SystemExit("changed: Orbax tells an empty directory, or damaged metadata, from a checkpoint")
PYTHON
