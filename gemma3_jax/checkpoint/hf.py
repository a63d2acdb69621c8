"""Hugging Face directories: config.json and safetensors, in one file or in shards with an index."""

import contextlib
import dataclasses
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
from gemma3_jax.checkpoint import encoding, hf_config, hf_names, names, tensor_file, tensor_source
from gemma3_jax.durable import json_file
from gemma3_jax.model import config
from gemma3_jax.tokenizer import directory as tokenizer_directory

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"  # of PEFT: its directory holds what is added to the weights of another model
SHARD = "model-{:05d}-of-{:05d}.safetensors"
SHARD_BYTES = 1 << 30
DTYPES = dict(zip(("F32", "BF16", "F16"), tensor_source.DTYPES, strict=True))


def is_hf(path: pathlib.Path) -> bool:
    """Whether `path` looks like a Hugging Face directory, complete or not."""
    return any((path / name).exists() for name in (CONFIG, WEIGHTS, INDEX, ADAPTER))


def open_source(path: pathlib.Path) -> tensor_source.TensorSource:
    """Returns the text model in a directory, after checking every name, shape and dtype.

    No tensor is read yet, except a repeated head, which is compared with the table, and rows behind the vocabulary.
    Raises: ValueError naming the file and the tensor, if one is missing, unknown, or of another shape or dtype, or if a
    file is missing, cut short or not safetensors.
    """
    check_is_model(path)
    model, architecture = hf_config.read(existing(path / CONFIG))
    notes: list[str] = []
    model = _with_added_rows(path, model, notes.append)
    files = _tensor_files(path)
    if model.num_layers > len(files):  # checked before all tensors of so many layers are listed
        raise ValueError(
            f"{path / CONFIG}: num_hidden_layers is {model.num_layers}, but there are {len(files)} tensors"
        )
    weights = path / (WEIGHTS if (path / WEIGHTS).exists() else INDEX)
    text, num_others = hf_names.text_model(
        str(weights), set(files), has_image_part=architecture in hf_config.IMAGE_ARCHITECTURES
    )
    if num_others:
        notes.append(f"{path}: text part only; {num_others} vision tensors left out")
    slots = {names.hf_name(slot): slot for slot in names.slots(model)}
    # What is unknown is named as the file names it.
    known = {name if name in slots else text[name] for name in text.keys() - {hf_names.HEAD}}
    tensor_source.check_names(str(weights), set(slots), known)

    padded = names.dim_sizes(model, padded=True)
    tensors = {}
    for name, slot in slots.items():
        stored = text[name]
        dtype = check_tensor(files[stored], stored, names.shape_of(slot.spec.hf_layout, padded))
        tensors[slot] = tensor_source.StoredTensor(dtype, functools.partial(_read, files[stored], stored, slot, model))
    table = text[hf_names.TABLE]
    if head := text.get(hf_names.HEAD):
        check_tensor(files[head], head, names.shape_of("V D", padded))
        _check_tied(files, head, table)
    padding = functools.partial(_read_padding, files[table], table, model) if model.vocab_padding else None
    if padding and np.any(padding()):
        notes.append(
            f"{path}: the last {model.vocab_padding} rows of the table, behind its tokens, are not zero; only Hugging "
            "Face directories hold them"
        )
    return tensor_source.TensorSource(model, tensors, tuple(notes), padding=padding, architecture=architecture)


def _with_added_rows(path: pathlib.Path, model: config.Config, note: Callable[[str], None]) -> config.Config:
    """Returns the model with the rows behind the vocabulary of Gemma as part of it, if added tokens have them.

    What is wrong with the files of the tokenizer is noted: whoever reads the weights alone needs none of them.
    """
    if not model.vocab_padding:
        return model
    try:
        last, text = tokenizer_directory.last_added(path, note)
    except (ValueError, OSError) as error:
        note(f"warning: {error}; tokens that it adds are left out")
        return model
    if last < model.vocab_size:
        return model
    rows = model.vocab_size + model.vocab_padding
    note(
        f"{path}: all {rows} rows of its table are its vocabulary, as {text!r:.40} was added with id {last}: use "
        f"vocab_size {rows} and vocab_padding 0, or remove it from the files of its tokenizer"
    )
    return dataclasses.replace(model, vocab_size=rows, vocab_padding=0)


