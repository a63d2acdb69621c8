"""Opens a checkpoint of any known kind."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jax.typing import DTypeLike

from gemma3_jax.checkpoint import (
    fingerprint,
    gemma_orbax,
    gguf_file,
    gguf_header,
    hf,
    hf_config,
    load_sharded,
    manager,
    orbax,
    packed,
)
from gemma3_jax.checkpoint.source import Source
from gemma3_jax.model import config


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A recognised checkpoint: checked, not yet loaded. `load` takes (mesh, dtype or None, progress in bytes)."""

    path: pathlib.Path  # of a run directory that of its newest checkpoint
    kind: str
    model: config.Config
    shapes: dict  # shape and stored dtype of every parameter
    notes: tuple[str, ...]
    load: Callable[..., dict]
    tokenizer: str = ""  # digest of the one it was trained with; empty: not known
    # `format` and `embedding`: of kind orbax what it was trained to be stored in, of others what it is rounded to.
    quant: dict = dataclasses.field(default_factory=dict)

    def fingerprint(self) -> str:
        """A short name for what it holds: the same for a copy, wherever it lies."""
        return fingerprint.of(self.path)

    def num_bytes(self, dtype: DTypeLike | None = None) -> int:
        """Bytes of the parameters as `dtype`, or as stored."""
        return sum(leaf.size * np.dtype(dtype or leaf.dtype).itemsize for leaf in jax.tree.leaves(self.shapes))


def find_model(name: str | None, flag: str = "--model") -> config.Config | None:
    """A published size by its name, or the model of a config.json by its path; None for None.

    Raises: ValueError that names the flag if it is neither.
    """
    if name is None or name in config.SIZES:
        return config.SIZES.get(name)
    if not pathlib.Path(name).is_file():
        raise ValueError(f"{flag} is {name}; it must be one of {', '.join(config.SIZES)}, or a config.json that exists")
    return hf_config.read(pathlib.Path(name))[0]


def open_checkpoint(path: pathlib.Path, model: config.Config | None = None) -> Checkpoint:
    """Recognises the kind of checkpoint at `path`. `model` is for Orbax trees of the gemma library alone.

    Raises: ValueError if nothing is there, if it is of no known kind, if it is damaged, or if it says itself what model
    it is and `model` is given too.
    """
    is_gguf = path.is_file() and gguf_header.is_gguf(path)
    if not is_gguf and not path.is_dir():
        raise ValueError(f"{path} is no directory, and no GGUF file; a checkpoint is one or the other")
    if (path / manager.CHECKPOINTS).is_dir():
        path = _newest(path / manager.CHECKPOINTS)
    is_ours = orbax.is_ours(path)
    is_published = orbax.is_orbax(path) and not is_ours
    if model is not None and not is_published:
        raise ValueError(f"--model is for Orbax trees of the gemma library; {path} says itself what model it is")
    if is_gguf:
        return _from_source(path, "gguf", gguf_file.open_source(path))
    if is_ours:
        model, shapes = orbax.read_model(path)

        def load(mesh, dtype=None, progress=lambda num_bytes: None):
            params = orbax.load(path, mesh, dtype)
            progress(sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
            return params

        return Checkpoint(path, "orbax", model, shapes, (), load, orbax.read_tokenizer(path), orbax.read_quant(path))
    if is_published:
        return _from_source(path, "published", gemma_orbax.open_source(path, model))
    if packed.is_packed(path):
        return _from_source(path, "hf", packed.open_source(path))
    if hf.is_hf(path):
        return _from_source(path, "hf", hf.open_source(path))
    raise ValueError(
        f"{path} is no known kind of checkpoint; it must be a run directory, an Orbax checkpoint of this program, "
        f"a Hugging Face directory ({hf.CONFIG}, {hf.WEIGHTS}), a GGUF file, or an Orbax tree of the gemma library"
    )


def _from_source(path: pathlib.Path, kind: str, source: Source) -> Checkpoint:
    shapes, load = load_sharded.stored_shapes(source), functools.partial(load_sharded.load, source)
    return Checkpoint(path, kind, source.model, shapes, source.notes, load, quant=dict(source.quant))


def _newest(checkpoints: pathlib.Path) -> pathlib.Path:
    found = manager.steps(checkpoints)
    if not found:
        raise ValueError(f"{checkpoints} holds no checkpoint yet")
    return checkpoints / str(found[0])
