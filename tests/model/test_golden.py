"""Our logits against those of Transformers, kept in golden/hf_logits.npz (golden/make_hf_goldens.py made it)."""

import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from gemma3_jax import sharding
from gemma3_jax.checkpoint import hf, load_sharded
from gemma3_jax.model import execution, masks, parameters
from tests import toys

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "hf_logits.npz")


@pytest.mark.parametrize("path", ["banded", pytest.param("dense", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", toys.VARIANTS)
def test_logits_equal_those_of_transformers(name, path, tmp_path):
    (tmp_path / "config.json").write_text(str(GOLDEN[f"{name}/config"]))
    safetensors.numpy.save_file(toys.hf_weights(toys.variant(name)), tmp_path / "model.safetensors")
    source = hf.open_source(tmp_path)
    assert source.model == toys.variant(name)
    params = load_sharded.load(source, sharding.make_mesh())

    def logits(params, tokens):
        bound = parameters.bind(source.model, params)
        hidden = bound(tokens, masks.whole_rows(tokens), execute=execution.Execution(attention=path))
        return bound.logits(hidden)[..., GOLDEN[f"{name}/columns"]]

    got = jax.jit(logits)(params, GOLDEN[f"{name}/tokens"])
    assert np.abs(GOLDEN[f"{name}/logits"]).max() > 1
    np.testing.assert_allclose(got, GOLDEN[f"{name}/logits"], atol=1e-4, rtol=0)  # the bound, float32
