"""GGUF files of other writers: llama-quantize, llama-gguf-split, Ollama, and converters with lists and other types."""

import dataclasses
import math
import struct

import gguf
import jax
import numpy as np
import pytest

from gemma3_jax.checkpoint import encoding, gguf_config, gguf_file, gguf_header, gguf_tensor, names
from tests import toys
from tests.checkpoint import gguf_files

MODEL = gguf_files.MODEL
PATTERN = "gemma3.attention.sliding_window_pattern"
F16, F32 = gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F32


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return gguf_files.write(tmp_path_factory.mktemp("gguf") / "toy.gguf").read_bytes()


@pytest.fixture
def opened(content, tmp_path):
    """A function of keys and tensors: the source in a file that differs in them."""

    def open_changed(keys=None, tensors=None):
        path = gguf_files.rewrite(tmp_path / "other.gguf", content, tmp_path, keys=keys, tensors=tensors)
        return gguf_file.open_source(path)

    return open_changed


def local(num_layers: int, period: int) -> list[bool]:
    return [(layer + 1) % period != 0 for layer in range(num_layers)]


# --- metadata ---


@pytest.mark.parametrize(
    ("pattern", "num_local"),
    [
        (local(8, 6), 5),
        (local(8, 3), 2),
        (list(map(int, local(8, 2))), 1),
        ([False] * 8, 0),
        ([True] * 8, 8),
        ([True] * 7 + [False], 7),
    ],
)
def test_a_pattern_may_list_the_layers(pattern, num_local, opened):
    assert opened({PATTERN: pattern}).model == dataclasses.replace(MODEL, num_local_per_global=num_local)


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        (local(7, 6), rf"{PATTERN} lists 7 layers; there are 8"),
        ([True, False, False] + [True] * 5, r"pattern\[2\] is False; the list starts with 1 local layers and a global"),
        ([False] + [True] * 7, r"pattern\[1\] is True; .* only a list that repeats its start is supported"),
        ("all", rf"{PATTERN} is 'all'; it must be a whole number"),
    ],
)
def test_a_pattern_that_is_no_pattern_is_refused(pattern, problem, opened):
    with pytest.raises(ValueError, match=problem):
        opened({PATTERN: pattern})


def test_the_context_length_is_that_of_the_file(opened):
    assert opened().model.context_length == 131_072
    assert opened({"gemma3.context_length": 8192}).model.context_length == 8192
    assert opened({"gemma3.context_length": None}).model.context_length == 0  # as a published model's
    for wrong in (0, -1, 4096.0, "8192"):
        with pytest.raises(ValueError, match=r"gemma3\.context_length is .*; it must be a whole number >= 1"):
            opened({"gemma3.context_length": wrong})


def test_counts_may_be_listed_for_each_layer_if_they_are_equal(opened):
    keys = {"gemma3.attention.head_count": [4] * 8, "gemma3.feed_forward_length": [64] * 8}
    assert opened(keys).model == MODEL
    with pytest.raises(ValueError, match=r"gemma3\.attention\.head_count_kv differs from layer to layer"):
        opened({"gemma3.attention.head_count_kv": [2, 1] * 4})
    with pytest.raises(ValueError, match=r"gemma3\.attention\.head_count is 4\.0; it must be a whole number"):
        opened({"gemma3.attention.head_count": [4.0] * 8})


@pytest.mark.parametrize("cap", [0.0, 0, False, math.inf])
def test_a_cap_of_the_logits_that_is_off_is_none(cap, opened):
    assert opened({"gemma3.final_logit_softcapping": cap, "gemma3.attn_logit_softcapping": 0.0}).model == MODEL


