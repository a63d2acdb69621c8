#!/usr/bin/env bash
# ggml's Q4_0 is exact for a block's largest weight, and an eighth off for one as large of the other sign.
#
# Natural guess: 4 bits with one scale for 32 weights mean absmax / 7 (or / 8) and rounding, alike for both signs;
#   training with such a grid is training for Q4_0.
# Version: gguf 0.19.0, numpy 2.4.6
# Seen: the scale is the largest weight with its sign over -8: that weight is exactly -8 steps, and the other side ends
#   at 7. The first two weights of a block, before -> after:
#   [1, -1] -> [1.0, -0.875], [-1, 1] -> [-1.0, 0.875]
#   Q4_0: largest error 0.125 of the block's largest weight, rms 0.086
#   absmax / 7: largest error 0.071 of the block's largest weight, rms 0.098
# Here: gemma3_jax/quant/formats.py rounds as ggml does, and tests/quant compares its bytes with this package's. A
#   symmetric training grid puts weights where the exported file cannot.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
cd "$work"
venv/bin/python -I - <<'PYTHON'
import gguf
import numpy as np

BLOCK, FORMAT = 32, gguf.GGMLQuantizationType.Q4_0


def q4_0(weights):
    return gguf.quants.dequantize(gguf.quants.quantize(weights, FORMAT), FORMAT)


def symmetric(weights):
    scale = np.abs(weights).max(axis=1, keepdims=True) / 7
    return np.round(weights / scale) * scale


def first_two(*weights):
    block = np.zeros((1, BLOCK), np.float32)
    block[0, :2] = weights
    return q4_0(block)[0, :2].tolist()


ends = first_two(1, -1), first_two(-1, 1)
print(f"[1, -1] -> {ends[0]}, [-1, 1] -> {ends[1]}")
weights = np.random.default_rng(0).normal(size=(4096, BLOCK)).astype(np.float32)
for name, rounded in (("Q4_0", q4_0(weights)), ("absmax / 7", symmetric(weights))):
    error = np.abs(rounded - weights)
    worst = (error / np.abs(weights).max(axis=1, keepdims=True)).max()
    print(f"{name}: largest error {worst:.3f} of the block's largest weight, rms {np.sqrt((error**2).mean()):.3f}")
if ends != ([1, -0.875], [-1, 0.875]):
    raise SystemExit("changed: Q4_0 rounds both ends of a block alike")
PYTHON
