#!/usr/bin/env bash
# XLA's cost analysis counts the body of a loop once, so scanned layers cost as much as one.
#
# Natural guess: compiled.cost_analysis()["flops"] of a model whose layers run in jax.lax.scan is the FLOPs of a step.
# Version: jax 0.10.2, jaxlib 0.10.2 (CPU; libtpu 0.0.42.1 does the same)
# Seen: ten layers of x @ w, scanned and unrolled, the same products:
#   scanned 65538 FLOPs, unrolled 655360, by formula 655360
# Here: gemma3_jax/planning/costs.py counts products in the text of the compiled program, and gemma3_jax/planning/hlo.py
#   how often each computation runs. Multiply by the trips before computing MFU from cost_analysis.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cd "$work"
JAX_PLATFORMS=cpu XLA_FLAGS='' venv/bin/python -I - <<'PYTHON'
import jax
import jax.numpy as jnp

LAYERS, ROWS, WIDTH = 10, 8, 64
x, weights = jnp.ones((ROWS, WIDTH)), jnp.ones((LAYERS, WIDTH, WIDTH))


def scanned(x, weights):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]


def unrolled(x, weights):
    for w in weights:
        x = x @ w
    return x


flops = {f.__name__: jax.jit(f).lower(x, weights).compile().cost_analysis()["flops"] for f in (scanned, unrolled)}
formula = LAYERS * 2 * ROWS * WIDTH * WIDTH
print(f"scanned {flops['scanned']:.0f} FLOPs, unrolled {flops['unrolled']:.0f}, by formula {formula}")
if not flops["scanned"] < 1.01 * formula / LAYERS:
    raise SystemExit("changed: the cost analysis of a scan is no longer that of one trip")
PYTHON
