"""Orbax trees as the JAX `gemma` library publishes them: nested or flat keys, an entry per layer or stacked layers."""

import functools
import pathlib
import re
from collections.abc import Callable

import numpy as np
import orbax.checkpoint as older_ocp
from jax.typing import DTypeLike
from orbax.checkpoint import v1 as ocp

from gemma3_jax import console
from gemma3_jax.checkpoint import hf_config, names, orbax, tensor_source
from gemma3_jax.model import config

ROOTS = ("params/", "rlx_networks/policy_network/", "transformer/")  # optional prefixes of a key, in this order
VISION = ("SigLiPFromPatches_0/", "vision_encoder/", "embedder/mm_")
STACKED = re.compile(r"stacked_layers/attention_type_(\d+)/(.*)")


def open_source(path: pathlib.Path, model: config.Config | None = None) -> tensor_source.TensorSource:
    """Returns the text model of a published checkpoint; without `model`, of the published size with these shapes.

    Raises: ValueError naming the checkpoint and the tensor that is missing, unknown or of another shape; or if no
    published size fits and there is no `model`.
    """
    with orbax.reading(path):
        tree = ocp.metadata(path.absolute()).metadata
        if not isinstance(tree, dict):
            raise ValueError("the list of its arrays is damaged, or no nested dict")
    leaves, skipped = {}, 0
    for key_path, leaf in names.flatten(tree):
        name = _canonical(key_path)
        if name.startswith(VISION):
            skipped += 1
        elif hasattr(leaf, "shape"):
            leaves[name] = (key_path, leaf)
        else:
            raise ValueError(f"{path}: {name} is no array; it is not a published Gemma checkpoint")
    _, table = leaves.get("embedder/input_embedding", (None, None))
    if table is None:
        raise ValueError(f"{path} lacks tensor embedder/input_embedding; it is not a published Gemma checkpoint")
    model = model or _published_size(path, {name: tuple(leaf.shape) for name, (_, leaf) in leaves.items()})

    stacked = any(STACKED.match(name) for name in leaves)
    slots = {slot: _published_name(slot, model, stacked=stacked) for slot in names.slots(model)}
    tensor_source.check_names(str(path), {name for name, _ in slots.values()}, set(leaves))
    tensors = {}
    reader = orbax.ArrayReader(tree, lambda abstract: ocp.load(path.absolute(), abstract))
    # In the order of the published names, so that the slots that share an array follow one another.
    for slot, (name, index) in sorted(slots.items(), key=lambda item: item[1]):
        key_path, leaf = leaves[name]
        shape = _published_shape(slot, name, slots, model)
        if tuple(leaf.shape) != shape:
            raise ValueError(f"{path}: tensor {name} has shape {tuple(leaf.shape)}; the model asks for {shape}")
        dtype = np.dtype(leaf.dtype)
        if dtype not in tensor_source.DTYPES:
            allowed = ", ".join(map(str, tensor_source.DTYPES))
            raise ValueError(f"{path}: tensor {name} is {dtype}; it must be one of {allowed}")
        read = functools.partial(_read, path, reader, key_path, index, slot.spec, names.dim_sizes(model))
        tensors[slot] = tensor_source.StoredTensor(dtype, read)
    notes = (f"{path}: text part only; {skipped} vision tensors left out",) if skipped else ()
    return tensor_source.TensorSource(model, tensors, notes)


def write(
    path: pathlib.Path,
    source: tensor_source.TensorSource,
    dtype: DTypeLike | None,
    progress: Callable[[int], None] = console.ignore,
) -> None:
    """Writes a nested tree with an entry per layer, in `dtype` or as stored, which the library's load_params reads.

    By Orbax's older API, which the library reads with; it takes a tree as a whole. The tree does not say its model.
    Raises: OSError if the disk refuses.
    """
    parts: dict[str, dict] = {}
    for slot, tensor in source.tensors.items():
        name, index = _published_name(slot, source.model, stacked=False)
        x = names.relayout(tensor.read(), slot.spec.layout, slot.spec.published_layout, names.dim_sizes(source.model))
        parts.setdefault(name, {})[index] = x = x.astype(dtype or tensor.dtype)
        progress(x.nbytes)
    tree: dict = {}
    for name, by_index in parts.items():
        *parents, last = name.removesuffix("/w" if "/mlp/" in name else "").split("/")
        node = functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)
        node[last] = by_index[()] if () in by_index else np.stack([by_index[index] for index in sorted(by_index)])
    try:
        with older_ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), tree)
    except (ValueError, OSError) as error:  # tensorstore raises ValueError for a full disk
        raise OSError(f"{path} cannot be written: {orbax.first_line(orbax.first_cause(error))}") from error


def _canonical(key_path: tuple) -> str:
    """Returns a leaf's name as in the table of names, however the tree is nested."""
    name = "/".join(key_path)
    for root in ROOTS:
        name = name.removeprefix(root)
    # The library's nested tree holds the two MLP leaves without the last "/w".
    return f"{name}/w" if name.endswith(("/mlp/gating_einsum", "/mlp/linear")) else name


def _published_name(slot: names.Slot, model: config.Config, *, stacked: bool) -> tuple[str, tuple[int, ...]]:
    """Returns the tensor that a slot is part of, and the index of its part."""
    part = () if slot.spec.published_index is None else (slot.spec.published_index,)
    if slot.layer is None:
        return slot.spec.published, part
    if not stacked:
        return f"layer_{slot.layer}/{slot.spec.published}", part
    period, layer_in_period = divmod(slot.layer, model.period)
    return f"stacked_layers/attention_type_{layer_in_period}/{slot.spec.published}", (period, *part)


def _published_shape(slot: names.Slot, name: str, slots: dict, model: config.Config) -> tuple[int, ...]:
    """Returns the shape of the tensor `name`, which the slot is part of."""
    shape = names.shape_of(slot.spec.published_layout, names.dim_sizes(model))
    if slot.spec.published_index is not None:
        shape = (2, *shape)
    if STACKED.match(name):
        num_periods = sum(1 for other, (stack, _) in slots.items() if stack == name and other.spec == slot.spec)
        shape = (num_periods, *shape)
    return shape


def _published_size(path: pathlib.Path, shapes: dict[str, tuple[int, ...]]) -> config.Config:
    table = shapes["embedder/input_embedding"]
    per_layer = {name for name in shapes if name.endswith("attn/q_einsum/w")}
    num_layers = sum(shapes[name][0] if STACKED.match(name) else 1 for name in per_layer)
    for model in config.SIZES.values():
        if (model.vocab_size, model.embed_dim) == table and model.num_layers == num_layers:
            return model
    raise ValueError(
        f"{path} has {num_layers} layers and a table of shape {table}, which is no published size; "
        f"name its model with --model=FILE, a {hf_config.ARCHITECTURES[0]} config.json"
    )


def _read(
    path: pathlib.Path,
    reader: orbax.ArrayReader,
    key_path: tuple[str, ...],
    index: tuple[int, ...],
    spec: names.ParamSpec,
    sizes: dict[str, int],
) -> np.ndarray:
    with orbax.reading(path / "/".join(key_path)):
        x = reader.read(key_path)[index]
    return names.relayout(x, spec.published_layout, spec.layout, sizes)
