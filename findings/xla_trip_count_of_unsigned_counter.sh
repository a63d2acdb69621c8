#!/usr/bin/env bash
# XLA notes a trip count of 1 on a loop that counts an unsigned integer down from 9 to 1.
#
# Natural guess: `known_trip_count` in the text of a compiled program is right wherever XLA writes it, as its name says.
# Version: jax 0.10.2, jaxlib 0.10.2 (CPU)
# Seen: `while n > 1: n -= 1` from 9 runs 8 times; the program's result is right, its note is not:
#   uint32 from 9: ran 8 times, noted [1]
#   uint32 from 100: ran 99 times, noted [1]
#   int32 from 9: ran 8 times, noted []
# Here: gemma3_jax/planning/hlo.py derives trips from the loop's counter, and uses the note only where it cannot. Other
#   tools that read costs from HLO text should do so too.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cd "$work"
JAX_PLATFORMS=cpu XLA_FLAGS='' venv/bin/python -I - <<'PYTHON'
import re

import jax
import jax.numpy as jnp


def look(dtype, first):
    def count(trips):
        return jax.lax.while_loop(lambda s: s[0] > 1, lambda s: (s[0] - 1, s[1] + 1), (dtype(first), trips))[1]

    compiled = jax.jit(count).lower(jnp.int32(0)).compile()
    noted = [int(n) for n in re.findall(r'known_trip_count":\{"n":"(\d+)"', compiled.as_text())]
    ran = int(compiled(jnp.int32(0)))
    print(f"{dtype.__name__} from {first}: ran {ran} times, noted {noted}")
    return ran, noted


wrong = [look(jnp.uint32, first) for first in (9, 100)]
look(jnp.int32, 9)
if wrong != [(8, [1]), (99, [1])]:
    raise SystemExit("changed: the note on an unsigned loop that counts down is no longer 1")
PYTHON
