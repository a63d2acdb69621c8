"""Hugging Face directories: what goes out comes back bit for bit, and what is damaged says where."""

import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from gemma3_jax import sharding
from gemma3_jax.checkpoint import hf, hf_config, load_sharded
from tests import toys

MODEL = toys.TOY
GATE = "model.layers.6.mlp.gate_proj.weight"


def make_directory(path: pathlib.Path, weights=None, model=MODEL, **config_changes) -> pathlib.Path:
    """A Hugging Face directory with these tensors (MODEL's own by default), written by safetensors itself."""
    path.mkdir(exist_ok=True)
    content = json.loads(hf_config.write(model, "float32")) | config_changes
    (path / "config.json").write_text(json.dumps(content))
    safetensors.numpy.save_file(toys.hf_weights(model) if weights is None else weights, path / "model.safetensors")
    return path


def make_sharded(path: pathlib.Path) -> pathlib.Path:
    """The same in two files and an index."""
    make_directory(path)
    weights = safetensors.numpy.load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    weight_map = {name: f"part-{1 + (number > 50)}.safetensors" for number, name in enumerate(sorted(weights))}
    for file in set(weight_map.values()):
        part = {name: x for name, x in weights.items() if weight_map[name] == file}
        safetensors.numpy.save_file(part, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


def load(path, dtype=None, mesh=None):
    return load_sharded.load(hf.open_source(path), mesh or sharding.make_mesh(), dtype)


def export(path, params, model=MODEL):
    path.mkdir()
    hf.write(path, model, params)
    return path


def same_files(one, other):
    names = sorted(file.name for file in one.iterdir())
    assert names == sorted(file.name for file in other.iterdir())
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_import_gives_the_tensors_in_our_layout(tmp_path):
    params = load(make_directory(tmp_path / "hf"))
    weights = toys.hf_weights(MODEL)
    np.testing.assert_array_equal(params["embedder"]["table"], weights["model.embed_tokens.weight"])
    # Layer 6 is the first left-over one; layer 5 the global one of the only period; layer 2 a local one.
    np.testing.assert_array_equal(params["remaining_layers"]["mlp"]["gate"][0], weights[GATE].T)
    query = weights["model.layers.5.self_attn.q_proj.weight"].reshape(4, 8, 24)
    np.testing.assert_array_equal(params["periods"]["global_layer"]["attention"]["query"][0], query.transpose(2, 0, 1))
    output = weights["model.layers.2.self_attn.o_proj.weight"].reshape(24, 4, 8)
    np.testing.assert_array_equal(
        params["periods"]["local_layers"]["attention"]["output"][0, 2], output.transpose(1, 2, 0)
    )
    norm = weights["model.layers.2.post_feedforward_layernorm.weight"]
    np.testing.assert_array_equal(params["periods"]["local_layers"]["post_mlp_norm"]["scale"][0, 2], norm)  # raw, no +1


# One of each tree and of each shape of a tensor; the others differ in numbers of config.json.
TREES = (
    "toy",
    "one_layer",
    "every_layer_global",
    "other_pattern_and_bases",
    "wide_heads",
    "one_key_head",
    "padded_table",
)
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in toys.VARIANTS if name not in TREES]


@pytest.mark.parametrize("name", [*TREES, *OTHERS])
def test_export_import_export_is_bit_identical(name, tmp_path):
    model = toys.variant(name)
    first = export(tmp_path / "first", toys.params(model), model)
    second = export(tmp_path / "second", load(first), model)
    assert same_files(first, second)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, pytest.param(np.float16, marks=pytest.mark.slow)])
def test_every_dtype_comes_back_as_it_went(dtype, tmp_path):
    first = export(tmp_path / "first", jax.tree.map(lambda x: x.astype(dtype), toys.params(MODEL)))
    params = load(first)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(dtype)}
    assert same_files(first, export(tmp_path / "second", params))
    assert json.loads((first / "config.json").read_text())["dtype"] == np.dtype(dtype).name


