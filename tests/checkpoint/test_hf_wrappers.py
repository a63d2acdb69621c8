"""Directories that other programs wrap around a model: names with prefixes, adapters, repeated heads, padding rows."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from gemma3_jax.checkpoint import export, hf, hf_config, hf_names, names
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.tokenizer import vocabulary
from tests import texts, toys
from tests.checkpoint.test_hf import MODEL, make_directory

NAMES = list(toys.hf_weights(MODEL))
LAYER = "model.layers.6.mlp.gate_proj.weight"


def assert_read(path):
    """The tensors of a directory are those of the toy."""
    params = jax.tree.map(np.asarray, toys.params(MODEL))
    for slot, tensor in hf.open_source(path).tensors.items():
        np.testing.assert_array_equal(tensor.read(), names.get(params, slot.path)[slot.index])


def below(prefix):
    return {name: prefix + name for name in NAMES}


WRAPPED = {
    "torch.compile": below("_orig_mod."),
    "DDP": below("module."),
    "DDP of torch.compile": below("module._orig_mod."),
    "PEFT, merged": below("base_model.model."),
    "torch.compile of each layer": {name: name.replace(".mlp.", "._orig_mod.mlp.") for name in NAMES},
    "FSDP with checkpointing": {
        name: name.replace("model.layers.", "_fsdp_wrapped_module.model.layers.").replace(
            ".self_attn.", "._fsdp_wrapped_module._checkpoint_wrapped_module.self_attn."
        )
        for name in NAMES
    },
    "Gemma3TextModel": {name: name.removeprefix("model.") for name in NAMES},
    "Gemma3TextModel, DDP": {name: "module." + name.removeprefix("model.") for name in NAMES},
    "the text part of Gemma3Model": {name: name.replace("model.", "language_model.", 1) for name in NAMES},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_what_a_wrapper_puts_before_a_name_is_taken_off(wrapper, tmp_path):
    weights = {WRAPPED[wrapper][name]: x for name, x in toys.hf_weights(MODEL).items()}
    if wrapper in ("torch.compile", "PEFT, merged"):
        prefix = WRAPPED[wrapper][LAYER].removesuffix(LAYER)
        weights[f"{prefix}lm_head.weight"] = weights[f"{prefix}model.embed_tokens.weight"]
    architecture = wrapper if wrapper == "Gemma3TextModel" else "Gemma3ForCausalLM"
    path = make_directory(tmp_path / "hf", weights, architectures=[architecture])
    assert_read(path)


def test_the_image_part_of_a_wrapped_model_is_left_out(tmp_path):
    weights = {f"module.language_model.{name.removeprefix('model.')}": x for name, x in toys.hf_weights(MODEL).items()}
    weights["module.vision_tower.x"] = np.zeros(4, np.float32)
    text = json.loads(hf_config.write(MODEL, "float32"))
    path = make_directory(tmp_path / "hf", weights, architectures=["Gemma3Model"], text_config=text)
    assert hf.open_source(path).notes == (f"{path}: text part only; 1 vision tensors left out",)
    assert_read(path)


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        (f"module.{LAYER}", rf"has tensors {LAYER} and module\.{LAYER}, which are one of the model; remove one"),
        (
            "model.layers.0.self_attn.q_proj.lora_A.weight",
            r"model\.safetensors has tensor .*lora_A\.weight of an adapter that is not merged; merge it with PEFT",
        ),
        ("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight", r"of an adapter that is not merged"),
        ("module.model.layers.0.x", r"has an unknown tensor module\.model\.layers\.0\.x"),
    ],
)
def test_names_that_fit_twice_or_not_at_all_are_refused(extra, problem, tmp_path):
    weights = toys.hf_weights(MODEL) | {extra: np.zeros((40, 24), np.float32)}
    with pytest.raises(ValueError, match=problem):
        hf.open_source(make_directory(tmp_path / "hf", weights))


def test_names_are_unwrapped_from_the_outside_in():
    assert hf_names.unwrapped("module.module._orig_mod.model.norm.weight") == "model.norm.weight"
    assert hf_names.unwrapped("model.my_module.weight") == "model.my_module.weight"


@pytest.mark.parametrize("with_config", [True, False])
def test_a_directory_of_an_adapter_alone_says_what_it_is(with_config, tmp_path):
    path = make_directory(tmp_path / "hf")
    (path / "model.safetensors").rename(path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "google/gemma-3-1b-it"}'
    )
    if not with_config:
        (path / "config.json").unlink()
    with pytest.raises(
        ValueError, match=r"hf holds adapters, and their base 'google/gemma-3-1b-it' is not there; name .* --base=PATH"
    ):
        checkpoint_open.open_checkpoint(path)
    (path / "adapter_config.json").write_text("[")
    with pytest.raises(ValueError, match=r"adapter_config\.json is not JSON"):
        checkpoint_open.open_checkpoint(path)


def test_weights_of_pickles_alone_are_named_and_not_opened(tmp_path):
    path = make_directory(tmp_path / "hf")
    (path / "model.safetensors").rename(path / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(
        ValueError, match=r"has weights in pytorch_model-00001-of-00002\.bin, which is not read, as such"
    ):
        checkpoint_open.open_checkpoint(path)


@pytest.mark.parametrize("other", ["training_args.bin", "optimizer.bin", "pytorch_model.bin.txt"])
@pytest.mark.parametrize("has_shards", [True, False])
def test_files_that_are_no_weights_are_not_called_that(other, has_shards, tmp_path):
    path = make_directory(tmp_path / "hf")
    weights = path / "model.safetensors"
    weights.rename(path / "model-00001-of-00002.safetensors") if has_shards else weights.unlink()
    (path / other).write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.safetensors does not exist; a Hugging Face directory holds"):
        checkpoint_open.open_checkpoint(path)


def test_of_weights_in_two_formats_those_that_are_read_count(tmp_path):
    path = make_directory(tmp_path / "hf")
    (path / "pytorch_model.bin").write_bytes(b"")
    assert_read(path)
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    with pytest.raises(
        ValueError, match=r"model-00001-of-00002\.safetensors .*model\.safetensors\.index\.json, which is missing"
    ):
        checkpoint_open.open_checkpoint(path)


@pytest.mark.parametrize(("table", "head"), [(ml_dtypes.bfloat16, np.float32), (np.float32, ml_dtypes.bfloat16)])
def test_a_head_of_another_dtype_is_tied_if_its_numbers_are_the_tables(table, head, tmp_path):
    weights = toys.hf_weights(MODEL)
    rounded = weights["model.embed_tokens.weight"].astype(ml_dtypes.bfloat16)
    weights |= {"model.embed_tokens.weight": rounded.astype(table), "lm_head.weight": rounded.astype(head)}
    tensors = hf.open_source(make_directory(tmp_path / "hf", weights)).tensors
    np.testing.assert_array_equal(next(iter(tensors.values())).read(), rounded.astype(table))
    weights["lm_head.weight"] = weights["lm_head.weight"].astype(np.float32)
    weights["lm_head.weight"][3, 4] += 2**-10
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        hf.open_source(make_directory(tmp_path / "hf", weights))


# A vocabulary of 90 tokens, and 6 rows of the table behind it, as the published ones have 64.
PADDED = dataclasses.replace(MODEL, vocab_size=90, vocab_padding=6)


def convert(source, target, kind="hf", **options):
    opened = checkpoint_open.open_checkpoint(source)
    made = export.resolve(opened, kind, **options)
    notes = made.check()
    made.write(target, opened.source)
    return notes


def table(path):
    return safetensors.numpy.load_file(path / "model.safetensors")["model.embed_tokens.weight"]


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"quant": "int4", "embedding": "float32"}])
def test_rows_behind_the_vocabulary_are_carried_from_one_directory_to_another(options, tmp_path):
    model = dataclasses.replace(PADDED, embed_dim=32, mlp_dim=64)
    path = make_directory(tmp_path / "in", toys.hf_weights(model), model)
    assert convert(path, tmp_path / "out", **options) == ()
    rows = table(tmp_path / "out")
    np.testing.assert_array_equal(rows, table(path).astype(rows.dtype))
    assert rows[90:].any() and checkpoint_open.open_checkpoint(tmp_path / "out").model == model


def test_that_they_are_not_zero_is_noted(tmp_path):
    path = make_directory(tmp_path / "in", toys.hf_weights(PADDED), PADDED)
    note = f"{path}: the last 6 rows of the table, behind its tokens, are not zero; only Hugging Face directories hold "
    assert [line.startswith(note) for line in checkpoint_open.open_checkpoint(path).notes] == [True]
    convert(path, tmp_path / "out.orbax", "orbax")
    convert(tmp_path / "out.orbax", tmp_path / "out")
    assert not table(tmp_path / "out")[90:].any() and checkpoint_open.open_checkpoint(tmp_path / "out").notes == ()


@pytest.mark.parametrize(
    ("added", "num_tokens"),
    [
        ({"<image_soft_token>": 262_144}, 262_144),
        ({"<new>": 262_144}, 262_208),
        ({"<image_soft_token>": 262_144, "<new>": 262_145}, 262_208),
        ({"<b>": 172}, 262_144),
    ],
)
def test_rows_of_added_tokens_are_rows_of_the_vocabulary(added, num_tokens, tmp_path):
    model = toys.variant("padded_table")
    path = make_directory(tmp_path / "in", toys.hf_weights(model), model)
    (path / "added_tokens.json").write_text(json.dumps(added))
    source = hf.open_source(path)
    assert (source.model.vocab_size, source.model.vocab_size + source.model.vocab_padding) == (num_tokens, 262_208)
    last = max(added, key=added.get)
    note = f"{path}: all 262208 rows of its table are its vocabulary, as '{last}' was added with id {added[last]}"
    assert any(line.startswith(note) for line in source.notes) == (num_tokens == 262_208)
    rows = next(tensor for slot, tensor in source.tensors.items() if slot.spec.layout == "V D").read()
    np.testing.assert_array_equal(rows, toys.hf_weights(model)["model.embed_tokens.weight"][:num_tokens])


def test_an_added_token_of_a_padded_table_goes_into_every_format(tmp_path):
    model = dataclasses.replace(MODEL, vocab_size=texts.TOKENIZER_SIZE, vocab_padding=8, embed_dim=32, head_dim=16)
    path = make_directory(tmp_path / "in", toys.hf_weights(model), model)
    (path / "tokenizer.model").write_bytes(texts.tokenizer_model())
    (path / "added_tokens.json").write_text(json.dumps({"<new>": texts.TOKENIZER_SIZE}))
    convert(path, tmp_path / "out")
    np.testing.assert_array_equal(table(tmp_path / "out"), table(path))
    tokenizer, _ = export.find_tokenizer(None, checkpoint_open.open_checkpoint(tmp_path / "out"))
    assert tokenizer.encode("<new>") == [texts.TOKENIZER_SIZE]
    assert isinstance(tokenizer, vocabulary.Tokenizer)
    convert(path, tmp_path / "out.orbax", "orbax")
    opened = checkpoint_open.open_checkpoint(tmp_path / "out.orbax")
    assert opened.model.vocab_size == texts.TOKENIZER_SIZE + 8


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 33384568\n"


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("tokenizer.json", POINTER, "is the pointer of Git LFS to a file, not the file; fetch it: git lfs pull; it is"),
        ("tokenizer.json", "{", "is not JSON"),
        ("tokenizer.json", '{"added_tokens": 3}', "added_tokens is 3; it must be a list; tokens that it adds"),
        ("added_tokens.json", "[]", "is a list; it must be a JSON object; tokens that it adds are left out"),
    ],
)
def test_weights_are_read_beside_a_damaged_tokenizer(name, text, problem, tmp_path):
    path = make_directory(tmp_path / "in", toys.hf_weights(PADDED), PADDED)
    (path / name).write_text(text)
    source = hf.open_source(path)
    assert source.model == PADDED
    assert source.notes[0].startswith(f"warning: {path / name}") and problem in source.notes[0]
