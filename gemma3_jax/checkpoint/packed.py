"""packed.safetensors, beside config.json: the weights as a quantised model stores them, in their few bits.

Tensors go by their names in model.safetensors of a text model (model.layers.0.mlp.up_proj.weight):

    matrices   U8, rows of outputs, each row the bytes that quant/packing.py gives it: of q4_0 and q8_0 the blocks of
               ggml with their float16 scales; of int4 and sfp8 the codes alone
    scales     NAME.scale, F32: of int4 one for each row, of sfp8 one in all; a code times its scale is the weight
    table      in a format of its own: F32, BF16 or F16, or U8 with the blocks of q8_0; no padding rows
    norms      F32, as model.safetensors has them: less 1 than what they multiply by

The metadata says format = gemma3_jax.packed, version = 1, quant (of the matrices) and embedding (of the table).
"""

import json
import pathlib
import struct
from collections.abc import Callable, Iterator

import numpy as np

from gemma3_jax.checkpoint import encoding, hf, hf_config, names
from gemma3_jax.checkpoint.source import Source, Tensor, check_names
from gemma3_jax.model import config
from gemma3_jax.quant import formats, packing

FILE, FORMAT, VERSION = "packed.safetensors", "gemma3_jax.packed", "1"
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_NUM_BYTES = {"U8": 1, "F32": 4, "BF16": 2, "F16": 2}


def is_packed(path: pathlib.Path) -> bool:
    return (path / FILE).exists()


def open_source(path: pathlib.Path) -> Source:
    """The model in a directory, with every name, shape and dtype checked; no tensor is read yet.

    Raises: ValueError naming the file and what does not fit config.json, or is damaged.
    """
    model, _ = hf_config.read(hf.existing(path / hf.CONFIG))
    file = path / FILE
    with hf.opened(file) as handle:
        plan = _plan(file, handle.metadata() or {})
        try:
            plan.check(model, names.hf_name)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        forms = {name: (dtype, shape) for name, dtype, shape in _forms(model, plan)}
        check_names(str(file), set(forms), set(handle.keys()))
        for name, form in forms.items():
            header = handle.get_slice(name)
            if (found := (header.get_dtype(), tuple(header.get_shape()))) != form:
                raise ValueError(f"{file}: tensor {name} is {found[0]} {found[1]}; {hf.CONFIG} asks for {form}")
    tensors = {}
    for slot in names.slots(model):
        format = plan.format_of(slot.row)
        tensors[slot] = Tensor(encoding.dtype_of(format), _reader(file, format, slot, model))
    note = f"{file} is read, which is exact: matrices {plan.matrices}, table {plan.table}"
    return Source(model, tensors, (note,), {"format": plan.matrices, "embedding": plan.table})


def _plan(file: pathlib.Path, metadata: dict[str, str]) -> encoding.Plan:
    found = tuple(metadata.get(key) for key in ("format", "version"))
    if found != (FORMAT, VERSION):
        raise ValueError(f"{file} has format and version {found}; this program reads {(FORMAT, VERSION)}")
    for key, allowed in (("quant", formats.MATRICES), ("embedding", formats.TABLES)):
        if metadata.get(key) not in allowed:
            raise ValueError(f"{file}: {key} is {metadata.get(key)!r}; it must be one of {', '.join(allowed)}")
    return encoding.Plan(metadata["quant"], metadata["embedding"])


def _reader(file: pathlib.Path, format: str, slot: names.Slot, model: config.Config) -> Callable[[], np.ndarray]:
    name, sizes = names.hf_name(slot), names.dim_sizes(model)
    shape = names.shape_of(slot.row.hf_layout, sizes)

    def read() -> np.ndarray:
        with hf.opened(file) as handle:
            x = handle.get_tensor(name)
            scale = handle.get_tensor(f"{name}.scale")[:, None] if _num_scales(format, shape) else None
        if format in formats.MATRICES:
            x = encoding.unpacked(format, x, shape, scale)
        return names.relayout(x, slot.row.hf_layout, slot.row.layout, sizes)

    return read


def num_bytes(model: config.Config, plan: encoding.Plan) -> int:
    """Bytes of the tensors."""
    return sum(int(np.prod(shape)) * _NUM_BYTES[dtype] for _, dtype, shape in _forms(model, plan))


def write(
    directory: pathlib.Path,
    model: config.Config,
    params: dict,
    plan: encoding.Plan,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Writes the file, one tensor after the other. Equal parameters give equal bytes.

    Raises: OSError where the disk refuses. ValueError naming a parameter that a format cannot hold.
    """
    meta = {"format": FORMAT, "version": VERSION, "quant": plan.matrices, "embedding": plan.table}
    header, end = {"__metadata__": meta}, 0
    for name, dtype, shape in _forms(model, plan):
        start, end = end, end + int(np.prod(shape)) * _NUM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    try:
        with (directory / FILE).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for slot in names.slots(model):
                for x in _export(slot, model, params, plan):
                    file.write(x.tobytes())
                    progress(x.nbytes)
    except OSError as error:  # of a full disk Python names no file
        raise OSError(f"{directory / FILE} cannot be written: {error.strerror or error}") from error


def _export(slot: names.Slot, model: config.Config, params: dict, plan: encoding.Plan) -> Iterator[np.ndarray]:
    """The tensors of a slot, in the order of `_forms`."""
    name, x, format = names.hf_name(slot), encoding.rows(slot, model, params), plan.format_of(slot.row)
    if format in encoding.FLOATS:
        yield encoding.as_float(name, x, format)
        return
    encoded = encoding.encoded(name, x, format)
    yield packing.pack(format, encoded)
    if _num_scales(format, x.shape):
        yield encoded.scale


def _forms(model: config.Config, plan: encoding.Plan) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of every tensor, in the order they are written."""
    sizes = names.dim_sizes(model)
    for slot in names.slots(model):
        name, format = names.hf_name(slot), plan.format_of(slot.row)
        shape = names.shape_of(slot.row.hf_layout, sizes)
        if format in encoding.FLOATS:
            yield name, _DTYPES[format], shape
            continue
        num_scales = _num_scales(format, shape)
        yield name, "U8", (shape[0], (formats.num_bytes(format, *shape) - 4 * num_scales) // shape[0])
        if num_scales:
            yield f"{name}.scale", "F32", (num_scales,)


def _num_scales(format: str, shape: tuple[int, ...]) -> int:
    """How many scales are stored beside the codes."""
    return {"int4": shape[0], "sfp8": 1}.get(format, 0)
