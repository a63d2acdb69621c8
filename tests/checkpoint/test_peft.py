"""Directories of PEFT: what goes out comes back, names follow the base, and what is damaged says where."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from gemma3_jax import sharding
from gemma3_jax.checkpoint import adapter, hf, names, peft
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.cli import program
from gemma3_jax.model import lora
from tests import toys
from tests.checkpoint.test_hf import make_directory
from tests.model.test_adapters import merged, noisy

MODEL = toys.TOY
LORA = lora.Lora(rank=4, alpha=6.0)
GATE = "base_model.model.model.layers.6.mlp.gate_proj"


def opened(factors, settings=LORA, base=""):
    """Factors in memory as adapters of a checkpoint."""

    def read(slot):
        pair = names.get(factors, slot.path)
        return np.asarray(pair["down"][slot.index]), np.asarray(pair["up"][slot.index])

    def has(slot):
        node = factors
        for key in slot.path:
            node = node.get(key, {})
        return bool(node)

    slots = {slot: lambda slot=slot: read(slot) for slot in names.slots(MODEL) if has(slot)}
    return adapter.Adapter(settings, slots, base)


@pytest.fixture
def base(tmp_path):
    return make_directory(tmp_path / "base")


def write(path, base, settings=LORA, architecture="Gemma3ForCausalLM"):
    path.mkdir()
    peft.write(path, MODEL, opened(noisy(settings, MODEL), settings), architecture=architecture, base=str(base))
    return path


def tensors(path):
    return safetensors.numpy.load_file(path / peft.WEIGHTS)


def change(path, edit=lambda stored: None, **config):
    stored = tensors(path)
    edit(stored)
    safetensors.numpy.save_file(stored, path / peft.WEIGHTS)
    content = json.loads((path / peft.CONFIG).read_text()) | config
    (path / peft.CONFIG).write_text(json.dumps(content))


def test_a_directory_has_the_names_shapes_and_fields_of_peft(tmp_path, base):
    stored = tensors(write(tmp_path / "peft", base))
    assert len(stored) == 8 * 7 * 2
    factors = noisy(LORA, MODEL)
    gate = factors["remaining_layers"]["mlp"]["gate"]
    np.testing.assert_array_equal(stored[f"{GATE}.lora_A.weight"], gate["down"][0].T)
    np.testing.assert_array_equal(stored[f"{GATE}.lora_B.weight"], gate["up"][0].T)
    output = factors["periods"]["local_layers"]["attention"]["output"]
    name = "base_model.model.model.layers.2.self_attn.o_proj"
    assert stored[f"{name}.lora_A.weight"].shape == (4, 32) and stored[f"{name}.lora_B.weight"].shape == (24, 4)
    np.testing.assert_array_equal(stored[f"{name}.lora_A.weight"], output["down"][0, 2].reshape(32, 4).T)
    content = json.loads((tmp_path / "peft" / peft.CONFIG).read_text())
    assert (content["r"], content["lora_alpha"], content["use_rslora"]) == (4, 6, False)
    assert content["base_model_name_or_path"] == str(base) and content["task_type"] == "CAUSAL_LM"
    assert content["target_modules"] == [f"{kind}_proj" for kind in ("down", "gate", "k", "o", "q", "up", "v")]


@pytest.mark.parametrize(
    "architecture, first",
    [
        ("Gemma3ForConditionalGeneration", "base_model.model.model.language_model.layers.0."),
        ("Gemma3TextModel", "base_model.model.layers.0."),
        ("", "base_model.model.model.layers.0."),
    ],
)
def test_names_follow_the_architecture_of_the_base_and_are_read_again(tmp_path, base, architecture, first):
    path = write(tmp_path / "peft", base, architecture=architecture)
    assert all(name.startswith(first.removesuffix("0.")) for name in tensors(path))
    assert any(name.startswith(first) for name in tensors(path))
    again, source = peft.open_adapter(path, MODEL), opened(noisy(LORA, MODEL))
    assert again.factors.keys() == source.factors.keys() and again.lora.scale == 1.5
    for slot, read in source.factors.items():
        jax.tree.map(np.testing.assert_array_equal, again.factors[slot](), read())
    if "Conditional" in architecture:
        pattern = json.loads((path / peft.CONFIG).read_text())["target_modules"]
        assert pattern.startswith(r".*language_model\..*\.(down_proj|")


def test_some_matrices_of_some_layers_are_named_one_by_one(tmp_path, base):
    settings = dataclasses.replace(LORA, targets=("global_layer/attention/query",), rslora=True)
    path = write(tmp_path / "peft", base, settings)
    content = json.loads((path / peft.CONFIG).read_text())
    assert content["target_modules"] == ["layers.5.self_attn.q_proj"] and content["use_rslora"]
    assert peft.open_adapter(path, MODEL).lora.scale == 3.0 and len(tensors(path)) == 2


def test_in_a_model_with_images_some_matrices_are_those_of_its_text_part(tmp_path, base):
    settings = dataclasses.replace(LORA, targets=("global_layer/attention/query",))
    path = write(tmp_path / "peft", base, settings, "Gemma3ForConditionalGeneration")
    content = json.loads((path / peft.CONFIG).read_text())
    assert content["target_modules"] == ["language_model.layers.5.self_attn.q_proj"]


def test_adapters_whose_base_is_themselves_are_refused(tmp_path, base):
    path, other = write(tmp_path / "peft", tmp_path / "other"), write(tmp_path / "other", tmp_path / "peft")
    with pytest.raises(ValueError, match=f"{other} is the base of {path}, and holds adapters itself; merge those"):
        checkpoint_open.open_checkpoint(path)


def test_it_opens_as_its_base_with_the_factors_merged(tmp_path, base):
    path = write(tmp_path / "peft", base)
    checkpoint = checkpoint_open.open_checkpoint(path)
    assert checkpoint.kind == "peft" and checkpoint.model == MODEL and checkpoint.base.path == base
    params = checkpoint.load(sharding.make_mesh())
    expected = merged(LORA, noisy(LORA, MODEL), toys.params(MODEL), MODEL)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, expected)


def test_a_base_that_is_elsewhere_is_named(tmp_path, base):
    path = write(tmp_path / "peft", "google/gemma-3-1b-it")
    with pytest.raises(ValueError, match="their base 'google/gemma-3-1b-it' is not there; name .* --base=PATH"):
        checkpoint_open.open_checkpoint(path)
    assert checkpoint_open.open_checkpoint(path, base=base).base.path == base
    with pytest.raises(ValueError, match="--base is .*, which is for adapters; .* holds a whole model"):
        checkpoint_open.open_checkpoint(base, base=base)


def rename(old, new):
    def edit(stored):
        stored[new] = stored.pop(old)

    return edit


@pytest.mark.parametrize(
    "edit, config, message",
    [
        (
            lambda stored: None,
            {"r": 5},
            r"shape .4, .*; its base, at the rank of adapter_config.json, asks for .5, ",
        ),
        (lambda stored: None, {"r": 0}, "r is 0; it must be a number over 0"),
        (lambda stored: None, {"lora_alpha": "x"}, "lora_alpha is 'x'; it must be a number over 0"),
        (lambda stored: None, {"use_dora": True}, "use_dora is True; this program reads False alone"),
        (lambda stored: None, {"rank_pattern": {"q_proj": 2}}, "rank_pattern is .*; this program reads {} alone"),
        (lambda stored: None, {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'; this"),
        (lambda stored: None, {"alora_invocation_tokens": [3]}, r"alora_invocation_tokens is \[3\]; this program"),
        (lambda stored: None, {"peft_type": "IA3"}, "peft_type is 'IA3'; this program reads 'LORA' alone"),
        (lambda stored: stored.pop(f"{GATE}.lora_B.weight"), {}, "lora_A.weight without the other factor of that"),
        (
            rename(f"{GATE}.lora_A.weight", "base_model.model.model.layers.9.mlp.gate_proj.lora_A.weight"),
            {},
            "layers.9.mlp.gate_proj.lora_A.weight, which is of no matrix of attention or MLP of its base",
        ),
        (
            rename(f"{GATE}.lora_A.weight", f"{GATE}.lora_magnitude_vector"),
            {},
            "lora_magnitude_vector; it reads those that end in lora_A.weight or lora_B.weight",
        ),
        (lambda stored: stored.clear(), {}, "has no factors"),
    ],
)
def test_what_is_damaged_or_not_known_is_refused_by_name(tmp_path, base, edit, config, message):
    path = write(tmp_path / "peft", base)
    change(path, edit, **config)
    with pytest.raises(ValueError, match=message):
        checkpoint_open.open_checkpoint(path)


def test_a_base_of_another_shape_is_refused(tmp_path, base):
    path = write(tmp_path / "peft", base)
    other = dataclasses.replace(MODEL, mlp_dim=48)
    wide = make_directory(tmp_path / "wide", toys.hf_weights(other), other)
    with pytest.raises(ValueError, match=r"has shape .4, 40.; its base, at the rank of .*, asks for .4, 48"):
        checkpoint_open.open_checkpoint(path, base=wide)


def convert(capsys, *flags):
    status = program.main(["convert", *flags])
    return status, capsys.readouterr().err


def test_convert_says_what_becomes_of_adapters(tmp_path, base, capsys):
    path = write(tmp_path / "peft", base)
    for source, flags, message in (
        (path, ("--format=hf",), "holds adapters; --merge writes their base with them in it as hf, and --format=peft"),
        (base, ("--format=peft",), "holds a whole model; --format=peft is for adapters"),
        (base, ("--format=hf", "--merge"), "holds a whole model; --merge is for adapters"),
        (path, ("--format=peft", "--merge"), "--merge is for the other kinds; --format=peft writes no base"),
    ):
        status, err = convert(capsys, f"--source={source}", f"--target={tmp_path / 'out'}", *flags)
        assert status == 1 and message in err and not (tmp_path / "out").exists()


def test_a_scale_that_llama_cpp_does_not_know_is_told(tmp_path, base, capsys):
    path = write(tmp_path / "peft", base, dataclasses.replace(LORA, rslora=True))  # 6 / sqrt(4), which is 12 / 4
    status, err = convert(capsys, f"--source={path}", f"--target={tmp_path / 'out'}", "--format=peft")
    assert status == 0 and "reads no rslora; set use_rslora to false and lora_alpha to 12 for it" in err


def test_merging_into_files_is_merging_in_memory(tmp_path, base, capsys):
    path = write(tmp_path / "peft", base)
    expected = checkpoint_open.open_checkpoint(path).load(sharding.make_mesh())
    for format in ("hf", "orbax"):
        target = tmp_path / format
        status, err = convert(capsys, f"--source={path}", f"--target={target}", f"--format={format}", "--merge")
        assert status == 0, err
        params = checkpoint_open.open_checkpoint(target).load(sharding.make_mesh())
        jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_peft_to_peft_is_the_same_file(tmp_path, base, capsys):
    path = write(tmp_path / "peft", base)
    status, err = convert(capsys, f"--source={path}", f"--target={tmp_path / 'out'}", "--format=peft")
    assert status == 0, err
    for name in (peft.CONFIG, peft.WEIGHTS):
        assert (tmp_path / "out" / name).read_bytes() == (path / name).read_bytes()
    assert hf.is_hf(tmp_path / "out") and peft.is_peft(tmp_path / "out")
