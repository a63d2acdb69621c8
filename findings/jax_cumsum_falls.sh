#!/usr/bin/env bash
# jnp.cumsum of probabilities is not monotone, so a binary search in it can return the wrong id.
#
# Natural guess: sums of numbers >= 0 never fall, so cumsum(p) is sorted and searchsorted(cumsum(p), u) draws by p.
# Version: jax 0.10.2, jaxlib 0.10.2 (CPU)
# Seen: XLA adds in a tree, and neighbors are rounded along different branches. Of a distribution over 262,144 ids:
#   jnp.cumsum falls at 1370 of 262143 steps, and is off by at most 1.3e-07
#   np.cumsum falls at 0 of 262143 steps, and is off by at most 1.1e-04
# Here: gemma3_jax/distill/search.py sums blocks of 64, and blocks of blocks, and searches one level after the other.
#   Elsewhere: jax.lax.cummax over the sums makes them sorted again.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$work"
JAX_PLATFORMS=cpu XLA_FLAGS='' venv/bin/python -I - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

p = np.random.default_rng(0).dirichlet(np.full(262_144, 0.05)).astype(np.float32)
exact = np.cumsum(p, dtype=np.float64)
falls = {}
for name, sums in (("jnp", np.asarray(jax.jit(jnp.cumsum)(p))), ("np", np.cumsum(p))):
    falls[name] = int((np.diff(sums) < 0).sum())
    off = np.abs(sums - exact).max()
    print(f"{name}.cumsum falls at {falls[name]} of {len(p) - 1} steps, and is off by at most {off:.1e}")
if not falls["jnp"] > 0:
    raise SystemExit("changed: the cumulative sum no longer falls")
PYTHON
