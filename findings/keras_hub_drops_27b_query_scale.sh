#!/usr/bin/env bash
# KerasHub drops the query scale of Gemma 3 27B: it scales every size by head_dim.
#
# Natural guess: Gemma3Backbone(query_head_dim_normalize=False), which the converter sets for 27B, scales queries by
#   (hidden_dim / num_query_heads)^-1/2 instead of head_dim^-1/2.
# Version: keras-hub 0.32.0, keras 3.15.1 on jax 0.10.2 (CPU)
# Seen: two toys, heads of 4 and hidden_dim / heads of 8, with the same weights and different settings:
#   config says False, the blocks' attention says True; outputs differ by 0.0
# Here: tests/interop/test_keras_hub.py compares toys with the other scale. 27B's queries come out 1.15 times too large:
#   use another engine for it, or multiply its query norms by 0.873.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 keras==3.15.1 kagglehub==1.0.2 sentencepiece==0.2.3 tokenizers==0.23.3 regex==2026.11.15
# Without its dependency tensorflow-text, which brings TensorFlow and is not needed on JAX.
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps keras-hub==0.32.0
cd "$work"
JAX_PLATFORMS=cpu XLA_FLAGS='' KERAS_HOME="$work" venv/bin/python -I - <<'PYTHON'
import os

os.environ["KERAS_BACKEND"] = "jax"
import keras_hub
import numpy as np


def backbone(is_by_head):
    return keras_hub.models.Gemma3Backbone(
        vocabulary_size=32,
        image_size=16,
        num_layers=6,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=16,
        intermediate_dim=32,
        head_dim=4,
        query_head_dim_normalize=is_by_head,
        use_query_key_norm=True,
        use_sliding_window_attention=True,
        sliding_window_size=8,
        dtype="float32",
    )


by_head, by_width = backbone(True), backbone(False)
random = np.random.default_rng(0)
weights = [random.normal(size=weight.shape) * 0.5 for weight in by_head.get_weights()]
row = {"token_ids": np.arange(12)[None], "padding_mask": np.ones((1, 12))}
outputs = []
for model in (by_head, by_width):
    model.set_weights(weights)
    outputs.append(np.asarray(model(row)))
setting = by_width.get_config()["query_head_dim_normalize"]
attention = next(layer.attention for layer in by_width.layers if hasattr(layer, "attention"))
difference = float(np.abs(outputs[0] - outputs[1]).max())
print(
    f"config says {setting}, the blocks' attention says {attention.query_head_dim_normalize}; "
    f"outputs differ by {difference}"
)
if setting is not False or difference:
    raise SystemExit("changed: query_head_dim_normalize=False changes the outputs")
PYTHON
