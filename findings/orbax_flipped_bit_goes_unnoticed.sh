#!/usr/bin/env bash
# A flipped bit in an array of an Orbax checkpoint loads without an error, as another number.
#
# Natural guess: checkpoints are compressed and stored through a key-value store with checksums, so one that loads is
#   the one that was saved.
# Version: orbax-checkpoint 0.12.8, tensorstore 0.1.86 on jax 0.10.2 (CPU)
# Seen: one bit in the middle of the largest file, of four checkpoints of 262,144 normal numbers each (files differ a
#   little from run to run, and with them what the bit hits):
#   loads, 1 numbers changed, by at most 0.34
#   loads, 1 numbers changed, by at most 0.0071
#   loads, 1 numbers changed, by at most 0.039
#   loads, 27 numbers changed, by at most 1.9e+33
# Here: gemma3_jax/checkpoint/manager.py stores a checksum of all bits with each checkpoint and compares it after
#   loading. Store a digest with checkpoints that are copied between disks.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  orbax-checkpoint==0.12.8 tensorstore==0.1.86 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$work"
JAX_PLATFORMS=cpu XLA_FLAGS='' venv/bin/python -I -W ignore - <<'PYTHON'
import logging
import pathlib

import numpy as np
from orbax.checkpoint import v1 as ocp

logging.disable(logging.ERROR)


def changed(seed):
    """How many numbers come back as others; None if loading fails."""
    path = pathlib.Path(f"seed_{seed}").absolute()
    saved = np.random.default_rng(seed).normal(size=(512, 512)).astype(np.float32)
    ocp.save_checkpointables(path, {"params": {"w": saved}})
    file = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)
    try:
        loaded = np.asarray(ocp.load_checkpointables(path)["params"]["w"])
    except Exception as error:
        print(f"{type(error).__name__}: {str(error)[:80]}")
        return None
    count = int((loaded != saved).sum())
    print(f"loads, {count} numbers changed, by at most {np.abs(loaded - saved).max():.2g}")
    return count


if not any([changed(seed) for seed in range(4)]):
    raise SystemExit("changed: no flipped bit came back as a number")
PYTHON
