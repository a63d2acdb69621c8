"""GGUF files: read back by the package gguf they hold the very weights, and what is damaged says where."""

import dataclasses
import errno
import functools

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.checkpoint import encoding, export, gguf_config, gguf_file, gguf_header, hf, load_sharded, names
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.model import config
from gemma3_jax.quant import formats
from tests import disks, texts, toys
from tests.checkpoint import gguf_files

MODEL, write, read = gguf_files.MODEL, gguf_files.write, gguf_files.read
PLANS = [
    encoding.StoragePlan("float32", "float32"),
    encoding.StoragePlan("bfloat16", "float16"),
    encoding.StoragePlan("float16", "bfloat16"),
    encoding.StoragePlan("q4_0", "float16"),
    encoding.StoragePlan("q8_0", "q8_0"),
    encoding.StoragePlan("int4", "float16"),
    encoding.StoragePlan("sfp8", "float32"),
]
Q4_0 = PLANS[3]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A function of a plan: the toy model's file, written once."""

    @functools.cache
    def path_of(plan):
        return write(tmp_path_factory.mktemp("written") / "toy.gguf", plan=plan)

    return path_of


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_tensor_comes_back_as_training_saw_it_bit_for_bit(plan, written):
    tensors, weights = read(written(plan)), toys.hf_weights(MODEL)
    assert len(tensors) == 13 * 8 + 2
    for slot in names.slots(MODEL):
        x, found = weights[names.hf_name(slot)], tensors.pop(names.gguf_name(slot))
        if x.ndim == 1:
            expected = np.float32(1) + x
        else:
            format = plan.table if "V" in slot.spec.layout else plan.matrices
            expected = formats.rounded(format, x, (1,)) if format != "float16" else x.astype(np.float16)
        np.testing.assert_array_equal(found.view(np.uint32), np.asarray(expected, np.float32).view(np.uint32))
    assert not tensors


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_we_read_what_the_package_reads(plan, written):
    tensors, source = read(written(plan)), gguf_file.open_source(written(plan))
    for slot, tensor in source.tensors.items():
        x = encoding.rows(slot, MODEL, tensor.read()).astype(np.float32)
        stored = tensors[names.gguf_name(slot)]
        np.testing.assert_array_equal(x + np.float32(1) if x.ndim == 1 else x, stored)


def test_the_file_has_the_types_that_were_asked_for(written):
    for plan, file_type, matrix, table in (
        (PLANS[0], 0, "F32", "F32"),
        (PLANS[1], 32, "BF16", "F16"),
        (PLANS[2], 1, "F16", "BF16"),
        (PLANS[3], 2, "Q4_0", "F16"),
        (PLANS[4], 7, "Q8_0", "Q8_0"),
        (PLANS[5], 0, "F32", "F16"),
        (PLANS[6], 0, "F32", "F32"),
    ):
        path = written(plan)
        reader = gguf.GGUFReader(path)
        types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        assert (types.pop("token_embd.weight"), types["blk.3.ffn_down.weight"]) == (table, matrix)
        assert {kind for name, kind in types.items() if name.endswith("norm.weight")} == {"F32"}
        assert {kind for name, kind in types.items() if not name.endswith("norm.weight")} == {matrix}
        assert reader.fields["general.file_type"].contents() == file_type
        data = sum(tensor.n_bytes for tensor in reader.tensors)
        assert gguf_file.num_bytes(MODEL, plan) == data <= path.stat().st_size


