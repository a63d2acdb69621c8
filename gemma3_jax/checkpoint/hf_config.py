"""Conversion between Config and the config.json of Gemma3ForCausalLM."""

import json
import math
import pathlib
from collections.abc import Mapping

from gemma3_jax.durable import json_file
from gemma3_jax.model import config

# The published tables of 4B, 12B and 27B have 64 rows beyond the vocabulary; the first is the image placeholder.
PADDED_ROWS, PADDING = 262_208, 64
PADDING_KEY = "vocab_padding"  # a key of this program, for other sizes of padded table

# config.json key -> field of Config. The other fields are derived below.
_SAME = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "embed_dim",
    "intermediate_size": "mlp_dim",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "sliding_window": "sliding_window",
}
# Values of Transformers (Gemma3TextConfig) for keys that a file lacks, if they are numbers of the model.
_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "sliding_window_pattern": 6,
}
# Settings that this model does not have: a file with another value describes another model.
_FIXED = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
    "tie_word_embeddings": (True,),
}
_ROPE_KEYS = ("rope_type", "type", "rope_theta", "factor", "partial_rotary_factor")
LARGEST = 1e30  # number allowed in a config.json; float32 ends at 3e38
IMAGE_ARCHITECTURES = ("Gemma3ForConditionalGeneration", "Gemma3Model")  # whose text part is read
ARCHITECTURES = ("Gemma3ForCausalLM", "Gemma3TextModel", *IMAGE_ARCHITECTURES)


def read(path: pathlib.Path) -> tuple[config.Config, str]:
    """Returns the model that a config.json describes, and the name of its architecture.

    Keys that a file lacks have the values that Transformers gives them; without a context length it is derived.
    Raises: ValueError naming the file and the key, if it is not JSON, of another architecture, or has something that
    Gemma 3 does not have.
    """
    content = json_file.read_object(path)
    architecture = content.get("architectures")
    if not (isinstance(architecture, list) and len(architecture) == 1 and architecture[0] in ARCHITECTURES):
        raise ValueError(f"{path}: architectures is {architecture!r}; it must be one of {', '.join(ARCHITECTURES)}")
    try:
        if "text_config" in content:
            _refuse_other_settings(content)
            content = _object(content, "text_config")
        return _to_config(content), architecture[0]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _to_config(text: dict) -> config.Config:
    _refuse_other_settings(text)
    text = {**_DEFAULTS, **text}
    for key in ("vocab_size", *_SAME):
        _whole(text, key)
    rows = text["vocab_size"]
    padding = PADDING if rows == PADDED_ROWS else 0
    if PADDING_KEY in text:
        padding = _whole(text, PADDING_KEY, least=0)
    base_local, base_global, scale = _rope(text)
    has_length = text.get("max_position_embeddings") is not None
    return config.Config(
        **{ours: text[key] for key, ours in _SAME.items()},
        vocab_size=rows - padding,
        vocab_padding=padding,
        query_scale=_positive(text, "query_pre_attn_scalar") ** -0.5,
        rope_base_local=base_local,
        rope_base_global=base_global,
        rope_scale=scale,
        norm_epsilon=_positive(text, "rms_norm_eps"),
        num_local_per_global=_num_local_per_global(text),
        context_length=_whole(text, "max_position_embeddings") if has_length else 0,
    )


def _refuse_other_settings(section: dict) -> None:
    for key, allowed in _FIXED.items():
        if section.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{key} is {section[key]!r}; Gemma 3 has {json.dumps(allowed[0])}")


def _whole(section: dict, key: str, least: int = 1) -> int:
    if type(section[key]) is not int or not least <= section[key] < 2**31:
        raise ValueError(f"{key} is {section[key]!r:.40}; it must be a whole number >= {least} and below 2^31")
    return section[key]


def _positive(section: dict, key: str) -> float:
    value = section.get(key)
    if type(value) not in (int, float) or not 0 < value < LARGEST:
        raise ValueError(f"{key} is {value!r:.40}; it must be a number > 0 and below {LARGEST:g}")
    return float(value)


def _object(section: dict, key: str) -> dict:
    """Returns the object at `key`, or an empty one if it is null or missing; a text_config may not be missing."""
    value = section.get(key)
    if not isinstance(value, dict) and (value is not None or key == "text_config"):
        raise ValueError(f"{key} is {value!r}; it must be an object")
    return value or {}


