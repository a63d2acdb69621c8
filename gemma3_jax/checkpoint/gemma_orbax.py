"""The Orbax tree that the JAX `gemma` library publishes: nested or flat keys, one entry per layer or stacked layers."""

import functools
import pathlib
import re
from collections.abc import Callable

import numpy as np
from orbax.checkpoint import v1 as ocp

from gemma3_jax.checkpoint import hf_config, names, orbax
from gemma3_jax.checkpoint.source import FLOATS, Source, Tensor, check_names
from gemma3_jax.model import config

ROOTS = ("params/", "rlx_networks/policy_network/", "transformer/")  # each may stand before a key, in this order
VISION = ("SigLiPFromPatches_0/", "vision_encoder/", "embedder/mm_")
STACKED = re.compile(r"stacked_layers/attention_type_(\d+)/(.*)")


def open_source(path: pathlib.Path, model: config.Config | None = None) -> Source:
    """The text model in a published checkpoint. `model` None finds the published size that has these shapes.

    Raises: ValueError naming the checkpoint and the tensor: missing, extra or of another shape; or when no published
    size fits and no `model` is given.
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
    check_names(str(path), {name for name, _ in slots.values()}, set(leaves))
    sizes, tensors = names.dim_sizes(model), {}
    read_leaf = _leaf_reader(path, tree)
    # In the order of the published names, so that the slots that share a tensor follow one another.
    for slot, (name, index) in sorted(slots.items(), key=lambda item: item[1]):
        key_path, leaf = leaves[name]
        shape = names.shape_of(slot.row.published_layout, sizes)
        if slot.row.published_index is not None:
            shape = (2, *shape)
        if STACKED.match(name):
            num_turns = sum(1 for other, place in slots.items() if place[0] == name and other.row == slot.row)
            shape = (num_turns, *shape)
        if tuple(leaf.shape) != shape:
            raise ValueError(f"{path}: tensor {name} has shape {tuple(leaf.shape)}; the model asks for {shape}")
        read = functools.partial(_read_part, read_leaf, key_path, index, slot.row, sizes)
        dtype = np.dtype(leaf.dtype)
        if dtype not in FLOATS:
            raise ValueError(f"{path}: tensor {name} is {dtype}; it must be one of {', '.join(map(str, FLOATS))}")
        tensors[slot] = Tensor(dtype, read)
    notes = (f"{path}: text part only; {skipped} vision tensors left out",) if skipped else ()
    return Source(model, tensors, notes)


def _canonical(key_path: tuple) -> str:
    """A leaf's name as in the names table, whatever the nesting."""
    name = "/".join(key_path)
    for root in ROOTS:
        name = name.removeprefix(root)
    # The library's own nested tree holds the two MLP leaves without the last "/w".
    return f"{name}/w" if name.endswith(("/mlp/gating_einsum", "/mlp/linear")) else name


def _published_name(slot: names.Slot, model: config.Config, *, stacked: bool) -> tuple[str, tuple[int, ...]]:
    """The tensor a slot is read from, and the index of the slot's part in it."""
    part = () if slot.row.published_index is None else (slot.row.published_index,)
    if slot.layer is None:
        return slot.row.published, part
    if not stacked:
        return f"layer_{slot.layer}/{slot.row.published}", part
    turn, place = divmod(slot.layer, model.period)
    return f"stacked_layers/attention_type_{place}/{slot.row.published}", (turn, *part)


def _published_size(path: pathlib.Path, shapes: dict[str, tuple[int, ...]]) -> config.Config:
    table = shapes["embedder/input_embedding"]
    per_layer = {name for name in shapes if name.endswith("attn/q_einsum/w")}
    num_layers = sum(shapes[name][0] if STACKED.match(name) else 1 for name in per_layer)
    for model in config.SIZES.values():
        if (model.vocab_size, model.embed_dim) == table and model.num_layers == num_layers:
            return model
    raise ValueError(
        f"{path} has {num_layers} layers and a table of shape {table}, which is no published size; "
        f"say what model it is with --model=FILE, a {hf_config.ARCHITECTURES[0]} config.json"
    )


def _leaf_reader(path: pathlib.Path, tree: dict) -> Callable[[tuple], np.ndarray]:
    """A function that reads one tensor of the checkpoint to the host, and remembers the last one it read."""

    @functools.lru_cache(maxsize=1)
    def read_leaf(wanted: tuple) -> np.ndarray:
        def abstract(node, key_path=()):
            if isinstance(node, dict):
                return {key: abstract(child, (*key_path, key)) for key, child in node.items()}
            return np.empty(node.shape, node.dtype) if key_path == wanted else ocp.PLACEHOLDER

        with orbax.reading(path / "/".join(wanted)):
            return names.get(ocp.load(path.absolute(), abstract(tree)), wanted)

    return read_leaf


def _read_part(read_leaf, key_path: tuple, index: tuple[int, ...], row: names.Row, sizes: dict) -> np.ndarray:
    return names.relayout(read_leaf(key_path)[index], row.published_layout, row.layout, sizes)
