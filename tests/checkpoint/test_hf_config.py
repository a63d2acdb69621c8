import dataclasses
import json

import pytest

from gemma3_jax.checkpoint import hf_config
from gemma3_jax.model import config
from tests import toys


def written(model=toys.TOY, **changes):
    return json.loads(hf_config.write(model, "float32")) | changes


def read(tmp_path, content):
    path = tmp_path / "config.json"
    content = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return hf_config.read(path)[0]


@pytest.mark.parametrize("name", toys.VARIANTS)
def test_reading_what_was_written_gives_the_model_back(name, tmp_path):
    assert read(tmp_path, written(toys.variant(name))) == toys.variant(name)


@pytest.mark.parametrize("size", config.SIZES)
def test_published_sizes_go_out_and_come_back(size, tmp_path):
    content = written(config.SIZES[size])
    assert read(tmp_path, content) == config.SIZES[size]
    assert content["query_pre_attn_scalar"] == (168 if size == "27b" else 256)
    assert content["vocab_size"] == (262_144 if size in ("270m", "1b") else 262_208)
    assert content["max_position_embeddings"] == (32_768 if size in ("270m", "1b") else 131_072)


@pytest.mark.parametrize("length", [1, 8192, 131_072, 1_000_000])
def test_the_context_length_of_a_file_is_that_of_the_model_and_is_written_again(length, tmp_path):
    model = read(tmp_path, written(max_position_embeddings=length))
    assert hf_config.context_length(model) == model.context_length == length
    assert written(model)["max_position_embeddings"] == length
    assert model == toys.TOY and hash(model) == hash(toys.TOY)  # no computation reads it


def test_without_a_context_length_it_is_that_of_the_rope_scale(tmp_path):
    content = written()
    del content["max_position_embeddings"]
    assert hf_config.context_length(read(tmp_path, content)) == 131_072
    assert hf_config.context_length(dataclasses.replace(toys.TOY, rope_scale=1.0)) == 32_768


@pytest.mark.parametrize("absent", [True, False])
def test_a_context_length_that_is_null_is_none(absent, tmp_path):
    content = written(max_position_embeddings=None)
    if absent:
        del content["max_position_embeddings"]
    assert read(tmp_path, content).context_length == 0  # derived