def check_is_model(path: pathlib.Path) -> None:
    """Raises: ValueError if a directory has weights of another format or without index."""
    if any((path / name).exists() for name in (WEIGHTS, INDEX)):
        return
    if shards := sorted(file.name for file in path.glob("model-*-of-*.safetensors")):
        raise ValueError(
            f"{path / WEIGHTS} does not exist; a Hugging Face directory holds it, or {shards[0]} and its like with "
            f"{INDEX}, which is missing"
        )
    others = sorted(file.name for file in path.glob("pytorch_model*.bin"))
    if others and not any(path.glob("*.safetensors")):
        raise ValueError(
            f"{path} has weights in {others[0]}, which is not read, as such a file can hold code; load it with "
            "Transformers, and save_pretrained it, which writes safetensors"
        )


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
    padding: Callable[[], np.ndarray] | None = None,
) -> tensor_source.Write:
    """Creates the files of a Gemma3ForCausalLM in an existing directory; returns what writes a tensor into them.

    Tensors are stored in `dtype`, or each in that of `shapes`. With `plan` they are rounded first, to the values of its
    formats, and are float32 if there is no `dtype`. `special_ids` has the ids of config.json that are not those of
    Gemma's own tokenizer; `padding` returns the rows of the table behind the vocabulary, which are zero otherwise.
    Equal parameters give equal bytes.
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
        if "V" in slot.spec.layout and model.vocab_padding:
            zeros = np.zeros((model.vocab_padding, rows.shape[1]), rows.dtype)
            rows = np.concatenate([rows, padding() if padding else zeros])
        if plan:
            rows = encoding.rounded(name, rows, plan.format_of(slot.spec))
        rows = rows.astype(_dtype(slot, shapes, dtype), copy=False)
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
    weight_map = json_file.read_object(path / INDEX).get("weight_map")
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


def check_tensor(file: pathlib.Path, name: str, shape: tuple[int, ...], source: str = CONFIG) -> np.dtype:
    """Returns a tensor's dtype, after checking its shape, which `source` asks for."""
    with opened(file) as handle:
        header = handle.get_slice(name)
        stored_shape, dtype = tuple(header.get_shape()), header.get_dtype()
    if stored_shape != shape:
        raise ValueError(f"{file}: tensor {name} has shape {stored_shape}; {source} asks for {shape}")
    if dtype not in DTYPES:
        raise ValueError(f"{file}: tensor {name} is {dtype}; it must be one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _check_tied(files: dict[str, pathlib.Path], head: str, table: str) -> None:
    """Raises: ValueError if a repeated head has other numbers than the table. Reads a few rows at a time."""
    with opened(files[head]) as head_file, opened(files[table]) as table_file:
        head_rows, table_rows = head_file.get_slice(head), table_file.get_slice(table)
        num_rows = head_rows.get_shape()[0]
        # One that was saved in another dtype has the same numbers in float32, which holds all of them.
        dtype = None if head_rows.get_dtype() == table_rows.get_dtype() else np.float32
        for start in range(0, num_rows, 8192):
            end = min(start + 8192, num_rows)
            head_part, table_part = head_rows[start:end], table_rows[start:end]
            if dtype:
                head_part, table_part = head_part.astype(dtype), table_part.astype(dtype)
            if head_part.tobytes() != table_part.tobytes():
                raise ValueError(
                    f"{files[head]}: tensor {head} differs from {table}; the head of a Gemma 3 model is its table"
                )


def _read(file: pathlib.Path, name: str, slot: names.Slot, model: config.Config) -> np.ndarray:
    with opened(file) as handle:
        # Only the table has V, and only its rows can be padding.
        x = handle.get_slice(name)[: model.vocab_size] if "V" in slot.spec.layout else handle.get_tensor(name)
    return names.relayout(x, slot.spec.hf_layout, slot.spec.layout, names.dim_sizes(model))


def _read_padding(file: pathlib.Path, name: str, model: config.Config) -> np.ndarray:
    with opened(file) as handle:
        return handle.get_slice(name)[model.vocab_size :]


def num_bytes(model: config.Config, shapes: dict, dtype: DTypeLike | None = None) -> int:
    """Returns the bytes of the tensors in `dtype`, or each in that of `shapes` (or of parameters)."""
    return sum(_num_bytes(slot, model, shapes, dtype) for slot in names.slots(model))


def _num_bytes(slot: names.Slot, model: config.Config, shapes: dict, dtype: DTypeLike | None) -> int:
    name, shape = _form(slot, model, shapes, dtype)
    return int(np.prod(shape)) * DTYPES[name].itemsize


def _form(slot: names.Slot, model: config.Config, shapes: dict, dtype: DTypeLike | None) -> tuple[str, tuple[int, ...]]:
    """Returns the dtype, as safetensors calls it, and the shape that a tensor is stored in."""
    shape = names.shape_of(slot.spec.hf_layout, names.dim_sizes(model, padded=True))
    return dtype_name(_dtype(slot, shapes, dtype)), shape


def dtype_name(dtype: DTypeLike) -> str:
    """Returns what safetensors calls a dtype of DTYPES."""
    return next(name for name, known in DTYPES.items() if known == dtype)


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