def test_an_exported_file_holds_what_safetensors_reads_elsewhere(tmp_path):
    path = export(tmp_path / "hf", toys.params(MODEL))
    weights = safetensors.numpy.load_file(path / "model.safetensors")
    expected = toys.hf_weights(MODEL)
    assert set(weights) == set(expected)
    for name, x in expected.items():
        np.testing.assert_array_equal(weights[name], x)


def test_large_models_are_written_in_shards_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "SHARD_BYTES", 30_000)
    first = export(tmp_path / "first", toys.params(MODEL))
    files = sorted(file.name for file in first.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((first / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in toys.hf_weights(MODEL).values())
    assert all((first / file).stat().st_size < 35_000 for file in files)
    assert same_files(first, export(tmp_path / "second", load(first)))


def test_padding_rows_are_trimmed_on_the_way_in_and_zero_on_the_way_out(tmp_path):
    model = toys.variant("padded_table")
    params = load(make_directory(tmp_path / "hf", model=model))
    assert params["embedder"]["table"].shape == (262_144, 8)
    out = safetensors.numpy.load_file(export(tmp_path / "out", params, model) / "model.safetensors")
    table = out["model.embed_tokens.weight"]
    assert table.shape == (262_208, 8) and not table[262_144:].any()
    np.testing.assert_array_equal(table[:262_144], toys.hf_weights(model)["model.embed_tokens.weight"][:262_144])


def test_sharded_files_are_read_through_their_index(tmp_path):
    jax.tree.map(np.testing.assert_array_equal, load(make_sharded(tmp_path / "hf")), toys.params(MODEL))


def test_import_places_straight_into_the_meshs_sharding(tmp_path):
    mesh = sharding.make_mesh(data=2, seq=2, model=2)
    params = load(make_directory(tmp_path / "hf"), mesh=mesh)
    gate = params["periods"]["local_layers"]["mlp"]["gate"]
    assert len(gate.addressable_shards) == 8 and gate.addressable_shards[0].data.size == gate.size // 8
    jax.tree.map(np.testing.assert_array_equal, params, toys.params(MODEL))


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_the_text_part_of_an_image_model_is_read_and_the_rest_named(prefix, tmp_path):
    weights = {name.replace("model.", prefix, 1): x for name, x in toys.hf_weights(MODEL).items()}
    weights["vision_tower.vision_model.post_layernorm.weight"] = np.zeros(4, np.float32)
    weights["multi_modal_projector.mm_soft_emb_norm.weight"] = np.zeros(4, np.float32)
    weights["language_model.lm_head.weight"] = weights[f"{prefix}embed_tokens.weight"]
    text = json.loads(hf_config.write(MODEL, "float32"))
    path = make_directory(tmp_path / "hf", weights, architectures=["Gemma3ForConditionalGeneration"], text_config=text)
    assert hf.open_source(path).notes == (f"{path}: text part only; 2 vision tensors left out",)
    jax.tree.map(np.testing.assert_array_equal, load(path), toys.params(MODEL))


def test_a_repeated_head_is_allowed_beside_the_tied_table(tmp_path):
    weights = toys.hf_weights(MODEL)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    jax.tree.map(np.testing.assert_array_equal, load(make_directory(tmp_path / "hf", weights)), toys.params(MODEL))


def test_an_untied_head_is_refused(tmp_path):
    weights = toys.hf_weights(MODEL)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    weights["lm_head.weight"][95, 23] += 1e-6
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight; the head of"):
        hf.open_source(make_directory(tmp_path / "hf", weights))


def test_a_single_file_goes_before_an_index_as_in_transformers(tmp_path):
    path = make_directory(make_sharded(tmp_path / "hf"))
    (path / "part-1.safetensors").unlink()
    jax.tree.map(np.testing.assert_array_equal, load(path), toys.params(MODEL))


def changed(**tensors):
    weights = toys.hf_weights(MODEL)
    for name, x in tensors.items():
        weights.pop(name, None)
        if x is not None:
            weights[name] = x
    return weights


@pytest.mark.parametrize(
    "tensors, text",
    [
        ({GATE: None}, rf"model\.safetensors lacks tensor {GATE}; "),
        ({GATE: None, "model.norm.weight": None}, rf"lacks tensor {GATE} \(and 1 more\)"),
        ({"model.layers.8.mlp.x": np.zeros(1)}, r"model\.safetensors has an unknown tensor model\.layers\.8\.mlp\.x"),
        ({"vision_tower.x": np.zeros(1)}, r"model\.safetensors has an unknown tensor vision_tower\.x"),
        (
            {GATE: np.zeros((24, 40), np.float32)},
            rf"model\.safetensors: tensor {GATE} has shape \(24, 40\); .* \(40, 24\)",
        ),
        (
            {GATE: np.zeros((40, 24), np.int32)},
            rf"model\.safetensors: tensor {GATE} is I32; it must be one of F32, BF16",
        ),
        ({"lm_head.weight": np.zeros((2, 2), np.float32)}, r"tensor lm_head\.weight has shape \(2, 2\); .* \(96, 24\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tensors, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        hf.open_source(make_directory(tmp_path / "hf", changed(**tensors)))


def test_a_config_that_contradicts_the_tensors_is_named_with_both_shapes(tmp_path):
    path = make_directory(tmp_path / "hf", hidden_size=32)
    with pytest.raises(
        ValueError, match=r"tensor model\.embed_tokens\.weight has shape \(96, 24\); .* asks for \(96, 32\)"
    ):
        hf.open_source(path)
    path = make_directory(tmp_path / "hf", num_hidden_layers=9, layer_types=None)
    with pytest.raises(ValueError, match=r"lacks tensor model\.layers\.8\."):
        hf.open_source(path)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-5], lambda data: data[:100], lambda data: b"hello", lambda data: b""]
)
def test_a_file_that_is_cut_short_or_something_else_is_named(damage, tmp_path):
    path = make_directory(tmp_path / "hf")
    file = path / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"hf/model\.safetensors is cut short, or not a safetensors file: "):
        hf.open_source(path)


def test_an_index_that_names_a_missing_shard_is_refused(tmp_path):
    path = make_sharded(tmp_path / "hf")
    (path / "part-2.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"index\.json names part-2\.safetensors \(tensor model\.\S+\), which does not"
    ):
        hf.open_source(path)


def test_an_index_that_misplaces_a_tensor_is_refused(tmp_path):
    path = make_sharded(tmp_path / "hf")
    shutil.copy(path / "part-2.safetensors", path / "part-1.safetensors")
    with pytest.raises(ValueError, match=r"part-1\.safetensors lacks tensor model\."):
        hf.open_source(path)


@pytest.mark.parametrize(
    "content, text",
    [
        ("[]", r"index\.json is a list; it must be a JSON object"),
        ("[]]", r"index\.json is not JSON \(line 1"),
        ('{"weight_map": ["a"]}', r"index\.json is no safetensors index; it must hold a weight_map"),
        ("{}", r"index\.json is no safetensors index; it must hold a weight_map"),
        ("[" * 100_000, r"index\.json is not JSON that can be read \(it is nested too deeply\)"),
        (
            '{"weight_map": {"a": null}}',
            r"index\.json says tensor a is in None; it must be the name of a file",
        ),
        ('{"weight_map": {"a": "../b"}}', r"index\.json says tensor a is in '\.\./b'; it must be the name of a file"),
    ],
)
def test_an_index_that_is_none_is_refused(content, text, tmp_path):
    path = make_sharded(tmp_path / "hf")
    (path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=text):
        hf.open_source(path)


@pytest.mark.parametrize(
    ("num_layers", "problem"),
    [
        (9_999, r"config\.json: num_hidden_layers is 9999, but there are 106 tensors"),
        (10**9, r"config\.json: model\.num_layers is 1000000000; it must be a whole number >= 1 and <= 10000"),
    ],
)
def test_more_layers_than_tensors_are_refused_before_they_are_listed(num_layers, problem, tmp_path):
    path = make_directory(tmp_path / "hf", num_hidden_layers=num_layers, layer_types=None)
    with pytest.raises(ValueError, match=problem):
        hf.open_source(path)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(missing, tmp_path):
    path = make_directory(tmp_path / "hf")
    (path / missing).unlink()
    with pytest.raises(ValueError, match=rf"hf/{missing} does not exist; a Hugging Face directory holds"):
        hf.open_source(path)
