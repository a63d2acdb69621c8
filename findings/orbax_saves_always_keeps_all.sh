#!/usr/bin/env bash
# An Orbax v1 Checkpointer without policies saves at every call and deletes nothing.
#
# Natural guess: training.Checkpointer(directory) saves at intervals and keeps the last few checkpoints, so a loop may
#   call it at every step.
# Version: orbax-checkpoint 0.12.8 on jax 0.10.2 (CPU)
# Seen: a save offered at each of 8 steps:
#   saved [0, 1, 2, 3, 4, 5, 6, 7], on disk [0, 1, 2, 3, 4, 5, 6, 7]
# Here: gemma3_jax/checkpoint/manager.py passes both policies. A checkpoint of 27B with its optimizer state in float32
#   is 324 GB: set save_decision_policy and preservation_policy before the first step.
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

logging.disable(logging.WARNING)
directory, steps = pathlib.Path("run").absolute(), list(range(8))
with ocp.training.Checkpointer(directory) as checkpointer:
    saved = [step for step in steps if checkpointer.save_checkpointables(step, {"params": {"w": jnp.ones(4)}})]
on_disk = sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())
print(f"saved {saved}, on disk {on_disk}")
if (saved, on_disk) != (steps, steps):
    raise SystemExit("changed: without policies some steps are not saved, or are deleted")
PYTHON