@pytest.mark.parametrize(
    ("keys", "scale"),
    [
        ({"gemma3.rope.scaling.type": None}, 8.0),  # linear, as llama.cpp reads it
        ({"gemma3.rope.scaling.type": "none"}, 1.0),
        ({"gemma3.rope.scaling.factor": 0.0}, 1.0),
        ({"gemma3.rope.scaling.factor": 4.0}, 4.0),
        ({"gemma3.rope.scaling.type": None, "gemma3.rope.scaling.factor": None}, 1.0),
    ],
)
def test_rope_is_scaled_as_llama_cpp_scales_it(keys, scale, opened):
    assert opened(keys).model.rope_scale == scale


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"general.type": "adapter"}, "it holds a LoRA adapter; merge it into its model"),
        ({"general.type": "mmproj"}, "it holds the vision part of a model; name the file of the text part"),
        ({"general.architecture": "clip"}, "it holds the vision part of a model"),
        ({"general.type": "imatrix"}, r"general\.type is 'imatrix'; this program reads model"),
        ({"gemma3.attention.causal": False}, r"attention\.causal is False; Gemma 3 has True"),
        ({"gemma3.attn_logit_softcapping": 50.0}, r"attn_logit_softcapping is 50\.0; Gemma 3 has none"),
        ({"gemma3.final_logit_softcapping": -1.0}, r"final_logit_softcapping is -1\.0; Gemma 3 has none"),
        ({"gemma3.rope.dimension_count": 8}, r"rope\.dimension_count is 8; it must equal attention\.key_length"),
        ({"gemma3.rope.freq_base": 10**6}, r"rope\.freq_base is 1000000; it must be a number > 0"),
    ],
)
def test_a_file_of_something_else_says_what_it_is(keys, problem, opened):
    with pytest.raises(ValueError, match=problem):
        opened(keys)


# --- Ollama ---


def test_ollamas_names_of_the_rope_bases_are_read(opened):
    keys = {
        "gemma3.rope.freq_base": None,
        "gemma3.rope.freq_base_swa": None,
        "gemma3.rope.global.freq_base": 2e6,
        "gemma3.rope.local.freq_base": 500.0,
        PATTERN: None,
    }
    assert opened(keys).model == dataclasses.replace(MODEL, rope_base_global=2e6, rope_base_local=500.0)


def test_llama_cpps_names_come_before_ollamas(opened):
    keys = {"gemma3.rope.global.freq_base": 2e6, "gemma3.rope.local.freq_base": 500.0}
    assert opened(keys).model == MODEL


VISION = {
    "v.blk.0.attn_q.weight": (np.ones((4, 4), np.float16), F16),
    "v.patch_embedding.weight": (np.ones((4, 3, 2, 2), np.float16), F16),
    "mm.mm_input_projection.weight": (np.ones((32, 4), np.float16), F16),
    "mm.mm_soft_emb_norm.weight": (np.ones(4, np.float32), F32),
}
LEFT_OUT = dict.fromkeys(
    "gemma3.attention.layer_norm_rms_epsilon gemma3.rope.freq_base gemma3.rope.freq_base_swa gemma3.rope.scaling.type "
    "gemma3.rope.scaling.factor gemma3.attention.key_length gemma3.attention.value_length".split()
)


def test_ollamas_file_of_an_image_model_has_the_published_values_for_what_it_leaves_out(opened):
    source = opened({**LEFT_OUT, PATTERN: None, "gemma3.mm.tokens_per_image": 256}, VISION)
    assert source.model == MODEL  # a RoPE scale of 8, too: its context is 131,072
    scale, vision = source.notes
    assert scale == "RoPE of global layers is scaled by 8, which Ollama's files of this context leave out"
    assert vision.endswith("other.gguf: text part only; 4 vision tensors left out")


def test_a_shorter_context_of_ollamas_has_no_scale(opened):
    source = opened({**LEFT_OUT, "gemma3.context_length": 32_768, "gemma3.mm.tokens_per_image": 256})
    assert source.model == dataclasses.replace(MODEL, rope_scale=1.0) and not source.notes


@pytest.mark.parametrize("key", ["attention.layer_norm_rms_epsilon", "rope.freq_base", "attention.key_length"])
def test_what_ollama_leaves_out_is_missing_in_other_files(key, opened):
    with pytest.raises(ValueError, match=rf"its metadata lacks gemma3\.{key}"):
        opened({f"gemma3.{key}": None})


