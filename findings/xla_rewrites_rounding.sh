#!/usr/bin/env bash
# Under jit XLA does not round as the code says: quantized weights come out differently than in numpy.
#
# Natural guess: float32 division, addition and subtraction are IEEE 754, so a quantizer written in jax.numpy gives the
#   bits that the same lines give in numpy, which is what the exporter runs.
# Version: jax 0.10.2, jaxlib 0.10.2 (CPU)
# Seen: of 100,000 normal numbers, the share whose bits differ from numpy's:
#   x / 7 0.544, x / 127 0.045, x / 1.875 0.632 (a product with the rounded reciprocal)
#   a * b + c 0.234 (rounded once, as one operation)
#   (x + 2**23) - 2**23, the old way to round to a whole number: 0.3 stays 0.3 (folded away)
#   a denormal times 2 is 0.0
# Here: gemma3_jax/quant/exact.py finds quotients by trial, rounds on the bits, and makes every product that is added to
#   exact; tests/quant compares numpy and jit bit by bit. Test a quantizer that has to match its exporter so.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$work"
JAX_PLATFORMS=cpu XLA_FLAGS='' venv/bin/python -I - <<'PYTHON'
import jax
import numpy as np

random = np.random.default_rng(0)
a, b, c = (random.normal(size=100_000).astype(np.float32) for _ in range(3))


def share(f, *arguments):
    return float((np.asarray(jax.jit(f)(*arguments)) != f(*arguments)).mean())


divided = {by: share(lambda x, by=by: x / np.float32(by), a) for by in (7, 127, 1.875)}
print(", ".join(f"x / {by} {part:.3f}" for by, part in divided.items()))
fused = share(lambda a, b, c: a * b + c, a, b, c)
print(f"a * b + c {fused:.3f}")
magic = np.float32(2**23)
folded = float(jax.jit(lambda x: (x + magic) - magic)(np.float32(0.3)))
print(f"(x + 2**23) - 2**23 of 0.3: {folded:.1f}")
denormal = float(jax.jit(lambda x: x * 2)(np.float32(1e-40)))
print(f"a denormal times 2: {denormal}")
if not (min(divided.values()) > 0.01 and folded == np.float32(0.3)):
    raise SystemExit("changed: XLA divides by a constant, or rounds a sum, as numpy does")
PYTHON
