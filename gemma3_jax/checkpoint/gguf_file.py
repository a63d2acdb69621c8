"""GGUF files of architecture gemma3, which llama.cpp runs: tensors streamed out, and back in.

Norms are stored as what they multiply by, 1 + w, in float32; the table has the vocabulary's rows and no more.
Source: ggml-org/llama.cpp conversion/gemma.py.
"""

import contextlib
import pathlib
from collections.abc import Callable

import gguf
import numpy as np

from gemma3_jax.checkpoint import encoding, gguf_config, gguf_header, gguf_vocabulary, names
from gemma3_jax.checkpoint.source import Source, Tensor, check_names
from gemma3_jax.model import config
from gemma3_jax.quant import packing
from gemma3_jax.tokenizer import vocabulary

# Format -> what ggml calls it. int4 and sfp8 have no type there: what they round to is stored, exactly, as float32.
TYPES = {
    "float32": gguf.GGMLQuantizationType.F32,
    "float16": gguf.GGMLQuantizationType.F16,
    "bfloat16": gguf.GGMLQuantizationType.BF16,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "int4": gguf.GGMLQuantizationType.F32,
    "sfp8": gguf.GGMLQuantizationType.F32,
}
_READABLE = {kind.name: format for format, kind in reversed(TYPES.items())}
_FILE_TYPES = {
    gguf.GGMLQuantizationType.F32: gguf.LlamaFileType.ALL_F32,
    gguf.GGMLQuantizationType.F16: gguf.LlamaFileType.MOSTLY_F16,
    gguf.GGMLQuantizationType.BF16: gguf.LlamaFileType.MOSTLY_BF16,
    gguf.GGMLQuantizationType.Q4_0: gguf.LlamaFileType.MOSTLY_Q4_0,
    gguf.GGMLQuantizationType.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
}


def open_source(path: pathlib.Path) -> Source:
    """The model in a file, with every name, shape and type checked; of the tensors none is read yet.

    Raises: ValueError naming the file and what is wrong with it.
    """
    metadata, places = gguf_header.read(path)
    table = places.get(f"{names.GGUF[names.ROOT[0].path]}.weight")
    model = gguf_config.read(path, metadata, table.shape[0] if table else 1)
    if model.num_layers > len(places):  # before a list of all their tensors is made
        raise ValueError(f"{path}: it is to have {model.num_layers} layers, but there are {len(places)} tensors")
    slots = {names.gguf_name(slot): slot for slot in names.slots(model)}
    check_names(str(path), set(slots), set(places))
    tensors = {}
    for name, slot in slots.items():
        place, shape = places[name], names.shape_of(slot.row.hf_layout, names.dim_sizes(model))
        if place.shape != shape:
            raise ValueError(f"{path}: tensor {name} has shape {place.shape}; its metadata asks for {shape}")
        if place.type not in _READABLE:
            raise ValueError(f"{path}: tensor {name} is {place.type}; it must be one of {', '.join(_READABLE)}")
        format = _READABLE[place.type]
        tensors[slot] = Tensor(encoding.dtype_of(format), _reader(path, place, slot, model))
    return Source(model, tensors)


def _reader(
    path: pathlib.Path, place: gguf_header.Place, slot: names.Slot, model: config.Config
) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        stored = np.memmap(path, np.uint8, "r", place.start, (place.num_bytes,))
        x = encoding.unpacked(_READABLE[place.type], stored, place.shape)
        if encoding.is_norm(slot.row):
            x = x.astype(np.float32) - np.float32(1)
        return names.relayout(x, slot.row.hf_layout, slot.row.layout, names.dim_sizes(model))

    return read


def check(model: config.Config, plan: encoding.Plan, tokenizer: vocabulary.Tokenizer) -> tuple[str, ...]:
    """What a person should know of the file that `write` would make.

    Raises: ValueError if llama.cpp would not run such a model, or not as we do.
    """
    plan.check(model, names.gguf_name)
    gguf_vocabulary.check(tokenizer, model.vocab_size)
    return gguf_config.check(model)


def num_bytes(model: config.Config, plan: encoding.Plan) -> int:
    """Bytes of the tensors."""
    return sum(_num_bytes(slot, model, plan) for slot in names.slots(model))


def write(
    path: pathlib.Path,
    model: config.Config,
    params: dict,
    plan: encoding.Plan,
    tokenizer: vocabulary.Tokenizer,
    progress: Callable[[int], None] = lambda num_bytes: None,
    *,
    target: pathlib.Path | None = None,
) -> None:
    """Writes the file, one tensor after the other; `check` has passed. Equal arguments give equal bytes.

    `target` is the path that the file will have, if not `path`: the model is called by it.
    Raises: OSError where the disk refuses. ValueError naming a parameter that a format cannot hold.
    """
    target = target or path
    writer = gguf.GGUFWriter(path, gguf_config.ARCHITECTURE)
    writer.add_type("model")
    writer.add_name(target.stem)
    if plan.matrices not in encoding.FLOATS and TYPES[plan.matrices] == gguf.GGMLQuantizationType.F32:
        writer.add_description(f"matrices rounded to {plan.matrices}, which GGUF has no type for; stored as float32")
    writer.add_file_type(_FILE_TYPES[TYPES[plan.matrices]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    gguf_config.write(model, writer)
    gguf_vocabulary.write(tokenizer, model.vocab_size, writer)
    sizes = names.dim_sizes(model)
    for slot in names.slots(model):
        shape, kind = names.shape_of(slot.row.hf_layout, sizes), TYPES[plan.format_of(slot.row)]
        writer.add_tensor_info(
            names.gguf_name(slot), shape, np.dtype(np.float32), _num_bytes(slot, model, plan), raw_dtype=kind
        )
    try:
        with contextlib.closing(writer):  # which writes what is left, and may fail too
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for slot in names.slots(model):
                stored = _export(slot, model, params, plan)
                writer.write_tensor_data(stored)
                progress(stored.nbytes)
    except OSError as error:  # of a full disk NumPy says no more than how much it could not write
        reason = error.strerror or f"{error}; is there no space left on its disk?"
        raise OSError(f"{target} cannot be written: {reason}") from error


def _export(slot: names.Slot, model: config.Config, params: dict, plan: encoding.Plan) -> np.ndarray:
    name, x, format = names.gguf_name(slot), encoding.rows(slot, model, params), plan.format_of(slot.row)
    if encoding.is_norm(slot.row):
        is_query = slot.row.path == "attention/query_norm/scale"
        if is_query and (factor := gguf_config.query_norm_factor(model)) != 1:
            x = ((1 + x.astype(np.float64)) * factor).astype(np.float32)  # rounded once
        else:
            x = np.float32(1) + x.astype(np.float32)
    if format in encoding.FLOATS:
        return encoding.as_float(name, x, format)
    if TYPES[format] == gguf.GGMLQuantizationType.F32:
        return encoding.rounded(name, x, format)
    return packing.pack(format, encoding.encoded(name, x, format))


def _num_bytes(slot: names.Slot, model: config.Config, plan: encoding.Plan) -> int:
    block, block_bytes = gguf.GGML_QUANT_SIZES[TYPES[plan.format_of(slot.row)]]
    shape = names.shape_of(slot.row.hf_layout, names.dim_sizes(model))
    return int(np.prod(shape)) // block * block_bytes
