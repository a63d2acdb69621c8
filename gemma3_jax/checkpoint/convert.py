"""Opens a checkpoint of any known kind, and writes it as another."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jax.typing import DTypeLike

from gemma3_jax.checkpoint import hf, hf_config, names, placing, published, store, target
from gemma3_jax.model import config

FORMATS = ("orbax", "hf")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A recognised checkpoint: checked, not yet loaded. `load` takes (mesh, dtype or None, progress in bytes)."""

    kind: str
    model: config.Config
    dtypes: dict[tuple[str, ...], np.dtype]  # as stored, by parameter path
    notes: tuple[str, ...]
    load: Callable[..., dict]

    def num_bytes(self, dtype: DTypeLike | None = None) -> int:
        """Bytes of the parameters as `dtype`, or as stored."""
        sizes = names.dim_sizes(self.model)
        return sum(
            math.prod(names.shape_of(slot.row.layout, sizes)) * np.dtype(dtype or self.dtypes[slot.path]).itemsize
            for slot in names.slots(self.model)
        )


def find_model(name: str | None) -> config.Config | None:
    """A published size by its name, or the model of a config.json by its path; None for None."""
    if name is None or name in config.SIZES:
        return config.SIZES.get(name)
    if not pathlib.Path(name).is_file():
        raise ValueError(
            f"--model is {name}; it must be one of {', '.join(config.SIZES)}, or a config.json that exists"
        )
    return hf_config.read(pathlib.Path(name))[0]


def open_checkpoint(path: pathlib.Path, model: config.Config | None = None) -> Checkpoint:
    """Recognises the kind of checkpoint at `path`. `model` is for published Orbax trees of unpublished sizes.

    Raises: ValueError if nothing is there, if it is of no known kind, or if it is damaged.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; a checkpoint is a directory")
    if store.is_ours(path):
        model, stored = store.read_model(path)
        dtypes = {slot.path: names.get(stored, slot.path).dtype for slot in names.slots(model)}

        def load(mesh, dtype=None, progress=lambda num_bytes: None):
            params = store.load(path, mesh, dtype)
            progress(jax.tree.reduce(lambda total, leaf: total + leaf.nbytes, params, 0))
            return params

        return Checkpoint("orbax", model, dtypes, (), load)
    if store.is_orbax(path):
        kind, source = "published", published.open_source(path, model)
    elif path.is_dir() and hf.is_hf(path):
        kind, source = "hf", hf.open_source(path)
    else:
        raise ValueError(
            f"{path} is no known kind of checkpoint; it must be an Orbax checkpoint of this program, a Hugging Face "
            f"directory ({hf.CONFIG}, {hf.WEIGHTS}), or an Orbax tree of the gemma library"
        )
    dtypes = {slot.path: tensor.dtype for slot, tensor in source.tensors.items()}
    return Checkpoint(kind, source.model, dtypes, source.notes, functools.partial(placing.load, source))


def write(
    path: pathlib.Path,
    kind: str,
    model: config.Config,
    params: dict,
    dtype: DTypeLike | None = None,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Writes `params` as a new checkpoint of `kind` at `path`: whole, or not at all."""
    with target.new_directory(path) as partial:
        if kind == "hf":
            partial.mkdir()
            hf.write(partial, model, params, dtype, progress)
        else:
            assert kind == "orbax", kind
            with target.uninterrupted(partial):
                store.save(partial, model, params)