def test_the_metadata_is_what_llama_cpp_reads(written, tmp_path):
    fields = gguf.GGUFReader(written(Q4_0)).fields
    found = {key: fields[key].contents() for key in fields if not key.startswith(("GGUF.", "tokenizer."))}
    real = {key: found.pop(key) for key in list(found) if isinstance(found[key], float)}
    assert found == {
        "general.architecture": "gemma3",
        "general.type": "model",
        "general.name": "toy",
        "general.file_type": 2,
        "general.quantization_version": 2,
        "gemma3.context_length": 131_072,
        "gemma3.embedding_length": 32,
        "gemma3.block_count": 8,
        "gemma3.feed_forward_length": 64,
        "gemma3.attention.head_count": 4,
        "gemma3.attention.head_count_kv": 2,
        "gemma3.attention.key_length": 16,
        "gemma3.attention.value_length": 16,
        "gemma3.attention.sliding_window": 5,
        "gemma3.attention.sliding_window_pattern": 6,
        "gemma3.rope.scaling.type": "linear",
    }
    assert real == {
        "gemma3.attention.layer_norm_rms_epsilon": pytest.approx(1e-6, rel=1e-7),
        "gemma3.rope.freq_base": 1e6,
        "gemma3.rope.freq_base_swa": 1e4,
        "gemma3.rope.scaling.factor": 8.0,
    }
    fields = gguf.GGUFReader(write(tmp_path / "1.gguf", dataclasses.replace(MODEL, rope_scale=1.0))).fields
    assert not [key for key in fields if "scaling" in key] and fields["gemma3.context_length"].contents() == 32_768


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_what_has_no_type_in_gguf_is_told_in_words(plan, written):
    metadata, _ = gguf_header.read(written(plan))
    said = f"matrices rounded to {plan.matrices}, which GGUF has no type for; stored as float32"
    assert metadata.get("general.description") == (said if plan.matrices in ("int4", "sfp8") else None)


# Query scales that llama.cpp gives to such a model by itself: others do not come back.
KEPT = {"query_scale": 16**-0.5}


@pytest.mark.parametrize(
    "changes",
    [
        KEPT,
        {"num_layers": 62, "embed_dim": 64, "num_heads": 4, "query_scale": 16**-0.5, "head_dim": 8},
        {"num_layers": 13, "num_kv_heads": 1, "norm_epsilon": 1e-3, "rope_scale": 1.0},
        {"num_local_per_global": 2, "rope_base_local": 500.0, "rope_base_global": 9e4, "rope_scale": 0.3},
        {"num_layers": 3, "num_local_per_global": 9},
    ],
)
def test_the_model_comes_back(changes, tmp_path):
    model = dataclasses.replace(MODEL, **changes)
    found = gguf_file.open_source(write(tmp_path / "toy.gguf", model)).model
    expected = dataclasses.replace(model, num_local_per_global=found.num_local_per_global)
    assert found == expected and found.num_local_per_global == changes.get("num_local_per_global", 5)


@pytest.mark.parametrize("size", config.SIZES)
def test_published_sizes_are_llama_cpps_own(size):
    model = config.SIZES[size]
    assert gguf_config.check(model) == () and gguf_config.query_norm_factor(model) == 1


def test_a_scale_that_llama_cpp_does_not_have_goes_into_the_query_norm_rounded_once(tmp_path):
    model = dataclasses.replace(MODEL, query_scale=0.1)
    assert gguf_config.check(model) == (
        "the query norms are multiplied by 0.4, as llama.cpp computes the query scale by itself",
    )
    path = write(tmp_path / "toy.gguf", model)
    tensors, weights = read(path), toys.hf_weights(model)
    w = weights["model.layers.3.self_attn.q_norm.weight"].astype(np.float64)
    np.testing.assert_array_equal(tensors["blk.3.attn_q_norm.weight"], ((1 + w) * (0.1 / 0.25)).astype(np.float32))
    w = weights["model.layers.3.self_attn.k_norm.weight"]
    np.testing.assert_array_equal(tensors["blk.3.attn_k_norm.weight"], 1 + w)
    source = gguf_file.open_source(path)
    assert source.model == dataclasses.replace(model, query_scale=0.25)
    (w,) = [x.read() for slot, x in source.tensors.items() if names.gguf_name(slot) == "blk.6.attn_q_norm.weight"]
    np.testing.assert_array_equal(w, tensors["blk.6.attn_q_norm.weight"] - np.float32(1))


@pytest.mark.parametrize(("kind", "plan"), [("hf", PLANS[0]), ("hf", PLANS[4]), ("orbax", Q4_0)])
def test_by_way_of_another_kind_the_same_bytes_come_out(kind, plan, tmp_path):
    first = write(tmp_path / "first.gguf", plan=plan)
    export.Export(kind, MODEL).write(tmp_path / "between", gguf_file.open_source(first))
    params = checkpoint_open.open_checkpoint(tmp_path / "between").load(sharding.make_mesh())
    assert write(tmp_path / "second.gguf", plan=plan, params=params).read_bytes() == first.read_bytes()


