"""Between our Config and the config.json of Gemma3ForCausalLM."""

import json
import math
import pathlib

from gemma3_jax.model import config

# The published 4B, 12B and 27B tables: 64 rows beyond the vocabulary, the first of them the image placeholder.
PADDED_ROWS, PADDING = 262_208, 64
PADDING_KEY = "vocab_padding"  # ours, in a config.json we wrote: other sizes of padded table

# config.json key -> our field. The rest of a Config is derived below.
_SAME = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "width",
    "intermediate_size": "mlp_width",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_key_heads",
    "head_dim": "head_width",
    "sliding_window": "window",
}
# What Transformers takes for a key that a file leaves out (Gemma3TextConfig), where that is a number of the model.
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
# Settings this model does not have: a file that asks for another value describes another model.
_FIXED = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
    "tie_word_embeddings": (True,),
}
ARCHITECTURES = ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")


def read(path: pathlib.Path) -> tuple[config.Config, str]:
    """The model a config.json describes, and its architecture's name.

    Keys that a file leaves out have the value that Transformers gives them.
    Raises: ValueError naming the file and the key, if it is not JSON, of another architecture, or asks for something
    that Gemma 3 does not have.
    """
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; it must hold one JSON object")
    architectures = content.get("architectures") or ["none"]
    if architectures[0] not in ARCHITECTURES:
        raise ValueError(
            f"{path}: architecture is {', '.join(map(str, architectures))}; it must be {' or '.join(ARCHITECTURES)}"
        )
    text = content.get("text_config", content)
    try:
        return _to_config(text), architectures[0]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _to_config(text: dict) -> config.Config:
    for key, allowed in _FIXED.items():
        if text.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{key} is {text[key]!r}; Gemma 3 has {json.dumps(allowed[0])}")
    text = {**_DEFAULTS, **text}
    text["sliding_window_pattern"] = text.get("_sliding_window_pattern", text["sliding_window_pattern"])
    for key in ("vocab_size", *_SAME):
        if type(text[key]) is not int or text[key] < 1:
            raise ValueError(f"{key} is {text[key]!r}; it must be a whole number >= 1")
    for key in ("query_pre_attn_scalar", "rms_norm_eps"):
        _positive(text[key], key)
    rows = text["vocab_size"]
    padding = text.get(PADDING_KEY, PADDING if rows == PADDED_ROWS else 0)
    base_local, base_global, scale = _rope(text)
    return config.Config(
        **{ours: text[key] for key, ours in _SAME.items()},
        vocab_size=rows - padding,
        vocab_padding=padding,
        query_scale=text["query_pre_attn_scalar"] ** -0.5,
        rope_base_local=base_local,
        rope_base_global=base_global,
        rope_scale=scale,
        norm_epsilon=text["rms_norm_eps"],
        num_local_per_global=_num_local_per_global(text),
    )


def _positive(value: object, name: str) -> float:
    if type(value) not in (int, float) or not value > 0:
        raise ValueError(f"{name} is {value!r}; it must be a number > 0")
    return float(value)


def _rope(text: dict) -> tuple[float, float, float]:
    """Local base, global base, global scale: from `rope_parameters` (Transformers 5) or the older separate keys."""
    parameters = text.get("rope_parameters") or {}
    local = {"rope_theta": text.get("rope_local_base_freq", 1e4), **(parameters.get("sliding_attention") or {})}
    whole = {"rope_theta": text.get("rope_theta", 1e6), **(parameters.get("full_attention") or {})}
    whole |= text.get("rope_scaling") or {}
    for layers, rope in (("sliding_attention", local), ("full_attention", whole)):
        kind = rope.get("rope_type", rope.get("type", "default"))
        allowed = ("default", "linear") if layers == "full_attention" else ("default",)
        if kind not in allowed:
            raise ValueError(f"rope type of {layers} is {kind!r}; it must be {' or '.join(allowed)}")
    scale = whole.get("factor", 1.0) if whole.get("rope_type", whole.get("type")) == "linear" else 1.0
    return (
        _positive(local["rope_theta"], "rope_theta of sliding_attention"),
        _positive(whole["rope_theta"], "rope_theta of full_attention"),
        _positive(scale, "rope scaling factor"),
    )


def _num_local_per_global(text: dict) -> int:
    """The layer pattern: from `layer_types`, or the older `sliding_window_pattern`."""
    types = text.get("layer_types")
    if types is None:
        return text["sliding_window_pattern"] - 1
    allowed = {"sliding_attention", "full_attention"}
    if len(types) != text["num_hidden_layers"] or set(types) - allowed:
        raise ValueError(
            f"layer_types lists {len(types)} layers of {', '.join(sorted(set(types)))}; "
            f"it must list {text['num_hidden_layers']}, each {' or '.join(sorted(allowed))}"
        )
    num_local = (
        types.index("full_attention")
        if "full_attention" in types
        else max(len(types), text["sliding_window_pattern"] - 1)
    )
    expected = layer_types(len(types), num_local)
    if types != expected:
        wrong = next(i for i, (got, want) in enumerate(zip(types, expected, strict=True)) if got != want)
        raise ValueError(
            f"layer_types[{wrong}] is {types[wrong]}; after {num_local} local layers the first global one came, and "
            "that pattern must repeat"
        )
    return num_local


def layer_types(num_layers: int, num_local_per_global: int) -> list[str]:
    """The pattern as config.json spells it."""
    period = num_local_per_global + 1
    return [
        "full_attention" if layer % period == num_local_per_global else "sliding_attention"
        for layer in range(num_layers)
    ]


def write(model: config.Config, dtype: str) -> str:
    """config.json of Gemma3ForCausalLM for `model`, in the keys of Transformers 5 and those of 4.

    Raises: ValueError if Transformers could not express or load the model.
    """
    scalar = model.query_scale**-2
    if not math.isclose(scalar, round(scalar), rel_tol=1e-9):
        raise ValueError(
            f"model.query_scale is {model.query_scale}, that is {scalar:.6g}^-1/2; config.json can only hold the -1/2 "
            "power of a whole number (query_pre_attn_scalar)"
        )
    if model.width % model.num_heads:
        raise ValueError(
            f"model.width is {model.width} with {model.num_heads} heads; Transformers refuses a hidden_size that is "
            "not a multiple of num_attention_heads"
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
        # As published: the context each rope scale was trained for.
        "max_position_embeddings": round(16_384 * model.rope_scale) if model.rope_scale != 1 else 32_768,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
