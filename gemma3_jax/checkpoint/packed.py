"""packed.safetensors, beside config.json: the weights in the few bits of a quantized model.

Tensors have their names in model.safetensors of a text model (model.layers.0.mlp.up_proj.weight):

    matrices   U8, rows of outputs, each row the bytes that quant/packing.py describes: for q4_0 and q8_0 the blocks of
               ggml with their float16 scales; for int4 and sfp8 the codes alone
    scales     NAME.scale, F32: for int4 one per row, for sfp8 a single one; a weight is its code times its scale
    table      in another format: F32, BF16 or F16, or U8 with the blocks of q8_0; no padding rows
    norms      F32, as in model.safetensors: 1 less than the factor they stand for

The metadata has format = gemma3_jax.packed, version = 1, quant (of the matrices) and embedding (of the table).
"""

import functools
import pathlib
from collections.abc import Iterator

import numpy as np

from gemma3_jax.checkpoint import encoding, hf, hf_config, names, tensor_file, tensor_source
from gemma3_jax.model import config
from gemma3_jax.quant import formats, packing

FILE, FORMAT, VERSION = "packed.safetensors", "gemma3_jax.packed", "1"
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def is_packed(path: pathlib.Path) -> bool:
    return (path / FILE).exists()


def open_source(path: pathlib.Path) -> tensor_source.TensorSource:
    """Returns the model in a directory, after checking every name, shape and dtype; no tensor is read yet.

    Raises: ValueError naming the file and what is damaged or does not fit config.json.
    """
    model, _ = hf_config.read(hf.existing(path / hf.CONFIG))
    file = path / FILE
    with hf.opened(file) as handle:
        plan, stored_names = _plan(file, handle.metadata() or {}), set(handle.keys())
        if model.num_layers > len(stored_names):  # checked before all tensors of so many layers are listed
            raise ValueError(
                f"{path / hf.CONFIG}: num_hidden_layers is {model.num_layers}, but {FILE} has {len(stored_names)} "
                "tensors"
            )
        try:
            plan.check(model, names.hf_name)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        forms = dict(_forms(model, plan))
        tensor_source.check_names(str(file), set(forms), stored_names)
        for name, form in forms.items():
            header = handle.get_slice(name)
            if (stored := (header.get_dtype(), tuple(header.get_shape()))) != form:
                raise ValueError(f"{file}: tensor {name} is {stored[0]} {stored[1]}; {hf.CONFIG} asks for {form}")
    tensors = {}
    for slot in names.slots(model):
        format = plan.format_of(slot.spec)
        read = functools.partial(_read, file, format, slot, model)
        tensors[slot] = tensor_source.StoredTensor(encoding.dtype_of(format), read)
    note = f"{file} is read, which is exact: matrices {plan.matrices}, table {plan.table}"
    return tensor_source.TensorSource(model, tensors, (note,), {"format": plan.matrices, "embedding": plan.table})


def _plan(file: pathlib.Path, metadata: dict[str, str]) -> encoding.StoragePlan:
    written_as = tuple(metadata.get(key) for key in ("format", "version"))
    if written_as != (FORMAT, VERSION):
        raise ValueError(f"{file} has format and version {written_as}; this program reads {(FORMAT, VERSION)}")
    for key, allowed in (("quant", formats.MATRICES), ("embedding", formats.TABLES)):
        if metadata.get(key) not in allowed:
            raise ValueError(f"{file}: {key} is {metadata.get(key)!r}; it must be one of {', '.join(allowed)}")
    return encoding.StoragePlan(metadata["quant"], metadata["embedding"])


def _read(file: pathlib.Path, format: str, slot: names.Slot, model: config.Config) -> np.ndarray:
    name, sizes = names.hf_name(slot), names.dim_sizes(model)
    shape = names.shape_of(slot.spec.hf_layout, sizes)
    with hf.opened(file) as handle:
        x = handle.get_tensor(name)
        scale = handle.get_tensor(f"{name}.scale")[:, None] if _num_scales(format, shape) else None
    if format in formats.MATRICES:
        x = encoding.unpacked(format, x, shape, scale)
    return names.relayout(x, slot.spec.hf_layout, slot.spec.layout, sizes)


def num_bytes(model: config.Config, plan: encoding.StoragePlan) -> int:
    """Returns the bytes of the tensors."""
    bytes_of = tensor_file.SAFETENSORS_BYTES
    return sum(int(np.prod(shape)) * bytes_of[dtype] for _, (dtype, shape) in _forms(model, plan))


def create(directory: pathlib.Path, model: config.Config, plan: encoding.StoragePlan) -> tensor_source.Write:
    """Creates the file, and returns what writes a tensor into it. Equal parameters give equal bytes.

    Raises: OSError if the disk refuses. The returned function raises that, too, and ValueError naming a parameter that
    a format cannot hold.
    """
    metadata = {"format": FORMAT, "version": VERSION, "quant": plan.matrices, "embedding": plan.table}
    file = tensor_file.create_safetensors(
        directory / FILE, dict(_forms(model, plan)), metadata, separators=(", ", ": ")
    )

    def write_tensor(slot: names.Slot, rows: np.ndarray) -> int:
        name, format = names.hf_name(slot), plan.format_of(slot.spec)
        if format in encoding.FLOATS:
            return file.write(name, encoding.as_float(name, rows, format))
        encoded = encoding.encoded(name, rows, format)
        num_bytes = file.write(name, packing.pack(format, encoded))
        if _num_scales(format, rows.shape):
            num_bytes += file.write(f"{name}.scale", encoded.scale)
        return num_bytes

    return write_tensor


def _forms(model: config.Config, plan: encoding.StoragePlan) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Yields name, and dtype and shape, of every tensor in the order of the file."""
    sizes = names.dim_sizes(model)
    for slot in names.slots(model):
        name, format = names.hf_name(slot), plan.format_of(slot.spec)
        shape = names.shape_of(slot.spec.hf_layout, sizes)
        if format in encoding.FLOATS:
            yield name, (_DTYPES[format], shape)
            continue
        num_scales = _num_scales(format, shape)
        yield name, ("U8", (shape[0], (formats.num_bytes(format, *shape) - 4 * num_scales) // shape[0]))
        if num_scales:
            yield f"{name}.scale", ("F32", (num_scales,))


def _num_scales(format: str, shape: tuple[int, ...]) -> int:
    """Returns how many scales are stored beside the codes."""
    return {"int4": shape[0], "sfp8": 1}.get(format, 0)