def test_weights_of_bfloat16_are_quantized_as_they_are(tmp_path):
    params = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), toys.params(MODEL))
    found = read(write(tmp_path / "toy.gguf", plan=Q4_0, params=params))["blk.0.ffn_up.weight"]
    x = toys.hf_weights(MODEL)["model.layers.0.mlp.up_proj.weight"].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(found, formats.rounded("q4_0", x, (1,)))


def test_no_padding_row_is_written(tmp_path):
    model = dataclasses.replace(MODEL, vocab_padding=64)
    assert read(write(tmp_path / "toy.gguf", model))["token_embd.weight"].shape == (MODEL.vocab_size, 32)


@pytest.mark.parametrize(
    ("changes", "plan", "problem"),
    [
        (
            {"num_local_per_global": 0},
            PLANS[0],
            r"model\.num_local_per_global is 0; llama\.cpp runs no gemma3 model without local layers",
        ),
        (
            {"embed_dim": 24},
            Q4_0,
            r"blk\.0\.attn_q\.weight \(64, 24\) sums over 24 weights; q4_0 needs a multiple of 32",
        ),
        (
            {"embed_dim": 24},
            encoding.StoragePlan("float32", "q8_0"),
            r"token_embd\.weight \(824, 24\) sums over 24 weights; q8_0",
        ),
        ({"mlp_dim": 40}, Q4_0, r"blk\.0\.ffn_down\.weight \(32, 40\) sums over 40 weights; q4_0 needs"),
        ({"vocab_size": 96}, PLANS[0], r"the tokenizer has 800 pieces, the model's table 96 rows; it is another"),
    ],
)
def test_what_llama_cpp_would_not_run_is_refused(changes, plan, problem):
    with pytest.raises(ValueError, match=problem):
        gguf_file.check(dataclasses.replace(MODEL, **changes), plan, texts.tokenizer())


def test_int4_and_sfp8_take_rows_of_any_length():
    model = dataclasses.replace(MODEL, embed_dim=24, mlp_dim=40)
    for format in ("int4", "sfp8"):
        assert gguf_file.check(model, encoding.StoragePlan(format, "float16"), texts.tokenizer()) == ()


def test_what_older_engines_would_take_for_another_model_is_told():
    model = dataclasses.replace(MODEL, num_local_per_global=2, rope_base_local=500.0)
    assert gguf_config.check(model) == (
        "one layer in 3 is global; older llama.cpp, and Ollama, assume one in 6",
        "local layers have RoPE base 500; older llama.cpp, and Ollama, assume 10000",
    )


@pytest.mark.parametrize(
    ("plan", "value", "problem"),
    [
        (Q4_0, np.nan, r"blk\.6\.ffn_gate\.weight has 1 of 2048 values that are not finite, the first nan at \(2, 1\)"),
        (PLANS[0], np.inf, r"blk\.6\.ffn_gate\.weight has 1 of 2048 values that are not finite"),
        (PLANS[2], 1e5, r"blk\.6\.ffn_gate\.weight has a value of magnitude 100000; float16 stores at most 65504"),
    ],
)
def test_a_weight_that_a_format_cannot_hold_is_named(plan, value, problem, tmp_path):
    params = toys.params(MODEL)
    gate = params["remaining_layers"]["mlp"]["gate"]
    params["remaining_layers"]["mlp"]["gate"] = gate.at[0, 1, 2].set(value)
    with pytest.raises(ValueError, match=problem):
        write(tmp_path / "toy.gguf", plan=plan, params=params)


@pytest.fixture(scope="module")
def content(written):
    return written(Q4_0).read_bytes()


F32, F64 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F64
UP = "blk.2.ffn_up.weight"


