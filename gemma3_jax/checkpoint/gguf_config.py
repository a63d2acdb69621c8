"""Conversion between Config and the metadata of a GGUF file of architecture gemma3, as llama.cpp reads it.

Source: ggml-org/llama.cpp src/models/gemma3.cpp and gguf-py/gguf/constants.py.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np

from gemma3_jax.checkpoint import hf_config
from gemma3_jax.model import config

ARCHITECTURE = "gemma3"
# Key below the architecture's name -> field of Config.
_WHOLE = {
    "block_count": "num_layers",
    "embedding_length": "embed_dim",
    "feed_forward_length": "mlp_dim",
    "attention.head_count": "num_heads",
    "attention.head_count_kv": "num_kv_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
}
_REAL = {"attention.layer_norm_rms_epsilon": "norm_epsilon", "rope.freq_base": "rope_base_global"}
PATTERN, BASE_LOCAL = "attention.sliding_window_pattern", "rope.freq_base_swa"
# llama.cpp's values for keys that a file lacks. Its older versions, and Ollama, use them for every file.
PERIOD, ROPE_BASE_LOCAL = 6, 1e4
LAYERS_OF_27B = 62  # by which llama.cpp recognizes 27B, and its query scale


def query_scale(model: config.Config) -> float:
    """Returns the factor that llama.cpp multiplies the queries of such a model by."""
    if model.num_layers == LAYERS_OF_27B:
        return max(1, model.embed_dim // model.num_heads) ** -0.5
    return model.head_dim**-0.5


def query_norm_factor(model: config.Config) -> float:
    """Returns the factor to store the query norm with, so that llama.cpp's query scale amounts to the model's.

    RoPE does not change lengths.
    """
    factor = model.query_scale / query_scale(model)
    return 1.0 if math.isclose(factor, 1.0, rel_tol=1e-9) else factor


def check(model: config.Config) -> tuple[str, ...]:
    """Returns notes for the user on the model in llama.cpp; there are none on a published size.

    Raises: ValueError if llama.cpp has no such model.
    """
    if model.period == 1:
        raise ValueError("model.num_local_per_global is 0; llama.cpp runs no gemma3 model without local layers")
    notes = []
    periods = [layer % PERIOD == PERIOD - 1 for layer in range(model.num_layers)]
    if periods != [model.is_global(layer) for layer in range(model.num_layers)]:
        notes.append(f"one layer in {model.period} is global; older llama.cpp, and Ollama, assume one in {PERIOD}")
    if model.rope_base_local != ROPE_BASE_LOCAL:
        notes.append(
            f"local layers have RoPE base {model.rope_base_local:g}; older llama.cpp, and Ollama, assume 10000"
        )
    if (factor := query_norm_factor(model)) != 1:
        notes.append(f"the query norms are multiplied by {factor:.6g}, as llama.cpp computes the query scale by itself")
    return tuple(notes)


def write(model: config.Config, writer: gguf.GGUFWriter) -> None:
    """Adds the keys of a model that `check` has passed."""
    writer.add_context_length(hf_config.context_length(model))
    for key, field in _WHOLE.items():
        writer.add_uint32(f"{ARCHITECTURE}.{key}", getattr(model, field))
    writer.add_value_length(model.head_dim)
    for key, field in _REAL.items():
        writer.add_float32(f"{ARCHITECTURE}.{key}", getattr(model, field))
    writer.add_uint32(f"{ARCHITECTURE}.{PATTERN}", model.period)
    writer.add_float32(f"{ARCHITECTURE}.{BASE_LOCAL}", model.rope_base_local)
    if model.rope_scale != 1:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(model.rope_scale)


def read(path: pathlib.Path, metadata: Mapping[str, Any], vocab_size: int) -> config.Config:
    """Returns the model that a file's metadata describes, with llama.cpp's query scale.

    Raises: ValueError naming the file and the key that is missing, or that Gemma 3 does not have.
    """
    try:
        return _to_config(_Keys(metadata), vocab_size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _to_config(keys: "_Keys", vocab_size: int) -> config.Config:
    if (kind := keys.metadata.get("general.architecture")) != ARCHITECTURE:
        raise ValueError(f"general.architecture is {kind!r:.40}; this program reads {ARCHITECTURE}")
    if keys.metadata.get(f"{ARCHITECTURE}.final_logit_softcapping", 0) != 0:
        raise ValueError(f"{ARCHITECTURE}.final_logit_softcapping is set; Gemma 3 has none")
    scaling = keys.metadata.get(f"{ARCHITECTURE}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise ValueError(f"{ARCHITECTURE}.rope.scaling.type is {scaling!r:.40}; it must be none or linear")
    columns = {field: keys.whole(key) for key, field in _WHOLE.items()}
    columns |= {field: keys.real(key) for key, field in _REAL.items()}
    if (value_dim := keys.whole("attention.value_length")) != columns["head_dim"]:
        raise ValueError(f"{ARCHITECTURE}.attention.value_length is {value_dim}; it must equal attention.key_length")
    model = config.Config(
        **columns,
        vocab_size=vocab_size,
        num_local_per_global=keys.whole(PATTERN, PERIOD) - 1,
        rope_base_local=keys.real(BASE_LOCAL, ROPE_BASE_LOCAL),
        rope_scale=keys.real("rope.scaling.factor") if scaling == "linear" else 1.0,
        query_scale=1.0,
    )
    return dataclasses.replace(model, query_scale=query_scale(model))


class _Keys:
    """Reads metadata below the architecture's name."""

    def __init__(self, metadata: Mapping[str, Any]):
        self.metadata = metadata

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._value(key, default)
        if type(value) is not int or not 1 <= value < 2**31:
            raise ValueError(f"{ARCHITECTURE}.{key} is {value!r:.40}; it must be a whole number >= 1 and below 2^31")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if type(value) is not float or not 0 < value < hf_config.LARGEST:
            raise ValueError(f"{ARCHITECTURE}.{key} is {value!r:.40}; it must be a number > 0")
        return float(str(np.float32(value)))  # 1e-6, not the nearest float32 to it

    def _value(self, key: str, default: int | float | None) -> Any:
        value = self.metadata.get(f"{ARCHITECTURE}.{key}", default)
        if value is None:
            raise ValueError(f"its metadata lacks {ARCHITECTURE}.{key}")
        return value
