"""GGUF files of architecture gemma3, which llama.cpp runs: written and read one tensor at a time.

Norms are stored as the factor they stand for, 1 + w, in float32. The table has the vocabulary's rows and no padding.
Source: ggml-org/llama.cpp conversion/gemma.py.
"""

import contextlib
import functools
import pathlib
from collections.abc import Callable

import gguf
import numpy as np

from gemma3_jax import console
from gemma3_jax.checkpoint import (
    encoding,
    gguf_config,
    gguf_header,
    gguf_parts,
    gguf_tensor,
    gguf_vocabulary,
    names,
    tensor_file,
    tensor_source,
)
from gemma3_jax.model import config
from gemma3_jax.quant import packing
from gemma3_jax.tokenizer import vocabulary

# Format -> ggml's type. It has none for int4 and sfp8: their rounded values are stored, exactly, as float32.
TYPES = {
    "float32": gguf.GGMLQuantizationType.F32,
    "float16": gguf.GGMLQuantizationType.F16,
    "bfloat16": gguf.GGMLQuantizationType.BF16,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "int4": gguf.GGMLQuantizationType.F32,
    "sfp8": gguf.GGMLQuantizationType.F32,
}
HEAD = "output.weight"  # the table again, in files that repeat it
_FILE_TYPES = {
    gguf.GGMLQuantizationType.F32: gguf.LlamaFileType.ALL_F32,
    gguf.GGMLQuantizationType.F16: gguf.LlamaFileType.MOSTLY_F16,
    gguf.GGMLQuantizationType.BF16: gguf.LlamaFileType.MOSTLY_BF16,
    gguf.GGMLQuantizationType.Q4_0: gguf.LlamaFileType.MOSTLY_Q4_0,
    gguf.GGMLQuantizationType.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
}


def open_source(path: pathlib.Path) -> tensor_source.TensorSource:
    """Returns the text model in a file, or in several, after checking every name, shape and type.

    No tensor is read yet, except a repeated head, which is compared with the table.
    Raises: ValueError naming the file and what is wrong with it.
    """
    metadata, infos = gguf_parts.read(path)
    model, notes = gguf_config.read(path, metadata, infos)
    if model.num_layers > len(infos):  # checked before all tensors of so many layers are listed
        raise ValueError(f"{path}: its metadata has {model.num_layers} layers, but there are {len(infos)} tensors")
    slots = {names.gguf_name(slot): slot for slot in names.slots(model)}
    skipped, head = set(filter(gguf_config.is_vision, infos)), {HEAD} & set(infos)
    tensor_source.check_names(str(path), set(slots), set(infos) - skipped - head)
    if skipped:
        notes += (f"{path}: text part only; {len(skipped)} vision tensors left out",)
    tensors, table = {}, infos[gguf_config.TABLE]
    for name, slot in slots.items():
        _check(path, name, infos[name], names.shape_of(slot.spec.hf_layout, names.dim_sizes(model)))
        read = functools.partial(_read, infos[name], slot, model)
        tensors[slot] = tensor_source.StoredTensor(gguf_tensor.dtype_of(infos[name]), read)
    if head:
        _check(path, HEAD, infos[HEAD], table.shape)
        _check_tied(path, infos[HEAD], table)
    if decoded := sorted({infos[name].type for name in slots} & set(gguf_tensor.OTHERS)):
        notes += (f"{path}: weights rounded to {', '.join(decoded)} are read as float32, which holds them exactly",)
    return tensor_source.TensorSource(model, tensors, notes)


def _check(path: pathlib.Path, name: str, info: gguf_header.TensorInfo, shape: tuple[int, ...]) -> None:
    if info.shape != shape:
        raise ValueError(f"{path}: tensor {name} has shape {info.shape}; its metadata asks for {shape}")
    gguf_tensor.check(name, info)


def _check_tied(path: pathlib.Path, head: gguf_header.TensorInfo, table: gguf_header.TensorInfo) -> None:
    """Raises: ValueError if a repeated head does not have the values of the table. Reads a few rows at a time."""
    for start in range(0, table.shape[0], 4096):
        rows = (gguf_tensor.read(info, start, start + 4096).astype(np.float32) for info in (head, table))
        if not np.array_equal(*rows, equal_nan=True):
            raise ValueError(
                f"{path}: tensor {HEAD} differs from {gguf_config.TABLE}; the head of a Gemma 3 model is its table"
            )


def _read(info: gguf_header.TensorInfo, slot: names.Slot, model: config.Config) -> np.ndarray:
    x = gguf_tensor.read(info)
    if encoding.is_norm(slot.spec):
        x = x.astype(np.float32) - np.float32(1)
    return names.relayout(x, slot.spec.hf_layout, slot.spec.layout, names.dim_sizes(model))


