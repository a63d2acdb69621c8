"""Against real PEFT: it loads the adapters that we export, on Transformers' own base, and gives our logits."""

import warnings

import numpy as np
import pytest

pytestmark = pytest.mark.interop
torch = pytest.importorskip("torch")
peft_library = pytest.importorskip("peft")

from gemma3_jax.checkpoint import peft  # noqa: E402
from tests import toys  # noqa: E402
from tests.checkpoint.test_peft import LORA, MODEL, opened  # noqa: E402
from tests.interop import hf_models  # noqa: E402
from tests.interop.test_transformers import our_logits  # noqa: E402
from tests.model.test_adapters import merged, noisy  # noqa: E402


def test_peft_loads_what_we_export(tmp_path):
    base, factors = hf_models.build(MODEL, toys.hf_weights(MODEL)), noisy(LORA, MODEL)
    tokens = toys.tokens(MODEL, 1, 24)
    plain = hf_models.logits(base, tokens)
    peft.write(tmp_path, MODEL, opened(factors), architecture="Gemma3ForCausalLM", base="toy")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        theirs = hf_models.logits(peft_library.PeftModel.from_pretrained(base, tmp_path).eval(), tokens)
    ours = our_logits(MODEL, merged(LORA, factors, toys.params(MODEL), MODEL), tokens, "auto")
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    assert np.abs(theirs - plain).max() > 0.1
