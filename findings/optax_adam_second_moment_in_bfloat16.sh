#!/usr/bin/env bash
# With bfloat16 parameters Adam's second moment never decays: one large gradient slows a weight down for good.
#
# Natural guess: mu_dtype sets the precision of Adam's moments, or at least the second moment decays at rate b2 whatever
#   its dtype.
# Version: optax 0.2.8 on jax 0.10.2 (CPU)
# Seen: mu_dtype is for the first moment only; the second one has the parameters' dtype, and in the 8 bits of bfloat16
#   0.999 * nu rounds to nu. One gradient of 1, then 2,000 of 0:
#   float32 parameters: nu is float32, from 0.001 to 0.000135
#   bfloat16 parameters: nu is bfloat16, from 0.000999 to 0.000999
# Here: gemma3_jax/train/step.py keeps parameters in float32 whatever dtype products have, so nu is float32; only the
#   first moment may be bfloat16 (gemma3_jax/train/settings.py).
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
cd "$work"
JAX_PLATFORMS=cpu XLA_FLAGS='' venv/bin/python -I - <<'PYTHON'
import jax
import jax.numpy as jnp
import optax

optimizer = optax.adam(1e-3, b2=0.999, mu_dtype=jnp.float32)


def second_moment(dtype):
    """After a gradient of 1, and after 2,000 of 0 behind it."""
    params = jnp.zeros((), dtype)
    update = jax.jit(lambda gradient, state: optimizer.update(gradient, state, params)[1])
    first = update(jnp.ones((), dtype), optimizer.init(params))
    last = jax.lax.fori_loop(0, 2_000, lambda _, state: update(jnp.zeros((), dtype), state), first)
    print(f"{dtype.__name__} parameters: nu is {last[0].nu.dtype}, from {first[0].nu:.3g} to {last[0].nu:.3g}")
    return float(first[0].nu), float(last[0].nu)


begun, ended = second_moment(jnp.float32)
assert abs(ended / begun - 0.999**2_000) < 1e-3
begun, ended = second_moment(jnp.bfloat16)
if begun != ended:
    raise SystemExit("changed: the second moment of bfloat16 parameters falls")
PYTHON
