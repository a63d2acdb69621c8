"""Directories of PEFT: adapter_config.json, and the factors in adapter_model.safetensors.

Names are those of the base's modules, base_model.model.model.layers.0.mlp.up_proj.lora_A.weight. Programs that load a
directory take an unknown name for nothing, so the prefix has to be that of the base's architecture.
Source: huggingface/peft, LoraConfig and save_pretrained.
"""

import functools
import json
import pathlib
import re
from collections.abc import Mapping

import numpy as np
from jax.typing import DTypeLike

from gemma3_jax.checkpoint import adapter, hf, hf_names, names, tensor_file
from gemma3_jax.durable import json_file
from gemma3_jax.model import config, lora

CONFIG, WEIGHTS = hf.ADAPTER, "adapter_model.safetensors"
WRAPPER = "base_model.model."
# The prefix of "layers.0..." by the architecture of the base; that of our own exports for a base of another kind.
PREFIXES = {
    "": "model.",
    "Gemma3ForCausalLM": "model.",
    "Gemma3TextModel": "",
    "Gemma3ForConditionalGeneration": "model.language_model.",
    "Gemma3Model": "language_model.",
}
ASKING = f"its base, at the rank of {CONFIG},"
LETTERS = {"down": "A", "up": "B"}
_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<letter>[AB])(?:\.default)?\.weight")
# Settings that would make other numbers of the factors: the values that leave them alone.
_PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "use_qalora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "layer_replication": ([], None),
    "trainable_token_indices": ([], {}, None),
    "target_parameters": ([], None),
    # With the others, such as pissa, the factors belong to a base that PEFT has changed.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    **dict.fromkeys(
        ("alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "use_bdlora"), (None, False)
    ),
}


def is_peft(path: pathlib.Path) -> bool:
    """Whether `path` looks like a directory of PEFT, complete or not, without a whole model in it."""
    return (path / CONFIG).exists() and not any((path / name).exists() for name in (hf.WEIGHTS, hf.INDEX))


def base_of(path: pathlib.Path) -> str:
    """Returns what a directory calls its base: a path, or a name on a hub; empty if it does not say."""
    base = json_file.read_object(path / CONFIG).get("base_model_name_or_path")
    return base if isinstance(base, str) else ""


def open_adapter(path: pathlib.Path, model: config.Config) -> adapter.Adapter:
    """Returns the adapter in a directory, after checking every name, shape and dtype against its base's model.

    Raises: ValueError naming the file and the key or tensor.
    """
    content = json_file.read_object(path / CONFIG)
    for key, allowed in _PLAIN.items():
        if content.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{path / CONFIG}: {key} is {content[key]!r:.60}; this program reads {allowed[0]!r} alone")
    rank, alpha = content.get("r"), content.get("lora_alpha")
    for key, value in (("r", rank), ("lora_alpha", alpha)):
        if type(value) not in ((int,) if key == "r" else (int, float)) or not 0 < value < 1e6:
            raise ValueError(f"{path / CONFIG}: {key} is {value!r:.40}; it must be a number over 0")
    slots, pairs = {names.hf_name(slot).removesuffix(".weight"): slot for slot in names.slots(model)}, {}
    file = hf.existing(path / WEIGHTS)
    for name, (module, factor) in _modules(file).items():
        slot = slots.get(module)
        if slot is None or " " not in slot.spec.layout or slot.layer is None:
            raise ValueError(f"{file} has tensor {name}, which is of no matrix of attention or MLP of its base")
        sizes = names.dim_sizes(model) | {"C": rank}
        hf.check_tensor(file, name, names.shape_of(adapter.layouts(slot.spec)[factor][1], sizes), ASKING)
        pairs.setdefault(slot, {})[factor] = name
    for pair in pairs.values():
        if len(pair) < 2:
            raise ValueError(f"{file} has tensor {min(pair.values())} without the other factor of that matrix")
    kinds = tuple(sorted({f"{slot.spec.path}$" for slot in pairs}))
    if not kinds:
        raise ValueError(f"{file} has no factors; a directory of PEFT has tensors that end in lora_A.weight")
    settings = lora.Lora(rank=rank, alpha=float(alpha), rslora=bool(content.get("use_rslora")), targets=kinds)
    factors = {slot: functools.partial(_read, file, pair, slot, model, rank) for slot, pair in pairs.items()}
    return adapter.Adapter(settings, factors, base_of(path))


