"""Hugging Face directories: config.json and safetensors, in one file or in shards with an index."""

import contextlib
import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jax.typing import DTypeLike

from gemma3_jax import console
from gemma3_jax.checkpoint import encoding, hf_config, names, tensor_file, tensor_source
from gemma3_jax.model import config

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD = "model-{:05d}-of-{:05d}.safetensors"
SHARD_BYTES = 1 << 30
DTYPES = dict(zip(("F32", "BF16", "F16"), tensor_source.DTYPES, strict=True))
# The prefixes of "layers.0..." in a text model, and in the text part of an image model, older and newer.
PREFIXES = ("model.", "language_model.model.", "model.language_model.")
VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
TIED_HEADS = {"lm_head.weight", "language_model.lm_head.weight"}  # the table again, in files that repeat it


def is_hf(path: pathlib.Path) -> bool:
    """Whether `path` looks like a Hugging Face directory, complete or not."""
    return (path / CONFIG).exists() or (path / WEIGHTS).exists() or (path / INDEX).exists()


def open_source(path: pathlib.Path) -> tensor_source.TensorSource:
    """Returns the text model in a directory, after checking every name, shape and dtype.

    No tensor is read yet, except a repeated head, which is compared with the table.
    Raises: ValueError naming the file and the tensor, if one is missing, unknown, or of another shape or dtype, or if a
    file is missing, cut short or not safetensors.
    """
    model, architecture = hf_config.read(existing(path / CONFIG))
    files = _tensor_files(path)
    if model.num_layers > len(files):  # checked before all tensors of so many layers are listed
        raise ValueError(
            f"{path / CONFIG}: num_hidden_layers is {model.num_layers}, but there are {len(files)} tensors"
        )
    skipped = {name for name in files if name.startswith(VISION_PREFIXES)}
    notes = ()
    if architecture == "Gemma3ForConditionalGeneration":
        notes = (f"{path}: text part only; {len(skipped)} vision tensors left out",) if skipped else ()
    else:
        skipped = set()
    prefix = next((p for p in reversed(PREFIXES) if any(name.startswith(f"{p}layers.") for name in files)), PREFIXES[0])
    slots = {names.hf_name(slot, prefix): slot for slot in names.slots(model)}
    weights = path / (WEIGHTS if (path / WEIGHTS).exists() else INDEX)
    heads = TIED_HEADS & set(files)
    tensor_source.check_names(str(weights), set(slots), set(files) - skipped - heads)

    padded = names.dim_sizes(model, padded=True)
    tensors = {}
    for name, slot in slots.items():
        dtype = _check(files[name], name, names.shape_of(slot.spec.hf_layout, padded))
        read = functools.partial(_read, files[name], name, slot, model)
        tensors[slot] = tensor_source.StoredTensor(dtype, read)
    for head in heads:
        _check(files[head], head, names.shape_of("V D", padded))
        _check_tied(files, head, f"{prefix}{names.ROOT[0].hf}")
    return tensor_source.TensorSource(model, tensors, notes)


def write(
    directory: pathlib.Path,
    model: config.Config,
    params: dict,
    progress: Callable[[int], None] = console.ignore,
    *,
    plan: encoding.StoragePlan | None = None,
    dtype: DTypeLike | None = None,
) -> None:
    """Writes parameters that are in memory; see `create`. Raises: as the function that it returns."""
    source = tensor_source.from_params(model, params)
    tensor_source.copy(source, [create(directory, model, params, plan=plan, dtype=dtype)], progress)


def create(
    directory: pathlib.Path,
    model: config.Config,
    shapes: dict,
    *,
    plan: encoding.StoragePlan | None = None,
    dtype: DTypeLike | None = None,
    special_ids: Mapping[str, int | list[int]] | None = None,
) -> tensor_source.Write:
    """Creates the files of a Gemma3ForCausalLM in an existing directory; returns what writes a tensor into them.

    Tensors are stored in `dtype`, or each in that of `shapes`. With `plan` they are rounded first, to the values of its
    formats, and are float32 if there is no `dtype`. `special_ids` has the ids of config.json that are not those of
    Gemma's own tokenizer. Equal parameters give equal bytes.
    Raises: OSError if the disk refuses. The returned function raises that, too, and ValueError naming a parameter that
    a format cannot hold.
    """
    dtype = dtype or (np.float32 if plan else None)
    # Transformers loads all tensors in the one dtype of config.json.
    widest = jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(shapes)))
    text = hf_config.write(model, np.dtype(dtype or widest).name, special_ids)
    tensor_file.write_small(directory / CONFIG, text.encode())
    files, index = {}, {}
    shards = _plan_shards(model, shapes, dtype)
    for number, slots in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else SHARD.format(number, len(shards))
        forms = {names.hf_name(slot): _form(slot, model, shapes, dtype) for slot in slots}
        tensors = tensor_file.create_safetensors(
            directory / file, tensor_file.library_order(forms), metadata={"format": "pt"}
        )
        files |= dict.fromkeys(slots, tensors)
        index |= dict.fromkeys(forms, file)
    # Of one file, too: some programs look here first, and some would take every file of safetensors for weights.
    content = {"metadata": {"total_size": num_bytes(model, shapes, dtype)}, "weight_map": index}
    tensor_file.write_small(directory / INDEX, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())

    def write_tensor(slot: names.Slot, rows: np.ndarray) -> int:
        name = names.hf_name(slot)
        if plan:
            rows = encoding.rounded(name, rows, plan.format_of(slot.spec))
        rows = rows.astype(_dtype(slot, shapes, dtype), copy=False)
        if "V" in slot.spec.layout and model.vocab_padding:
            rows = np.pad(rows, ((0, model.vocab_padding), (0, 0)))
        return files[slot].write(name, rows)

    return write_tensor