@pytest.mark.parametrize(
    ("keys", "tensors", "problem"),
    [
        ({"general.architecture": "llama"}, None, r"general\.architecture is 'llama'; this program reads gemma3"),
        ({"gemma3.block_count": None}, None, r"its metadata lacks gemma3\.block_count"),
        ({"gemma3.rope.freq_base": None}, None, r"its metadata lacks gemma3\.rope\.freq_base"),
        ({"gemma3.rope.scaling.factor": None}, None, r"its metadata lacks gemma3\.rope\.scaling\.factor"),
        ({"gemma3.block_count": "8"}, None, r"gemma3\.block_count is '8'; it must be a whole number >= 1"),
        ({"gemma3.block_count": -8}, None, r"gemma3\.block_count is -8; it must be a whole number >= 1"),
        ({"gemma3.block_count": 9_999}, None, r"its metadata has 9999 layers, but there are 106 tensors"),
        ({"gemma3.block_count": 9}, None, r"lacks tensor blk\.8\."),
        ({"gemma3.attention.key_length": 15}, None, r"value_length is 16; it must equal attention\.key_length"),
        ({"gemma3.attention.sliding_window_pattern": 0}, None, r"sliding_window_pattern is 0; it must be a whole"),
        ({"gemma3.rope.freq_base_swa": -1.0}, None, r"freq_base_swa is -1\.0; it must be a number > 0"),
        ({"gemma3.rope.scaling.type": "yarn"}, None, r"rope\.scaling\.type is 'yarn'; it must be none or linear"),
        ({"gemma3.final_logit_softcapping": 30.0}, None, r"final_logit_softcapping is 30\.0; Gemma 3 has none"),
        ({"gemma3.attention.head_count": 3}, None, r"model\.num_heads is 3, model\.num_kv_heads 2"),
        (None, {UP: None}, rf"wrong\.gguf lacks tensor {UP}; the files of a checkpoint"),
        (None, {"token_embd.weight": None}, r"wrong\.gguf lacks tensor token_embd\.weight"),
        (
            None,
            {"output.weight": (np.zeros((2, 32), np.float32), F32)},
            r"output\.weight has shape \(2, 32\); its metadata asks for \(824, 32\)",
        ),
        (None, {UP: (np.zeros((64, 64), np.float32), F32)}, rf"tensor {UP} has shape \(64, 64\); .* \(64, 32\)"),
        (
            {"gemma3.embedding_length": 256},
            None,
            r"tensor token_embd\.weight has shape \(824, 32\); its metadata asks for \(824, 256\)",
        ),
    ],
)
def test_a_file_of_another_model_is_refused_by_name(keys, tensors, problem, content, tmp_path):
    with pytest.raises(ValueError, match=problem):
        gguf_file.open_source(
            gguf_files.rewrite(tmp_path / "wrong.gguf", content, tmp_path, keys=keys, tensors=tensors)
        )


def test_a_type_that_holds_no_weights_is_named(content, tmp_path):
    path = gguf_files.rewrite(tmp_path / "wrong.gguf", content, tmp_path, tensors={UP: (np.zeros((64, 32)), F64)})
    with pytest.raises(ValueError, match=r"ffn_up\.weight is F64; it must be one of .*F32.*Q4_0"):
        gguf_file.open_source(path)


def test_keys_that_a_file_leaves_out_have_llama_cpps_values(content, tmp_path):
    keys = {
        "gemma3.attention.sliding_window_pattern": None,
        "gemma3.rope.freq_base_swa": None,
        "gemma3.rope.scaling.type": None,
        "gemma3.rope.scaling.factor": None,
    }
    source = gguf_file.open_source(gguf_files.rewrite(tmp_path / "other.gguf", content, tmp_path, keys=keys))
    assert source.model == dataclasses.replace(MODEL, rope_scale=1.0)


def test_a_full_disk_is_told(tmp_path):
    kib = gguf_file.num_bytes(MODEL, PLANS[0]) // 2048
    with disks.small(tmp_path / "disk", kib=kib) as disk:
        with pytest.raises(OSError, match=r"disk/toy\.gguf cannot be written: No space left on device$"):
            write(disk / "toy.gguf")


def test_a_disk_that_is_full_at_the_end_is_told(monkeypatch, tmp_path):
    def full(writer):
        close(writer)
        raise OSError(errno.ENOSPC, "No space left on device")  # of the last bytes, which a buffer held

    close = gguf.GGUFWriter.close
    monkeypatch.setattr(gguf.GGUFWriter, "close", full)
    with pytest.raises(OSError, match=r"toy\.gguf cannot be written: No space left on device$"):
        write(tmp_path / "toy.gguf")


def test_the_table_may_be_in_hugging_faces_padding_on_the_way(tmp_path):
    model = dataclasses.replace(MODEL, vocab_padding=8)
    hf_path = tmp_path / "hf"
    export.Export("hf", model).write(hf_path, toys.source(model))
    params = load_sharded.load(hf.open_source(hf_path), sharding.make_mesh())
    assert (
        write(tmp_path / "a.gguf", model, params=params).read_bytes()
        == write(tmp_path / "b.gguf", dataclasses.replace(model, vocab_padding=0), params=params).read_bytes()
    )