def test_the_cap_that_ollamas_1b_does_not_have_is_left_out(content, tmp_path):
    path = tmp_path / "toy.gguf"
    path.write_bytes(content)
    metadata, infos = gguf_header.read(path)
    metadata |= {"gemma3.block_count": 26, "gemma3.final_logit_softcapping": 30.0}
    model, notes = gguf_config.read(path, {**metadata, "gemma3.rope.global.freq_base": 1e6}, infos)
    assert model == dataclasses.replace(MODEL, num_layers=26)
    assert notes == ("gemma3.final_logit_softcapping of 30.0 is left out, as in Ollama: Gemma 3 was trained without",)
    with pytest.raises(ValueError, match=r"final_logit_softcapping is 30\.0; Gemma 3 has none"):
        gguf_config.read(path, metadata, infos)


# --- the head ---


def table(changes=()) -> np.ndarray:
    x = toys.hf_weights(MODEL)["model.embed_tokens.weight"].astype(np.float16)
    for index, value in changes:
        x[index] = value
    return x


@pytest.mark.parametrize("dtype, kind", [(np.float16, F16), (np.float32, F32)])
def test_a_head_with_the_values_of_the_table_is_the_table(dtype, kind, opened):
    tensors = {"token_embd.weight": (table(), F16), "output.weight": (table().astype(dtype), kind)}
    assert opened(None, tensors).model == MODEL


def test_another_head_is_refused(opened):
    tensors = {"token_embd.weight": (table(), F16), "output.weight": (table([((823, 31), 3.0)]), F16)}
    with pytest.raises(
        ValueError, match=r"tensor output\.weight differs from token_embd\.weight; the head of a Gemma 3"
    ):
        opened(None, tensors)
    tensors["output.weight"] = (table()[:-1], F16)
    with pytest.raises(
        ValueError, match=r"tensor output\.weight has shape \(823, 32\); its metadata asks for \(824, 32\)"
    ):
        opened(None, tensors)


# --- types ---


def half(block: bytes, start: int) -> float:
    return struct.unpack_from("<e", block, start)[0]


def q4_1(block: bytes) -> list[float]:
    nibbles = [byte & 15 for byte in block[4:]] + [byte >> 4 for byte in block[4:]]
    return [half(block, 0) * q + half(block, 2) for q in nibbles]


def q5_0(block: bytes) -> list[float]:
    nibbles = [byte & 15 for byte in block[6:]] + [byte >> 4 for byte in block[6:]]
    high = int.from_bytes(block[2:6], "little")
    return [half(block, 0) * ((q | (high >> i & 1) << 4) - 16) for i, q in enumerate(nibbles)]


def iq4_nl(block: bytes) -> list[float]:
    values = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
    nibbles = [byte & 15 for byte in block[2:]] + [byte >> 4 for byte in block[2:]]
    return [half(block, 0) * values[q] for q in nibbles]


