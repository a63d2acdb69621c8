"""Hugging Face directories: config.json and safetensors, in one file or in shards with an index."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.typing import DTypeLike

from gemma3_jax.checkpoint import encoding, hf_config, names
from gemma3_jax.checkpoint.source import FLOATS, Source, Tensor, check_names
from gemma3_jax.model import config

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD = "model-{:05d}-of-{:05d}.safetensors"
SHARD_BYTES = 1 << 30  # host memory while writing is one shard, or the largest tensor if that is more
DTYPES = dict(zip(("F32", "BF16", "F16"), FLOATS, strict=True))
# What stands before "layers.0..." in a text model, and in the text part of an image model, older and newer.
PREFIXES = ("model.", "language_model.model.", "model.language_model.")
VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
TIED_HEADS = {"lm_head.weight", "language_model.lm_head.weight"}  # the table once more, in files that repeat it


def is_hf(path: pathlib.Path) -> bool:
    """Whether `path` is meant to be a Hugging Face directory."""
    return (path / CONFIG).exists() or (path / WEIGHTS).exists() or (path / INDEX).exists()


def open_source(path: pathlib.Path) -> Source:
    """The text model in a directory, with every name, shape and dtype checked; of the tensors only a repeated head is
    read yet, and held against the table.

    Raises: ValueError naming the file and the tensor: missing, extra, of another shape or dtype, in a file that is cut
    short or not safetensors, or in a shard that is not there.
    """
    model, architecture = hf_config.read(existing(path / CONFIG))
    files = _tensor_files(path)
    if model.num_layers > len(files):  # before a list of all their tensors is made
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
    check_names(str(weights), set(slots), set(files) - skipped - heads)

    padded = names.dim_sizes(model, padded=True)
    tensors = {}
    for name, slot in slots.items():
        dtype = _check(files[name], name, names.shape_of(slot.row.hf_layout, padded))
        tensors[slot] = Tensor(dtype, _reader(files[name], name, slot, model))
    for head in heads:
        _check(files[head], head, names.shape_of("V D", padded))
        _check_tied(files, head, f"{prefix}{names.ROOT[0].hf}")
    return Source(model, tensors, notes)


def write(
    directory: pathlib.Path,
    model: config.Config,
    params: dict,
    progress: Callable[[int], None] = lambda num_bytes: None,
    *,
    plan: encoding.Plan | None = None,
    dtype: DTypeLike | None = None,
) -> None:
    """Writes `params` into an existing, empty directory as Gemma3ForCausalLM, in `dtype` or each in its own.

    `plan` rounds them first, to what they come back with from the formats it says; without `dtype` they are float32
    then. Equal parameters give equal bytes.
    Raises: OSError where the disk refuses. ValueError naming a parameter that a format cannot hold.
    """
    dtype = dtype or (np.float32 if plan else None)
    # All are read as the one in config.json.
    widest = jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(params)))
    (directory / CONFIG).write_text(hf_config.write(model, np.dtype(dtype or widest).name))
    shards = _plan_shards(model, params, dtype)
    index, total = {}, 0
    for number, slots in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else SHARD.format(number, len(shards))
        tensors = {names.hf_name(slot): _export(slot, model, params, plan, dtype) for slot in slots}
        try:
            safetensors.numpy.save_file(tensors, directory / file, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:  # what the library makes of a full disk
            raise OSError(f"{directory / file}: {error}") from error
        shutil.copymode(directory / CONFIG, directory / file)  # the library makes files nobody else may read
        index |= dict.fromkeys(tensors, file)
        written = sum(x.nbytes for x in tensors.values())
        total += written
        progress(written)
    if len(shards) > 1 or plan:  # readers that would take every file of safetensors look here first
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (directory / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def existing(path: pathlib.Path) -> pathlib.Path:
    """A file of a directory. Raises: ValueError if it is not there."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; a Hugging Face directory holds {CONFIG} and {WEIGHTS} or {INDEX}")
    return path


