#!/usr/bin/env bash
# jax.random.exponential returns exactly 0 once in 8 million draws, and in a race over a vocabulary any id can win.
#
# Natural guess: argmin(exponential / p) draws id i with probability p_i, as exponential races do, and the M soonest ids
#   are a sample of M without replacement of a teacher's 262,144 probabilities.
# Version: jax 0.10.2, jaxlib 0.10.2 (CPU)
# Seen: a float32 uniform has 23 random bits. A time of 0 wins whatever its rate, and 3 % of the races over 262,144 ids
#   have one:
#   400 races over 262144 ids: 15 (3.8%) were won by ids that have 1e-12 of the mass together (by the bits: 3.1%)
#   of 104857600 times 15 are 0.0, and the least of the others is 1.19e-07
# Here: gemma3_jax/distill/noise.py makes times from 32 random bits, none of them 0. jax.random.categorical draws a
#   single id without this fault.
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

VOCAB, RACES, LIKELY = 262_144, 400, 8
p = np.full(VOCAB, 1e-12 / VOCAB, np.float32)
p[:LIKELY] = 1 / LIKELY


@jax.jit
def race(key):
    times = jax.random.exponential(key, (VOCAB,))
    return jnp.argmin(times / p), jnp.sum(times == 0), jnp.min(jnp.where(times == 0, jnp.inf, times))


winners, zeros, least = map(np.asarray, jax.lax.map(race, jax.random.split(jax.random.key(0), RACES)))
outsiders = int((winners >= LIKELY).sum())
print(
    f"{RACES} races over {VOCAB} ids: {outsiders} ({outsiders / RACES:.1%}) were won by ids that have 1e-12 of the "
    f"mass together (by the bits: {VOCAB * 2**-23:.1%})"
)
print(f"of {RACES * VOCAB} times {zeros.sum()} are 0.0, and the least of the others is {least.min():.2e}")
if not (outsiders and zeros.sum()):
    raise SystemExit("changed: no exponential time was 0")
PYTHON
