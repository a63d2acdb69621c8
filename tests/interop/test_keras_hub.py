"""A second reader of our exported directory: KerasHub on the JAX backend."""

import dataclasses
import os

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.interop
os.environ["KERAS_BACKEND"] = "jax"
keras_hub = pytest.importorskip("keras_hub")

from gemma3_jax.checkpoint import hf  # noqa: E402
from gemma3_jax.model import masks, parameters  # noqa: E402
from tests import toys  # noqa: E402

# KerasHub knows one layer pattern, one pair of RoPE bases, and (0.32.0) one query scale: its decoder block passes
# query_head_dim_normalize=True on whatever it was given, so 27B's 1 / sqrt(D / N) is lost there, not here.
CHANGES = {
    "8 layers, window below the row": {"query_scale": 8**-0.5},
    "13 layers, one key head": {"num_layers": 13, "num_kv_heads": 1, "query_scale": 8**-0.5},
    "no rope scale": {"rope_scale": 1.0, "query_scale": 8**-0.5, "num_layers": 6},
}


@pytest.mark.parametrize("name", CHANGES)
def test_keras_hub_reads_our_directory_and_agrees(name, tmp_path):
    model = dataclasses.replace(toys.TOY, **CHANGES[name])
    (tmp_path / "hf").mkdir()
    params = toys.params(model)
    hf.write(tmp_path / "hf", model, params)
    with jax.numpy_rank_promotion("allow"):
        backbone = keras_hub.models.Gemma3Backbone.from_preset(str(tmp_path / "hf"), dtype="float32")
        tokens = toys.tokens(model, 2, 24)
        hidden = backbone.predict({"token_ids": tokens, "padding_mask": np.ones_like(tokens)}, verbose=0)
    logits = hidden @ np.asarray(params["embedder"]["table"]).T
    bound = parameters.bind(model, params)
    ours = bound.logits(bound(jax.numpy.asarray(tokens), masks.whole_rows(jax.numpy.asarray(tokens))))
    np.testing.assert_allclose(logits, ours, atol=1e-4, rtol=0)