def _rope(text: dict) -> tuple[float, float, float]:
    """Returns local base, global base and global scale.

    They are in `rope_parameters` (Transformers 5) or in the older separate keys. Where `rope_parameters` is flat, it is
    of the global layers, as `rope_scaling` is.
    """
    parameters = _object(text, "rope_parameters")
    flat = {key: parameters[key] for key in _ROPE_KEYS if parameters.get(key) is not None}
    for key, value in _object(parameters, "full_attention").items():
        if key in flat and flat[key] != value:
            raise ValueError(
                f"rope_parameters has {key} {flat[key]!r:.40}, and in full_attention {value!r:.40}; Transformers takes "
                "the second: remove the first"
            )
    local = {"rope_theta": text.get("rope_local_base_freq", 1e4), **_object(parameters, "sliding_attention")}
    whole = {"rope_theta": text.get("rope_theta", 1e6), **flat, **_object(parameters, "full_attention")}
    whole |= _object(text, "rope_scaling")
    for layers, rope, allowed in (("sliding", local, ("default",)), ("full", whole, ("default", "linear"))):
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in allowed:
            raise ValueError(f"rope type of {layers} attention is {kind!r}; it must be {' or '.join(allowed)}")
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError(f"partial_rotary_factor is {rope['partial_rotary_factor']!r}; Gemma 3 has 1.0")
    is_scaled = whole.get("rope_type", whole.get("type")) == "linear"
    return (
        _positive(local, "rope_theta"),
        _positive(whole, "rope_theta"),
        _positive(whole, "factor") if is_scaled else 1.0,
    )


def _num_local_per_global(text: dict) -> int:
    """Returns the layer pattern, which is in `layer_types` or in the older `sliding_window_pattern`."""
    key = "_sliding_window_pattern" if "_sliding_window_pattern" in text else "sliding_window_pattern"
    types, num_layers = text.get("layer_types"), text["num_hidden_layers"]
    if types is None:
        return _whole(text, key) - 1
    allowed = ("sliding_attention", "full_attention")
    if not isinstance(types, list) or len(types) != num_layers or any(kind not in allowed for kind in types):
        raise ValueError(f"layer_types is {types!r}; it must list {num_layers} layers, each {' or '.join(allowed)}")
    if "full_attention" in types:
        num_local = types.index("full_attention")
    else:  # no global layer: any pattern at least this long means the same
        num_local = max(len(types), _whole(text, key) - 1)
    expected = layer_types(len(types), num_local)
    if types != expected:
        wrong = next(i for i, (got, want) in enumerate(zip(types, expected, strict=True)) if got != want)
        raise ValueError(
            f"layer_types[{wrong}] is {types[wrong]}; the list starts with {num_local} sliding_attention and a "
            "full_attention layer, and only a list that repeats its start is supported"
        )
    return num_local


def layer_types(num_layers: int, num_local_per_global: int) -> list[str]:
    """Returns the layer pattern as config.json spells it."""
    period = num_local_per_global + 1
    return [
        "full_attention" if layer % period == num_local_per_global else "sliding_attention"
        for layer in range(num_layers)
    ]


def context_length(model: config.Config) -> int:
    """Returns the tokens of context that the model was trained for, or a published one of its RoPE scale was."""
    if model.context_length:
        return model.context_length
    return round(16_384 * model.rope_scale) if model.rope_scale != 1 else 32_768


def write(model: config.Config, dtype: str, special_ids: Mapping[str, int | list[int]] | None = None) -> str:
    """Returns the config.json of Gemma3ForCausalLM, with the keys of Transformers 4 and 5.

    `special_ids` has bos_token_id, eos_token_id and pad_token_id, if they are not those of Gemma's own tokenizer.

    Raises: ValueError if Transformers cannot express or load the model.
    """
    scalar = model.query_scale**-2
    if not math.isclose(scalar, round(scalar), rel_tol=1e-9):
        raise ValueError(
            f"model.query_scale is {model.query_scale}, that is {scalar:.6g}^-1/2; config.json can only hold the -1/2 "
            "power of a whole number (query_pre_attn_scalar)"
        )
    if model.embed_dim % model.num_heads:
        raise ValueError(
            f"model.embed_dim is {model.embed_dim} with {model.num_heads} heads; Transformers refuses a hidden_size "
            "that is not a multiple of num_attention_heads"
        )
    scaled = {"rope_type": "linear", "factor": model.rope_scale}
    content = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **{key: getattr(model, ours) for key, ours in _SAME.items()},
        "vocab_size": model.vocab_size + model.vocab_padding,
        PADDING_KEY: model.vocab_padding,
        "query_pre_attn_scalar": round(scalar),
        "rms_norm_eps": model.norm_epsilon,
        "layer_types": layer_types(model.num_layers, model.num_local_per_global),
        "sliding_window_pattern": model.period,
        "rope_parameters": {
            "full_attention": {
                "rope_theta": model.rope_base_global,
                **(scaled if model.rope_scale != 1 else {"rope_type": "default"}),
            },
            "sliding_attention": {"rope_theta": model.rope_base_local, "rope_type": "default"},
        },
        "rope_theta": model.rope_base_global,
        "rope_local_base_freq": model.rope_base_local,
        "rope_scaling": scaled if model.rope_scale != 1 else None,
        **{key: allowed[0] for key, allowed in _FIXED.items()},
        "attention_dropout": 0.0,
        "max_position_embeddings": context_length(model),
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "dtype": dtype,
        "torch_dtype": dtype,
        **(special_ids or {}),
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