def q4_k(block: bytes) -> list[float]:
    packed, weights, values = block[4:16], block[16:], []
    for j in range(8):  # blocks of 32, each with a scale and a minimum of 6 bits
        if j < 4:
            scale, least = packed[j] & 63, packed[j + 4] & 63
        else:
            scale = packed[j + 4] & 15 | packed[j - 4] >> 6 << 4
            least = packed[j + 4] >> 4 | packed[j] >> 6 << 4
        for byte in weights[32 * (j // 2) :][:32]:
            values.append(half(block, 0) * scale * (byte >> 4 * (j % 2) & 15) - half(block, 2) * least)
    return values


def q6_k(block: bytes) -> list[float]:
    low, high, scales, values = block[:128], block[128:192], struct.unpack_from("<16b", block, 192), []
    for i in range(256):
        part, within = divmod(i, 128)
        quarter, j = divmod(within, 32)
        nibble = low[64 * part + 32 * (quarter % 2) + j] >> 4 * (quarter // 2) & 15
        q = nibble | (high[32 * part + j] >> 2 * quarter & 3) << 4
        values.append(half(block, 208) * scales[i // 16] * (q - 32))
    return values


DECODERS = {"Q4_1": q4_1, "Q5_0": q5_0, "IQ4_NL": iq4_nl, "Q4_K": q4_k, "Q6_K": q6_k}


@pytest.mark.parametrize("kind", DECODERS)
def test_blocks_hold_the_values_of_ggmls_definition(kind, tmp_path):
    data, type_ = gguf_files.blocks(kind, (3, 512))
    (tmp_path / "raw").write_bytes(bytes(32) + data.tobytes())
    x = gguf_tensor.read(gguf_header.TensorInfo(kind, (3, 512), tmp_path / "raw", 32, data.nbytes))
    content, num_bytes = data.tobytes(), gguf.GGML_QUANT_SIZES[type_][1]
    starts = range(0, len(content), num_bytes)
    expected = [value for start in starts for value in DECODERS[kind](content[start : start + num_bytes])]
    assert x.dtype == np.float32 and 0.01 < x.std() < 0.1
    np.testing.assert_allclose(x.ravel(), expected, rtol=1e-6, atol=1e-8)  # products are rounded in another order


def test_every_type_is_decoded_a_few_rows_at_a_time(monkeypatch, tmp_path):
    monkeypatch.setattr(gguf_tensor, "_ROWS", 3)  # else it takes files of 4,096 rows and more
    for kind in gguf_tensor.OTHERS:
        type_ = gguf.GGMLQuantizationType[kind]
        size, num_bytes = gguf.GGML_QUANT_SIZES[type_]
        data = np.random.default_rng(0).integers(0, 60, (8, 2 * num_bytes), np.uint8)  # no scale is infinite
        (tmp_path / kind).write_bytes(data.tobytes())
        info = gguf_header.TensorInfo(kind, (8, 2 * size), tmp_path / kind, 0, data.nbytes)
        np.testing.assert_array_equal(gguf_tensor.read(info), gguf.dequantize(data, type_))
        np.testing.assert_array_equal(gguf_tensor.read(info, 2, 7), gguf.dequantize(data, type_)[2:7])


def test_a_model_in_mixed_types_is_loaded_as_float32(tmp_path):
    model = dataclasses.replace(MODEL, embed_dim=256, mlp_dim=256, num_layers=2)
    content = gguf_files.write(tmp_path / "toy.gguf", model).read_bytes()
    kinds = {
        "token_embd": "Q6_K",
        **{f"blk.{layer}.ffn_down": "Q6_K" for layer in range(2)},
        "blk.1.ffn_up": "Q4_K",
        "blk.1.attn_q": "Q5_0",
        "blk.1.attn_k": "Q4_1",
        "blk.0.attn_v": "IQ4_NL",
    }
    slots = {names.gguf_name(slot): slot for slot in names.slots(model)}
    shapes = {
        f"{name}.weight": names.shape_of(slots[f"{name}.weight"].spec.hf_layout, names.dim_sizes(model))
        for name in kinds
    }
    tensors = {f"{name}.weight": gguf_files.blocks(kind, shapes[f"{name}.weight"]) for name, kind in kinds.items()}
    source = gguf_file.open_source(gguf_files.rewrite(tmp_path / "a.gguf", content, tmp_path, tensors=tensors))
    assert source.notes[0].endswith(
        "a.gguf: weights rounded to IQ4_NL, Q4_1, Q4_K, Q5_0, Q6_K are read as float32, which holds them exactly"
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(source.shapes())} == {np.dtype(np.float32)}
    for name, (data, type_) in tensors.items():
        slot = slots[name]
        x = encoding.rows(slot, model, source.tensors[slot].read())
        np.testing.assert_array_equal(x, gguf.dequantize(data, type_))


def test_a_norm_may_have_any_type(opened):
    ones = gguf.quantize(np.full((1, 32), 1.5, np.float32), gguf.GGMLQuantizationType.Q8_0)[0]
    source = opened(None, {"output_norm.weight": (ones, gguf.GGMLQuantizationType.Q8_0)})
    (tensor,) = [tensor for slot, tensor in source.tensors.items() if slot.path == ("final_norm", "scale")]
    np.testing.assert_allclose(tensor.read(), np.full(32, 0.5), rtol=1e-3)
