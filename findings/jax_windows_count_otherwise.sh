#!/usr/bin/env bash
# JAX's attention windows do not count the query's token: a window of W holds W + 1 keys, and an int also looks ahead.
#
# Natural guess: Gemma's sliding_window of 512 is 512 keys, the query's token among them, and goes into JAX's window
#   arguments as it stands.
# Version: jax 0.10.2, jaxlib 0.10.2 (CPU)
# Seen: keys that the middle query of 16 reads, with W = 4:
#   splash LocalMask((W, 0)) 5, LocalMask((W - 1, 0)) 4
#   dot_product_attention(local_window_size=W) 9, with is_causal=True 5, with (W - 1, 0) 4
# Here: gemma3_jax/model/masks.py defines the window; gemma3_jax/model/splash.py passes (W - 1, 0). Compare a kernel
#   with a dense mask before training with it.
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
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

TOKENS, QUERY, W = 16, 8, 4


def splash(window):
    return int(splash_attention_mask.LocalMask((TOKENS, TOKENS), window, 0)[:, :][QUERY].sum())


def dot_product(**options):
    """All scores are equal, so keys with a weight are keys that are read."""
    zeros, keys = jnp.zeros((1, TOKENS, 1, TOKENS)), jnp.eye(TOKENS)[None, :, None]
    return int((np.asarray(jax.nn.dot_product_attention(zeros, zeros, keys, **options))[0, QUERY, 0] > 0).sum())


seen = {
    "LocalMask((W, 0))": splash((W, 0)),
    "LocalMask((W - 1, 0))": splash((W - 1, 0)),
    "local_window_size=W": dot_product(local_window_size=W),
    "local_window_size=W, is_causal=True": dot_product(local_window_size=W, is_causal=True),
    "local_window_size=(W - 1, 0)": dot_product(local_window_size=(W - 1, 0)),
}
for name, count in seen.items():
    print(f"{name}: {count} keys")
if list(seen.values()) != [W + 1, W, 2 * W + 1, W + 1, W]:
    raise SystemExit("changed: a window of JAX holds another number of keys")
PYTHON
