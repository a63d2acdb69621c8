#!/usr/bin/env bash
# optax takes the label -100, Hugging Face's "ignore", for the vocabulary's 100th last id.
#
# Natural guess: softmax_cross_entropy_with_integer_labels ignores or refuses labels that are no ids, as torch's
#   cross_entropy ignores -100.
# Version: optax 0.2.8 on jax 0.10.2 (CPU)
# Seen: negative labels count from the end, as numpy's indices do; labels beyond the end give nan. Over 262,144 ids:
#   label -100: 12.9536, label 262044: 12.9536, label 262144: nan
#   so prompt tokens that a collator masks teach the model to write id 262,044
# Here: batches have labels that are always ids, and a loss mask beside them (gemma3_jax/data/stream.py). With optax:
#   clip the labels, and multiply the losses by labels >= 0.
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

VOCAB = 262_144
logits = jax.random.normal(jax.random.key(0), (VOCAB,))
labels = [-100, VOCAB - 100, VOCAB]
losses = [float(optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(label))) for label in labels]
print(", ".join(f"label {label}: {loss:.4f}" for label, loss in zip(labels, losses)))
if losses[0] != losses[1]:
    raise SystemExit("changed: a label of -100 is no longer the 100th last id")
PYTHON