def existing(path: pathlib.Path) -> pathlib.Path:
    """Returns the path of a file of a directory. Raises: ValueError if it does not exist."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; a Hugging Face directory holds {CONFIG} and {WEIGHTS} or {INDEX}")
    return path


@contextlib.contextmanager
def opened(file: pathlib.Path):
    """Opens a safetensors file to read from. Raises: ValueError naming it if it is damaged or may not be read."""
    if not os.access(file, os.R_OK):
        raise ValueError(f"{file} may not be read")
    try:
        with safetensors.safe_open(file, framework="numpy") as handle:
            yield handle
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{file} is cut short, or not a safetensors file: {error}") from error


def _tensor_files(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the file that holds each tensor."""
    if (path / WEIGHTS).exists() or not (path / INDEX).exists():  # the order in which Transformers looks
        with opened(existing(path / WEIGHTS)) as handle:
            return dict.fromkeys(handle.keys(), path / WEIGHTS)
    try:
        content = json.loads((path / INDEX).read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path / INDEX} is not JSON: {error}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path / INDEX} is no safetensors index; it must hold a weight_map of tensor and file names")
    for name, file in weight_map.items():
        if not isinstance(file, str) or pathlib.Path(file).name != file:
            raise ValueError(
                f"{path / INDEX} says tensor {name} is in {file!r}; it must be the name of a file beside it"
            )
    files = {name: path / file for name, file in weight_map.items()}
    for file in sorted(set(files.values())):
        listed = {name for name, other in files.items() if other == file}
        if not file.is_file():
            raise ValueError(f"{path / INDEX} names {file.name} (tensor {min(listed)}), which does not exist")
        with opened(file) as handle:
            tensor_source.check_names(str(file), listed, set(handle.keys()))
    return files


def _check(file: pathlib.Path, name: str, shape: tuple[int, ...]) -> np.dtype:
    """Returns a tensor's dtype, after checking that it has the shape of config.json."""
    with opened(file) as handle:
        header = handle.get_slice(name)
        stored_shape, dtype = tuple(header.get_shape()), header.get_dtype()
    if stored_shape != shape:
        raise ValueError(f"{file}: tensor {name} has shape {stored_shape}; {CONFIG} asks for {shape}")
    if dtype not in DTYPES:
        raise ValueError(f"{file}: tensor {name} is {dtype}; it must be one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _check_tied(files: dict[str, pathlib.Path], head: str, table: str) -> None:
    """Raises: ValueError if a repeated head is not the table, bit for bit. Reads a few rows at a time."""
    with opened(files[head]) as head_file, opened(files[table]) as table_file:
        head_rows, table_rows = head_file.get_slice(head), table_file.get_slice(table)
        num_rows = head_rows.get_shape()[0]
        for start in range(0, num_rows, 8192):
            end = min(start + 8192, num_rows)
            if head_rows[start:end].tobytes() != table_rows[start:end].tobytes():
                raise ValueError(
                    f"{files[head]}: tensor {head} differs from {table}; the head of a Gemma 3 model is its table"
                )


def _read(file: pathlib.Path, name: str, slot: names.Slot, model: config.Config) -> np.ndarray:
    with opened(file) as handle:
        # Only the table has V, and only its rows can be padding.
        x = handle.get_slice(name)[: model.vocab_size] if "V" in slot.spec.layout else handle.get_tensor(name)
    return names.relayout(x, slot.spec.hf_layout, slot.spec.layout, names.dim_sizes(model))


def num_bytes(model: config.Config, shapes: dict, dtype: DTypeLike | None = None) -> int:
    """Returns the bytes of the tensors in `dtype`, or each in that of `shapes` (or of parameters)."""
    return sum(_num_bytes(slot, model, shapes, dtype) for slot in names.slots(model))


def _num_bytes(slot: names.Slot, model: config.Config, shapes: dict, dtype: DTypeLike | None) -> int:
    name, shape = _form(slot, model, shapes, dtype)
    return int(np.prod(shape)) * DTYPES[name].itemsize


def _form(slot: names.Slot, model: config.Config, shapes: dict, dtype: DTypeLike | None) -> tuple[str, tuple[int, ...]]:
    """Returns the dtype, as safetensors calls it, and the shape that a tensor is stored in."""
    stored = _dtype(slot, shapes, dtype)
    name = next(name for name, known in DTYPES.items() if known == stored)
    return name, names.shape_of(slot.spec.hf_layout, names.dim_sizes(model, padded=True))


def _dtype(slot: names.Slot, shapes: dict, dtype: DTypeLike | None) -> np.dtype:
    return np.dtype(dtype or names.get(shapes, slot.path).dtype)


def _plan_shards(model: config.Config, shapes: dict, dtype: DTypeLike | None) -> list[list[names.Slot]]:
    """Returns the slots of each file, in order; a file has at most SHARD_BYTES unless one tensor is larger."""
    shards, room = [[]], SHARD_BYTES
    for slot in names.slots(model):
        size = _num_bytes(slot, model, shapes, dtype)
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(slot)
        room -= size
    return shards