@contextlib.contextmanager
def opened(file: pathlib.Path):
    """A safetensors file to read from. Raises: ValueError naming it if it is damaged or may not be read."""
    if not os.access(file, os.R_OK):
        raise ValueError(f"{file} may not be read")
    try:
        with safetensors.safe_open(file, framework="numpy") as handle:
            yield handle
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{file} is cut short, or not a safetensors file: {error}") from error


def _tensor_files(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """Which file holds each tensor."""
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
        named = {name for name, place in files.items() if place == file}
        if not file.is_file():
            raise ValueError(f"{path / INDEX} names {file.name} (tensor {min(named)}), which does not exist")
        with opened(file) as handle:
            check_names(str(file), named, set(handle.keys()))
    return files


def _check(file: pathlib.Path, name: str, shape: tuple[int, ...]) -> np.dtype:
    """The tensor's dtype, once its shape is what config.json asks for."""
    with opened(file) as handle:
        header = handle.get_slice(name)
        found, dtype = tuple(header.get_shape()), header.get_dtype()
    if found != shape:
        raise ValueError(f"{file}: tensor {name} has shape {found}; {CONFIG} asks for {shape}")
    if dtype not in DTYPES:
        raise ValueError(f"{file}: tensor {name} is {dtype}; it must be one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _check_tied(files: dict[str, pathlib.Path], head: str, table: str) -> None:
    """Raises: ValueError if a repeated head is not the table, bit for bit; a few rows at a time."""
    with opened(files[head]) as of_head, opened(files[table]) as grad_table:
        head_rows, table_rows = of_head.get_slice(head), grad_table.get_slice(table)
        num_rows = head_rows.get_shape()[0]
        for start in range(0, num_rows, 8192):
            end = min(start + 8192, num_rows)
            if head_rows[start:end].tobytes() != table_rows[start:end].tobytes():
                raise ValueError(
                    f"{files[head]}: tensor {head} differs from {table}; the head of a Gemma 3 model is its table"
                )


def _reader(file: pathlib.Path, name: str, slot: names.Slot, model: config.Config) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        with opened(file) as handle:
            # Only the table has V, and only its rows can be padding.
            x = handle.get_slice(name)[: model.vocab_size] if "V" in slot.row.layout else handle.get_tensor(name)
        return names.relayout(x, slot.row.hf_layout, slot.row.layout, names.dim_sizes(model))

    return read


def _export(
    slot: names.Slot, model: config.Config, params: dict, plan: encoding.Plan | None, dtype: DTypeLike | None
) -> np.ndarray:
    x = encoding.rows(slot, model, params)
    if plan:
        x = encoding.rounded(names.hf_name(slot), x, plan.format_of(slot.row))
    if "V" in slot.row.layout:
        x = np.pad(x, ((0, model.vocab_padding), (0, 0)))
    return x.astype(dtype or x.dtype, copy=False)


def num_bytes(model: config.Config, params: dict, dtype: DTypeLike | None = None) -> int:
    """Bytes of the tensors, given parameters or their shapes."""
    return sum(_num_bytes(slot, model, params, dtype) for slot in names.slots(model))


def _num_bytes(slot: names.Slot, model: config.Config, params: dict, dtype: DTypeLike | None) -> int:
    shape = names.shape_of(slot.row.hf_layout, names.dim_sizes(model, padded=True))
    return int(np.prod(shape)) * np.dtype(dtype or names.get(params, slot.path).dtype).itemsize


def _plan_shards(model: config.Config, params: dict, dtype: DTypeLike | None) -> list[list[names.Slot]]:
    """The slots of each file, in order, with at most SHARD_BYTES in a file unless one tensor is larger."""
    shards, room = [[]], SHARD_BYTES
    for slot in names.slots(model):
        size = _num_bytes(slot, model, params, dtype)
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(slot)
        room -= size
    return shards
