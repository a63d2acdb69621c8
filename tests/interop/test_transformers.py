"""Against real Transformers: random toys each with its own traps, our exports loaded there, theirs loaded here."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.interop
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gemma3_jax import sharding  # noqa: E402
from gemma3_jax.checkpoint import hf, load_sharded  # noqa: E402
from gemma3_jax.cli import program  # noqa: E402
from gemma3_jax.model import config, execution, masks, parameters  # noqa: E402
from tests import toys  # noqa: E402
from tests.interop import hf_models  # noqa: E402

NUM_RANDOM = 24


def random_model(seed: int) -> config.Config:
    """A toy drawn so that depth takes every value from 1 to 13 and the other traps come in every combination."""
    rng = np.random.default_rng(seed)
    num_heads, group = (int(rng.choice(some)) for some in ([4, 8], [1, 2, 4]))
    return dataclasses.replace(
        toys.TOY,
        num_layers=1 + seed % 13,
        num_heads=num_heads,
        num_kv_heads=num_heads // group,
        head_dim=int(rng.choice([4, 8, 16])),
        embed_dim=num_heads * int(rng.choice([3, 5, 8])),
        mlp_dim=int(rng.integers(8, 64)),
        sliding_window=int(rng.choice([1, 3, 4, 7, 16, 33, 100])),
        query_scale=int(rng.integers(3, 40)) ** -0.5,
        rope_scale=float(rng.choice([1.0, 8.0])),
        rope_base_local=float(rng.choice([1e4, 500.0])),
        vocab_size=int(rng.integers(50, 300)),
    )


def our_logits(model, params, tokens, attention):
    def logits(params, tokens):
        bound = parameters.bind(model, params)
        return bound.logits(bound(tokens, masks.whole_rows(tokens), execute=execution.Execution(attention=attention)))

    return np.asarray(jax.jit(logits)(params, jnp.asarray(tokens)))


@pytest.mark.parametrize("seed", range(NUM_RANDOM))
def test_logits_of_a_random_toy_are_transformers_own(seed, tmp_path):
    model = random_model(seed)
    theirs = hf_models.build(model, toys.hf_weights(model, seed))
    theirs.save_pretrained(tmp_path / "hf")
    tokens = toys.tokens(model, 2, 40, seed)
    expected = hf_models.logits(theirs, tokens)
    source = hf.open_source(tmp_path / "hf")
    assert source.model == model
    params = load_sharded.load(source, sharding.make_mesh())
    for attention in ("dense", "banded"):
        np.testing.assert_allclose(our_logits(model, params, tokens, attention), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", toys.VARIANTS)
def test_transformers_loads_what_we_export(name, tmp_path):
    model = toys.variant(name)
    (tmp_path / "hf").mkdir()
    hf.write(tmp_path / "hf", model, toys.params(model))
    theirs, report = transformers.Gemma3ForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = toys.tokens(model, 1, 24)
    expected = hf_models.logits(theirs.eval(), tokens)[..., : model.vocab_size]
    np.testing.assert_allclose(our_logits(model, toys.params(model), tokens, "auto"), expected, atol=1e-4, rtol=0)


def test_sharded_exports_load_too(tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "SHARD_BYTES", 20_000)
    (tmp_path / "hf").mkdir()
    hf.write(tmp_path / "hf", toys.TOY, jax.tree.map(lambda x: x.astype(jnp.bfloat16), toys.params(toys.TOY)))
    theirs, report = transformers.Gemma3ForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.dtype == torch.bfloat16


@pytest.mark.parametrize("sharded", [False, True])
def test_evaluate_logprobs_of_their_directory_agrees(sharded, tmp_path, capsys):
    model = random_model(7)
    theirs = hf_models.build(model, toys.hf_weights(model, 7))
    theirs.save_pretrained(tmp_path / "hf", **({"max_shard_size": "20KB"} if sharded else {}))
    assert (tmp_path / "hf" / hf.INDEX).exists() == sharded
    token_lists = [toys.tokens(model, 1, length, length)[0].tolist() for length in (30, 2, 57, 9)]
    (tmp_path / "ids.json").write_text(json.dumps(token_lists))
    flags = [f"--checkpoint={tmp_path / 'hf'}", "--task=logprobs", f"--input={tmp_path / 'ids.json'}", "--json"]
    capsys.readouterr()
    assert program.main(["evaluate", *flags]) == 0
    scores = json.loads(capsys.readouterr().out)["logprobs"]
    for tokens, score in zip(token_lists, scores, strict=True):
        table = torch.log_softmax(torch.from_numpy(hf_models.logits(theirs, np.array([tokens]))), -1)[0]
        expected = [float(table[place, token]) for place, token in enumerate(tokens[1:])]
        np.testing.assert_allclose(score, expected, atol=1e-4, rtol=0)


def test_text_of_an_image_model_is_read_from_their_directory(tmp_path):
    model = dataclasses.replace(toys.TOY, num_layers=7)
    text = hf_models.build(model, toys.hf_weights(model)).config
    vision = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14
    )
    whole = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=90
    )
    theirs = transformers.Gemma3ForConditionalGeneration(whole).eval()
    theirs.save_pretrained(tmp_path / "hf")
    source = hf.open_source(tmp_path / "hf")
    assert source.model == model and "vision tensors left out" in source.notes[0]
    params = load_sharded.load(source, sharding.make_mesh())
    tokens = toys.tokens(dataclasses.replace(model, vocab_size=80), 1, 24)
    np.testing.assert_allclose(
        our_logits(model, params, tokens, "auto"), hf_models.logits(theirs, tokens), atol=1e-4, rtol=0
    )


def test_the_goldens_are_still_what_transformers_says():
    from tests.model.test_golden import GOLDEN

    for name in toys.VARIANTS:
        model = toys.variant(name)
        logits = hf_models.logits(hf_models.build(model, toys.hf_weights(model)), GOLDEN[f"{name}/tokens"])
        np.testing.assert_allclose(logits[..., GOLDEN[f"{name}/columns"]], GOLDEN[f"{name}/logits"], atol=toys.ROUNDING)
