"""Against `generate` of Transformers: greedy ids on toys, and the ids that pass its sampling filters."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.interop
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gemma3_jax.cli import program  # noqa: E402
from gemma3_jax.inference import sampling  # noqa: E402
from tests import toys  # noqa: E402
from tests.interop import hf_models  # noqa: E402

NUM_NEW = 24


@pytest.mark.parametrize("name", ["toy", "window_1", "one_key_head", "every_layer_global", "other_pattern_and_bases"])
def test_greedy_ids_are_those_of_transformers_with_windows_wrapped_several_times(name, tmp_path, capsys):
    model = toys.variant(name)
    theirs = hf_models.build(model, toys.hf_weights(model))
    theirs.save_pretrained(tmp_path / "hf")
    prompt = toys.tokens(model, 1, 11)
    expected = theirs.generate(
        torch.from_numpy(prompt).long(),
        do_sample=False,
        max_new_tokens=NUM_NEW,
        eos_token_id=model.vocab_size,  # nothing ends it
        pad_token_id=0,
        use_cache=model.sliding_window > 1,  # of a window of 1 its cache keeps all: x[-0:]
    )
    ids = ",".join(map(str, prompt[0].tolist()))
    flags = [f"--checkpoint={tmp_path / 'hf'}", f"--prompt_ids={ids}", "--temperature=0", "--ignore_eos", "--json"]
    assert program.main(["generate", *flags, f"--max_new_tokens={NUM_NEW}", "--mesh=data=1"]) == 0
    assert json.loads(capsys.readouterr().out)["ids"] == expected[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1.0, "top_k": 64, "top_p": 0.95, "min_p": 0.0},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.6, "min_p": 0.05},
        {"temperature": 1.5, "top_k": 0, "top_p": 0.9, "min_p": 0.1},
    ],
)
def test_what_is_left_to_draw_from_is_what_the_filters_of_transformers_leave_in_their_order(fields):
    from transformers.generation import logits_process

    logits = np.asarray(jax.random.normal(jax.random.key(0), (50, 300))) * 3
    scores = torch.from_numpy(logits / fields["temperature"])
    filters = [logits_process.TopKLogitsWarper(fields["top_k"])] if fields["top_k"] else []
    filters += [logits_process.TopPLogitsWarper(fields["top_p"])]
    filters += [logits_process.MinPLogitsWarper(fields["min_p"])] if fields["min_p"] else []
    for each in filters:
        scores = each(None, scores)
    options = sampling.Sampling(**fields)
    sorted_logits, ids = jax.lax.top_k(jnp.asarray(logits) / options.temperature, options.top_k or logits.shape[1])
    passes = np.asarray(sampling.passes_filters(sorted_logits, options))
    for row in range(len(logits)):
        assert set(np.asarray(ids)[row][passes[row]].tolist()) == set(
            torch.isfinite(scores[row]).nonzero()[:, 0].tolist()
        )
