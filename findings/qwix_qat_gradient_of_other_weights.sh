#!/usr/bin/env bash
# Qwix's QAT takes the gradient of activations through the weights before rounding, on a grid of absmax / 7.5.
#
# Natural guess: with QtProvider the backward pass uses the rounded weights, as a straight-through estimator does; and
#   int4 is absmax / 7, as files have it.
# Version: qwix 0.1.8, flax 0.12.8 on jax 0.10.2 (CPU)
# Seen: one Dense layer, int4 by channel; largest differences:
#   output from x @ W rounded to absmax / 7.5: 0; to absmax / 7: 0.23
#   gradient of x from that with W as it was: 0; with W rounded: 0.083
# Here: gemma3_jax/quant/view.py rounds parameters before the model sees them, so both passes use the rounded ones, and
#   gemma3_jax/checkpoint/export.py writes files with the same functions.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check qwix==0.1.8 flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
cd "$work"
JAX_PLATFORMS=cpu XLA_FLAGS='' venv/bin/python -I -W ignore - <<'PYTHON'
import jax
import jax.numpy as jnp
import qwix
from flax import linen


class Layer(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(8, use_bias=False)(x)


def rounded(weights, levels):
    scale = jnp.abs(weights).max(axis=0, keepdims=True) / levels
    return jnp.clip(jnp.round(weights / scale), -8, 7) * scale


def largest(x, y):
    return float(jnp.abs(x - y).max())


x = jax.random.normal(jax.random.key(1), (3, 64))
params = Layer().init(jax.random.key(0), x)
weights = params["params"]["Dense_0"]["kernel"]
rules = [qwix.QuantizationRule(module_path=".*", weight_qtype="int4")]
layer = qwix.quantize_model(Layer(), qwix.QtProvider(rules))
output, gradient = layer.apply(params, x), jax.grad(lambda x: layer.apply(params, x).sum())(x)
ones = jnp.ones_like(output)
grids = {levels: largest(output, x @ rounded(weights, levels)) for levels in (7.5, 7)}
before, behind = largest(gradient, ones @ weights.T), largest(gradient, ones @ rounded(weights, 7.5).T)
print(f"output from x @ W rounded to absmax / 7.5: {grids[7.5]:.2g}; to absmax / 7: {grids[7]:.2g}")
print(f"gradient of x from that with W as it was: {before:.2g}; with W rounded: {behind:.2g}")
if not (grids[7.5] < 1e-5 < grids[7] and before < 1e-5 < behind):
    raise SystemExit("changed: the grid, or the weights of the backward pass, are others")
PYTHON