def _modules(file: pathlib.Path) -> dict[str, tuple[str, str]]:
    """Returns for each tensor the module of a text model that it belongs to, and which factor it is."""
    with hf.opened(file) as handle:
        stored = list(handle.keys())
    found, factors = {}, {letter: factor for factor, letter in LETTERS.items()}
    for name in stored:
        if not (match := _NAME.fullmatch(name)):
            raise ValueError(f"{file} has tensor {name}; it reads those that end in lora_A.weight or lora_B.weight")
        found[name] = hf_names.unwrapped(match["module"]), factors[match["letter"]]
    prefix = hf_names.text_prefix([module for module, _ in found.values()])
    return {name: (f"model.{module.removeprefix(prefix)}", factor) for name, (module, factor) in found.items()}


def _read(
    file: pathlib.Path, pair: Mapping[str, str], slot: names.Slot, model: config.Config, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    sizes = names.dim_sizes(model) | {"C": rank}
    with hf.opened(file) as handle:
        down, up = (
            names.relayout(handle.get_tensor(pair[factor]).astype(np.float32), theirs, ours, sizes)
            for factor, (ours, theirs) in adapter.layouts(slot.spec).items()
        )
    return down, up


def num_bytes(model: config.Config, source: adapter.Adapter, dtype: DTypeLike | None = None) -> int:
    """Returns the bytes of the factors in `dtype`, or as float32."""
    forms = _forms(model, source, dtype, "").values()
    return sum(int(np.prod(shape)) * tensor_file.SAFETENSORS_BYTES[name] for name, shape in forms)


def write(
    directory: pathlib.Path,
    model: config.Config,
    source: adapter.Adapter,
    *,
    architecture: str,
    base: str,
    dtype: DTypeLike | None = None,
) -> None:
    """Writes both files into an existing directory: for a base of this architecture, which is called `base`.

    Factors are float32, or in `dtype`. Equal factors give equal bytes. Raises: OSError if the disk refuses.
    """
    content = _config(model, source, architecture, base)
    tensor_file.write_small(directory / CONFIG, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    prefix, sizes = PREFIXES[architecture], names.dim_sizes(model) | {"C": source.lora.rank}
    forms = _forms(model, source, dtype, prefix)
    file = tensor_file.create_safetensors(
        directory / WEIGHTS, tensor_file.library_order(forms), metadata={"format": "pt"}
    )
    for slot, read in source.factors.items():
        for (factor, (ours, theirs)), x in zip(adapter.layouts(slot.spec).items(), read(), strict=True):
            rows = names.relayout(np.asarray(x), ours, theirs, sizes)
            file.write(_name(slot, factor, prefix), rows.astype(dtype or np.float32))


def _forms(
    model: config.Config, source: adapter.Adapter, dtype: DTypeLike | None, prefix: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Returns the dtype, as safetensors calls it, and the shape of every tensor."""
    stored = hf.dtype_name(dtype or np.float32)
    sizes = names.dim_sizes(model) | {"C": source.lora.rank}
    return {
        _name(slot, factor, prefix): (stored, names.shape_of(theirs, sizes))
        for slot in source.factors
        for factor, (_, theirs) in adapter.layouts(slot.spec).items()
    }


def _name(slot: names.Slot, factor: str, prefix: str) -> str:
    return f"{WRAPPER}{names.hf_name(slot, prefix).removesuffix('.weight')}.lora_{LETTERS[factor]}.weight"


def _config(model: config.Config, source: adapter.Adapter, architecture: str, base: str) -> dict:
    alpha = source.lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": source.lora.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,  # vLLM and PEFT declare a whole number
        "use_rslora": source.lora.rslora,
        "target_modules": _target_modules(model, source, PREFIXES[architecture]),
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def _target_modules(model: config.Config, source: adapter.Adapter, prefix: str) -> list[str] | str:
    """Returns the names of the modules with factors: of a kind of matrix, if all layers have them, or one by one.

    In a model with images they are kept to its text part: its image part has modules of the same names.
    """

    def module(slot: names.Slot) -> str:
        return slot.spec.hf.removesuffix(".weight").rpartition(".")[2]

    kinds = {module(slot): slot.spec.path for slot in source.factors}
    num_whole = sum(slot.spec.path in kinds.values() for slot in names.slots(model))
    if num_whole > len(source.factors):
        part = "language_model." if "language_model" in prefix else ""
        return sorted(part + names.hf_name(slot, "").removesuffix(".weight") for slot in source.factors)
    if "language_model" in prefix:
        return rf".*language_model\..*\.({'|'.join(sorted(kinds))})"
    return sorted(kinds)