def check(model: config.Config, plan: encoding.StoragePlan, tokenizer: vocabulary.Tokenizer) -> tuple[str, ...]:
    """Returns notes for the user on the file that `create` would make.

    Raises: ValueError if llama.cpp would not run such a model, or not as this program does.
    """
    plan.check(model, names.gguf_name)
    gguf_vocabulary.check(tokenizer, model.vocab_size)
    return gguf_config.check(model)


def num_bytes(model: config.Config, plan: encoding.StoragePlan) -> int:
    """Returns the bytes of the tensors."""
    return sum(_num_bytes(slot, model, plan) for slot in names.slots(model))


def write(
    path: pathlib.Path,
    model: config.Config,
    params: dict,
    plan: encoding.StoragePlan,
    tokenizer: vocabulary.Tokenizer,
    progress: Callable[[int], None] = console.ignore,
    *,
    target: pathlib.Path | None = None,
) -> None:
    """Writes parameters that are in memory; see `create`. Raises: as the function that it returns."""
    write_tensor = create(path, model, plan, tokenizer, target=target)
    tensor_source.copy(tensor_source.from_params(model, params), [write_tensor], progress)


def create(
    path: pathlib.Path,
    model: config.Config,
    plan: encoding.StoragePlan,
    tokenizer: vocabulary.Tokenizer,
    *,
    target: pathlib.Path | None = None,
) -> tensor_source.Write:
    """Creates the file of a model that `check` has passed; returns what writes a tensor into it.

    `target` is the path that the file will have in the end, if not `path`: the model is named after it. Equal
    parameters give equal bytes.
    Raises: OSError if the disk refuses. The returned function raises that, too, and ValueError naming a parameter that
    a format cannot hold.
    """
    _write_header(path, model, plan, tokenizer, target=target or path)
    num_bytes = {names.gguf_name(slot): _num_bytes(slot, model, plan) for slot in names.slots(model)}
    with _naming(target or path):
        file = tensor_file.after_header(path, num_bytes, alignment=gguf.GGUF_DEFAULT_ALIGNMENT)

    def write_tensor(slot: names.Slot, rows: np.ndarray) -> int:
        stored = _encode(slot, rows, model, plan)
        with _naming(target or path):
            return file.write(names.gguf_name(slot), stored)

    return write_tensor


def _write_header(
    path: pathlib.Path,
    model: config.Config,
    plan: encoding.StoragePlan,
    tokenizer: vocabulary.Tokenizer,
    *,
    target: pathlib.Path,
) -> None:
    """Writes everything before the tensors."""
    writer = gguf.GGUFWriter(path, gguf_config.ARCHITECTURE)
    writer.add_type("model")
    writer.add_name(target.stem)
    if plan.matrices not in encoding.FLOATS and TYPES[plan.matrices] == gguf.GGMLQuantizationType.F32:
        writer.add_description(f"matrices rounded to {plan.matrices}, which GGUF has no type for; stored as float32")
    writer.add_file_type(_FILE_TYPES[TYPES[plan.matrices]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    gguf_config.write(model, writer)
    gguf_vocabulary.write(tokenizer, model.vocab_size, writer)
    for slot in names.slots(model):
        shape = names.shape_of(slot.spec.hf_layout, names.dim_sizes(model))
        kind, size = TYPES[plan.format_of(slot.spec)], _num_bytes(slot, model, plan)
        writer.add_tensor_info(names.gguf_name(slot), shape, np.dtype(np.float32), size, raw_dtype=kind)
    with _naming(target), contextlib.closing(writer):  # closing writes what is buffered, and may fail too
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()


@contextlib.contextmanager
def _naming(target: pathlib.Path):
    """Names the file in errors of the disk by the path that it will have."""
    try:
        yield
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise OSError(f"{target} cannot be written: {cause.strerror or cause}") from error


def _encode(slot: names.Slot, rows: np.ndarray, model: config.Config, plan: encoding.StoragePlan) -> np.ndarray:
    """Returns a tensor as it is stored."""
    name, format = names.gguf_name(slot), plan.format_of(slot.spec)
    if encoding.is_norm(slot.spec):
        is_query = slot.spec.path == "attention/query_norm/scale"
        if is_query and (factor := gguf_config.query_norm_factor(model)) != 1:
            rows = ((1 + rows.astype(np.float64)) * factor).astype(np.float32)  # rounded once
        else:
            rows = np.float32(1) + rows.astype(np.float32)
    if format in encoding.FLOATS:
        return encoding.as_float(name, rows, format)
    if TYPES[format] == gguf.GGMLQuantizationType.F32:
        return encoding.rounded(name, rows, format)
    return packing.pack(format, encoding.encoded(name, rows, format))


def _num_bytes(slot: names.Slot, model: config.Config, plan: encoding.StoragePlan) -> int:
    block, block_bytes = gguf.GGML_QUANT_SIZES[TYPES[plan.format_of(slot.spec)]]
    shape = names.shape_of(slot.spec.hf_layout, names.dim_sizes(model))
    return int(np.prod(shape)) // block * block_bytes
