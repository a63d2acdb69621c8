"""Low-rank adapters in a checkpoint: the factors of matrices, layer by layer, and the model they are added to."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np

from gemma3_jax.checkpoint import encoding, names, tensor_source
from gemma3_jax.model import lora


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The factors, none of which is read yet. `factors` reads `down` and `up` of a slot, float32, in our layouts."""

    lora: lora.Lora
    factors: Mapping[names.Slot, Callable[[], tuple[np.ndarray, np.ndarray]]]
    base: str  # where its base was, or what it is called
    base_digest: str = ""  # fingerprint of that; empty: unknown


def layouts(spec: names.ParamSpec) -> dict[str, tuple[str, str]]:
    """Returns the layouts of both factors of a matrix: ours, and those of PEFT, [C, in] and [out, C]."""
    outputs, inputs = _groups(spec.hf_layout)
    return {"down": (f"{_letters(inputs)} C", f"C {inputs}"), "up": (f"C {_letters(outputs)}", f"{outputs} C")}


def _groups(layout: str) -> tuple[str, str]:
    """Returns the two dims of a layout of rows of outputs: "(N H)" and "D" of "(N H) D"."""
    if layout.startswith("("):
        first, _, second = layout.partition(") ")
        return f"{first})", second
    first, _, second = layout.partition(" ")
    return first, second


def _letters(group: str) -> str:
    return group.strip("()")


def merged(base: tensor_source.TensorSource, adapter: Adapter) -> tensor_source.TensorSource:
    """Returns the base with the products of the factors added to its weights, which are read one at a time.

    Sums are float32; tensors are declared in the dtype of the base. A packed base is rounded to its format first.
    """
    format, tensors = adapter.lora.base_format, {}
    for slot, tensor in base.tensors.items():
        is_rounded = bool(format) and not encoding.is_norm(slot.spec) and "V" not in slot.spec.layout
        if slot in adapter.factors or is_rounded:
            read = functools.partial(_read, slot, tensor, base, adapter, format if is_rounded else "float32")
            tensor = dataclasses.replace(tensor, read=read)
        tensors[slot] = tensor
    return dataclasses.replace(base, tensors=tensors, quant={})


def _read(
    slot: names.Slot,
    tensor: tensor_source.StoredTensor,
    base: tensor_source.TensorSource,
    adapter: Adapter,
    format: str,
) -> np.ndarray:
    sizes = names.dim_sizes(base.model)
    x = tensor.read()
    if format != "float32":
        rows = encoding.rounded(names.hf_name(slot), encoding.rows(slot, base.model, x), format)
        x = names.relayout(rows, slot.spec.hf_layout, slot.spec.layout, sizes)
    if slot not in adapter.factors:
        return x
    down, up = adapter.factors[slot]()
    return x.astype(np.float32) + np.float32(adapter.lora.scale) * np.tensordot(down, up, axes=1)
