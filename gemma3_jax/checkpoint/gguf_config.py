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

from gemma3_jax.checkpoint import gguf_header, hf_config, names
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
TABLE = f"{names.GGUF[names.ROOT[0].path]}.weight"

# Ollama's own converter has other names for two keys, leaves out some, and gives its 1B a cap of the logits that the
# model does not have. Ollama corrects this when it loads such a file.
# Source: ollama/ollama convert/convert_gemma3.go and model/models/gemma3/model_text.go.
_OLLAMAS_KEYS = (
    f"{ARCHITECTURE}.mm.tokens_per_image",
    f"{ARCHITECTURE}.rope.global.freq_base",
    f"{ARCHITECTURE}.rope.local.freq_base",
    "tokenizer.ggml.add_padding_token",
    "tokenizer.ggml.add_unknown_token",
)
_OLLAMAS_NAMES = {"rope.freq_base": "rope.global.freq_base", BASE_LOCAL: "rope.local.freq_base"}
_OLLAMAS_DEFAULTS = {"attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e6}
LAYERS_OF_1B = 26
CONTEXT_OF_SCALED, ROPE_SCALE = 131_072, 8.0  # of 4B, 12B and 27B


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


def read(
    path: pathlib.Path, metadata: Mapping[str, Any], infos: Mapping[str, gguf_header.TensorInfo]
) -> tuple[config.Config, tuple[str, ...]]:
    """Returns the model that a file's metadata and tensors describe, with llama.cpp's query scale; and notes.

    Raises: ValueError naming the file and the key that is missing, or that Gemma 3 does not have.
    """
    try:
        _check_kind(metadata)
        return _to_config(_Keys(metadata, infos))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_kind(metadata: Mapping[str, Any]) -> None:
    """Raises: ValueError if the file holds no model of this architecture."""
    kind, architecture = metadata.get("general.type", "model"), metadata.get("general.architecture")
    if architecture == "clip" or kind == "mmproj":
        raise ValueError("it holds the vision part of a model; name the file of the text part")
    if kind == "adapter":
        raise ValueError("it holds a LoRA adapter; merge it into its model, and name the file of that")
    if kind != "model":
        raise ValueError(f"general.type is {kind!r:.40}; this program reads model")
    if architecture != ARCHITECTURE:
        raise ValueError(f"general.architecture is {architecture!r:.40}; this program reads {ARCHITECTURE}")


def _to_config(keys: "_Keys") -> tuple[config.Config, tuple[str, ...]]:
    head_dim = keys.head_dim()
    for key, allowed, words in (
        ("attention.value_length", head_dim, "it must equal attention.key_length"),
        ("rope.dimension_count", head_dim, "it must equal attention.key_length"),
        ("attention.causal", True, "Gemma 3 has True"),
        ("attn_logit_softcapping", 0, "Gemma 3 has none"),
    ):
        if (value := keys.get(key, allowed)) != allowed:
            raise ValueError(f"{ARCHITECTURE}.{key} is {value!r:.40}; {words}")
    notes = _softcapping_notes(keys)
    rope_scale, rope_notes = _rope_scale(keys)
    num_layers = keys.whole("block_count")
    model = config.Config(
        **{field: keys.whole(key) for key, field in _WHOLE.items() if field != "head_dim"},
        **{field: keys.real(key) for key, field in _REAL.items()},
        head_dim=head_dim,
        vocab_size=keys.vocab_size(),
        num_local_per_global=_num_local_per_global(keys, num_layers),
        rope_base_local=keys.real(BASE_LOCAL, ROPE_BASE_LOCAL),
        rope_scale=rope_scale,
        context_length=0 if keys.get("context_length", None) is None else keys.whole("context_length"),
        query_scale=1.0,
    )
    return dataclasses.replace(model, query_scale=query_scale(model)), notes + rope_notes


def _softcapping_notes(keys: "_Keys") -> tuple[str, ...]:
    """Returns notes on a cap of the logits that is no part of the model. Raises: ValueError if it may be one."""
    key = "final_logit_softcapping"
    if not (cap := keys.get(key, 0)) or cap == math.inf:
        return ()
    if keys.is_ollamas and keys.get("block_count", 0) == LAYERS_OF_1B:
        return (f"{ARCHITECTURE}.{key} of {cap!r:.40} is left out, as in Ollama: Gemma 3 was trained without",)
    raise ValueError(f"{ARCHITECTURE}.{key} is {cap!r:.40}; Gemma 3 has none")


def _rope_scale(keys: "_Keys") -> tuple[float, tuple[str, ...]]:
    """Returns the factor of global layers, and notes. llama.cpp scales linearly if a file has a factor and no type."""
    factor = keys.get("rope.scaling.factor", None)
    if (scaling := keys.get("rope.scaling.type", "linear")) not in ("none", "linear"):
        raise ValueError(f"{ARCHITECTURE}.rope.scaling.type is {scaling!r:.40}; it must be none or linear")
    if scaling == "none" or factor == 0:
        return 1.0, ()
    if factor is None and keys.get("rope.scaling.type", None) is None:
        if not keys.is_ollamas or keys.get("context_length", 0) != CONTEXT_OF_SCALED:
            return 1.0, ()
        note = f"RoPE of global layers is scaled by {ROPE_SCALE:g}, which Ollama's files of this context leave out"
        return ROPE_SCALE, (note,)
    return keys.real("rope.scaling.factor"), ()


def _num_local_per_global(keys: "_Keys", num_layers: int) -> int:
    """Returns the layer pattern, which is a period, or a list of layers with true for each local one."""
    value = keys.get(PATTERN, PERIOD)
    if not isinstance(value, gguf_header.MetadataArray):
        return keys.whole(PATTERN, PERIOD) - 1
    if value.length != num_layers:
        raise ValueError(f"{ARCHITECTURE}.{PATTERN} lists {value.length} layers; there are {num_layers}")
    is_local = [bool(layer) for layer in gguf_header.array_values(value)]
    # Without a global layer, any pattern at least this long means the same.
    num_local = is_local.index(False) if False in is_local else max(num_layers, PERIOD - 1)
    for layer, local in enumerate(is_local):
        if local != (layer % (num_local + 1) != num_local):
            raise ValueError(
                f"{ARCHITECTURE}.{PATTERN}[{layer}] is {local}; the list starts with {num_local} local layers and a "
                "global one, and only a list that repeats its start is supported"
            )
    return num_local


class _Keys:
    """Reads metadata below the architecture's name, and what the tensors' shapes say."""

    def __init__(self, metadata: Mapping[str, Any], infos: Mapping[str, gguf_header.TensorInfo]):
        self._metadata, self._infos = metadata, infos
        self.is_ollamas = any(key in metadata for key in _OLLAMAS_KEYS) or any(map(is_vision, infos))

    def get(self, key: str, default: Any) -> Any:
        names = [key, *([_OLLAMAS_NAMES[key]] if key in _OLLAMAS_NAMES else [])]
        values = (self._metadata.get(f"{ARCHITECTURE}.{name}") for name in names)
        return next((value for value in values if value is not None), default)

    def whole(self, key: str, default: int | None = None) -> int:
        """Returns a count, which may also be listed for each layer, if all of these are equal."""
        value = self._required(key, default)
        if isinstance(value, gguf_header.MetadataArray):
            values = set(gguf_header.array_values(value))
            if len(values) != 1:
                raise ValueError(f"{ARCHITECTURE}.{key} differs from layer to layer; Gemma 3 has one for all layers")
            value = values.pop()
            value = value.item() if isinstance(value, np.generic) else value
        if type(value) is not int or not 1 <= value < 2**31:
            raise ValueError(f"{ARCHITECTURE}.{key} is {value!r:.40}; it must be a whole number >= 1 and below 2^31")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self._required(key, default)
        if type(value) is not float or not 0 < value < hf_config.LARGEST:
            raise ValueError(f"{ARCHITECTURE}.{key} is {value!r:.40}; it must be a number > 0")
        return float(str(np.float32(value)))  # 1e-6, not the nearest float32 to it

    def vocab_size(self) -> int:
        """Returns the rows of the table; 1 if there is no table, which is refused later."""
        table = self._infos.get(TABLE)
        return table.shape[0] if table else 1

    def head_dim(self) -> int:
        """Returns the size of a head, which Ollama's files may leave out: there it is the size of a head's norm."""
        norm = self._infos.get("blk.0.attn_q_norm.weight")
        return self.whole("attention.key_length", norm.shape[-1] if norm and self.is_ollamas else None)

    def _required(self, key: str, default: int | float | None) -> Any:
        if default is None and self.is_ollamas:
            default = _OLLAMAS_DEFAULTS.get(key)
        if (value := self.get(key, default)) is None:
            raise ValueError(f"its metadata lacks {ARCHITECTURE}.{key}")
        return value


def is_vision(tensor: str) -> bool:
    """Whether a tensor belongs to the vision tower or its projector, which Ollama stores in the same file."""
    return tensor.startswith(("v.", "mm."))