def test_the_files_transformers_4_wrote_are_read_too(tmp_path):
    """The text part of the published 4B config.json: few keys, old RoPE keys, everything else at its default."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    content = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    assert read(tmp_path, content) == config.SIZES["4b"]


def test_old_rope_keys_and_pattern_are_read_when_there_are_no_new_ones(tmp_path):
    content = written(rope_theta=5e5, rope_local_base_freq=2e3, sliding_window_pattern=3)
    del content["rope_parameters"], content["layer_types"]
    model = read(tmp_path, content)
    assert (model.rope_base_global, model.rope_base_local, model.rope_scale) == (5e5, 2e3, 8.0)
    assert model.num_local_per_global == 2


FLAT = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (FLAT, (5e5, 4.0)),
        ({"type": "linear", "factor": 4}, (9e4, 4.0)),
        ({"rope_type": "default", "rope_theta": 5e5}, (5e5, 1.0)),
        ({**FLAT, "full_attention": {"rope_theta": 5e5}}, (5e5, 4.0)),
        ({"rope_type": None, "sliding_attention": {"rope_theta": 2e3}}, (9e4, 1.0)),
    ],
)
def test_flat_rope_parameters_are_those_of_the_global_layers(parameters, expected, tmp_path):
    content = written(rope_parameters=parameters, rope_scaling=None, rope_theta=9e4, rope_local_base_freq=2e3)
    model = read(tmp_path, content)
    assert (model.rope_base_global, model.rope_scale, model.rope_base_local) == (*expected, 2e3)


def test_a_table_of_262208_rows_has_64_of_padding_unless_the_file_says_otherwise(tmp_path):
    content = written(vocab_size=262_208)
    del content["vocab_padding"]
    model = read(tmp_path, content)
    assert (model.vocab_size, model.vocab_padding) == (262_144, 64)


@pytest.mark.parametrize(
    "content, text",
    [
        ("{", r"config\.json is not JSON \(line 1, column 2: "),
        ("[]", r"config\.json is a list; it must be a JSON object"),
        (
            written(architectures=["LlamaForCausalLM"]),
            r"config\.json: architectures is \['LlamaForCausalLM'\]; it must be one of Gemma3",
        ),
        (written(architectures=None), r"architectures is None; it must be one of Gemma3"),
        (written(architectures=3), r"architectures is 3; it must be one of Gemma3"),
        (written(text_config=3), r"config\.json: text_config is 3; it must be an object"),
        (written(text_config=None), r"config\.json: text_config is None; it must be an object"),
        (written(text_config={}, tie_word_embeddings=False), r"tie_word_embeddings is False; Gemma 3 has true"),
        ("[" * 100_000, r"config\.json is not JSON that can be read \(it is nested too deeply\)"),
        ('{"a":' * 100_000, r"config\.json is not JSON that can be read \(it is nested too deeply\)"),
        ("1" * 5000, r"config\.json is not JSON that can be read \(Exceeds the limit"),
        ("3", r"config\.json is 3; it must be a JSON object"),
        ("\ud800".encode("utf-8", "surrogatepass"), r"config\.json is not UTF-8 \(.* in line 1\)"),
        (written(vocab_padding="x"), r"vocab_padding is 'x'; it must be a whole number >= 0"),
        (written(vocab_padding=96), r"model\.vocab_size is 0; it must be a whole number >= 1"),
        (written(num_hidden_layers=True), r"num_hidden_layers is True; it must be a whole number >= 1"),
        (written(layer_types=5), r"layer_types is 5; it must list 8 layers, each sliding_attention or full_attention"),
        (written(layer_types=[[]] * 8), r"layer_types is \[\[\], .*; it must list 8 layers"),
        (written(layer_types=None, sliding_window_pattern="6"), r"sliding_window_pattern is '6'; it must be a whole"),
        (written(rope_scaling=5), r"rope_scaling is 5; it must be an object"),
        (written(rope_parameters="x"), r"rope_parameters is 'x'; it must be an object"),
        (written(rope_parameters={"full_attention": []}), r"full_attention is \[\]; it must be an object"),
        (written(sliding_window=10**30), r"sliding_window is 10{30}; it must be a whole number >= 1 and below 2\^31"),
        (written(max_position_embeddings=0), r"max_position_embeddings is 0; it must be a whole number >= 1"),
        (written(max_position_embeddings="8k"), r"max_position_embeddings is '8k'; it must be a whole number >= 1"),
        (written(max_position_embeddings=8192.0), r"max_position_embeddings is 8192\.0; it must be a whole number"),
        (written(rope_theta=10**400, rope_parameters=None), r"rope_theta is 10{39}; it must be a number > 0"),
        (written(rope_scaling={"rope_type": "linear"}, rope_parameters=None), r"factor is None; it must be a number"),
        (written(rope_scaling={"partial_rotary_factor": 0.5}), r"partial_rotary_factor is 0\.5; Gemma 3 has 1\.0"),
        (
            written(rope_parameters={"factor": 8.0, "full_attention": {"rope_type": "linear", "factor": 4.0}}),
            r"rope_parameters has factor 8\.0, and in full_attention 4\.0; Transformers takes the second: remove the f",
        ),
        (written(rope_parameters={"rope_type": "yarn"}, rope_scaling=None), r"rope type of full attention is 'yarn'"),
        (
            written(rope_parameters={"full_attention": {"rope_theta": float("nan")}}),
            r"rope_theta is nan; it must be a number > 0",
        ),
        (written(rms_norm_eps=float("inf")), r"rms_norm_eps is inf; it must be a number > 0"),
        (written(attn_logit_softcapping=50.0), r"attn_logit_softcapping is 50\.0; Gemma 3 has null"),
        (written(final_logit_softcapping=30.0), r"final_logit_softcapping is 30\.0; Gemma 3 has null"),
        (written(attention_bias=True), r"attention_bias is True; Gemma 3 has false"),
        (written(hidden_activation="silu"), r"hidden_activation is 'silu'; Gemma 3 has \"gelu_pytorch_tanh\""),
        (written(use_bidirectional_attention=True), r"use_bidirectional_attention is True; Gemma 3 has false"),
        (written(tie_word_embeddings=False), r"tie_word_embeddings is False; Gemma 3 has true"),
        (written(hidden_size="24"), r"hidden_size is '24'; it must be a whole number >= 1"),
        (written(sliding_window=None), r"sliding_window is None; it must be a whole number >= 1"),
        (written(num_key_value_heads=3), r"num_heads is 4, model\.num_kv_heads 3"),
        (written(query_pre_attn_scalar=0), r"query_pre_attn_scalar is 0; it must be a number > 0"),
        (written(rms_norm_eps="small"), r"rms_norm_eps is 'small'; it must be a number > 0"),
        (
            written(rope_scaling={"rope_type": "yarn", "factor": 8}),
            r"rope type of full attention is 'yarn'; it must be def",
        ),
        (
            written(rope_scaling={"rope_type": "linear", "factor": -1}),
            r"factor is -1; it must be a number > 0",
        ),
        (
            written(rope_parameters={"sliding_attention": {"rope_type": "linear", "factor": 2.0}}),
            r"rope type of sliding attention is 'linear'; it must be default",
        ),
        (
            written(layer_types=["sliding_attention"]),
            r"layer_types is \['sliding_attention'\]; it must list 8",
        ),
        (
            written(layer_types=["full_attention"] + ["sliding_attention"] * 7),
            r"layer_types\[1\] is sliding_attention; the list starts with 0 sliding_attention",
        ),
    ],
)
def test_a_config_of_another_model_is_refused_with_the_key_and_its_value(content, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        read(tmp_path, content)


def test_a_query_scale_that_config_json_cannot_hold_is_refused():
    with pytest.raises(
        ValueError, match=r"model\.query_scale is 0\.3, that is 11\.1111\^-1/2; config\.json can only hold"
    ):
        hf_config.write(dataclasses.replace(toys.TOY, query_scale=0.3), "float32")


def test_a_width_that_transformers_refuses_is_refused_before_it():
    with pytest.raises(ValueError, match=r"model\.embed_dim is 26 with 4 heads; Transformers refuses a hidden_size"):
        hf_config.write(dataclasses.replace(toys.TOY, embed_dim=26), "float32")
