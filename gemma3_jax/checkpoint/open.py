"""Opens a checkpoint of any known kind."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jax.typing import DTypeLike

from gemma3_jax import console
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
    tensor_source,
)
from gemma3_jax.model import config


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A recognized checkpoint: checked, not yet loaded.

    `load(mesh, dtype=None, progress=...)` returns the parameters as one tree, sharded over the mesh, in `dtype` or as
    stored; progress is in bytes. `source` reads them one tensor at a time, to the host.
    """

    path: pathlib.Path  # that of its newest checkpoint, for a run directory
    kind: str
    model: config.Config
    shapes: dict  # shape and stored dtype of every parameter
    notes: tuple[str, ...]  # for the user, such as that the vision tower is left out
    load: Callable[..., dict]
    source: tensor_source.TensorSource
    tokenizer: str = ""  # digest of the one it was trained with; empty: unknown
    # `format` and `embedding` that it was trained to be stored in (kind orbax), or that it is rounded to (other kinds).
    quant: dict = dataclasses.field(default_factory=dict)

    def fingerprint(self) -> str:
        """Returns a short name for the contents, the same for a copy elsewhere."""
        return fingerprint.digest_of(self.path)

    def num_bytes(self, dtype: DTypeLike | None = None) -> int:
        """Returns the bytes of the parameters in `dtype`, or as stored."""
        return sum(leaf.size * np.dtype(dtype or leaf.dtype).itemsize for leaf in jax.tree.leaves(self.shapes))


def find_model(name: str | None, flag: str = "--model") -> config.Config | None:
    """Returns the published size of that name, or the model of a config.json at that path; None for None.

    Raises: ValueError naming the flag if it is neither.
    """
    if name is None or name in config.SIZES:
        return config.SIZES.get(name)
    if not pathlib.Path(name).is_file():
        raise ValueError(f"{flag} is {name}; it must be one of {', '.join(config.SIZES)}, or a config.json that exists")
    return hf_config.read(pathlib.Path(name))[0]


def open_checkpoint(path: pathlib.Path, model: config.Config | None = None) -> Checkpoint:
    """Recognizes and checks the checkpoint at `path`. `model` is for Orbax trees of the gemma library alone.

    Raises: ValueError if there is none, if it is damaged or of no known kind, or if it stores its model and `model` is
    passed too.
    """
    is_gguf = path.is_file() and gguf_header.is_gguf(path)
    if not is_gguf and not path.is_dir():
        raise ValueError(f"{path} is no directory, and no GGUF file; a checkpoint is one or the other")
    if (path / manager.CHECKPOINTS).is_dir():
        path = _newest(path / manager.CHECKPOINTS)
    is_ours = orbax.is_ours(path)
    is_published = orbax.is_orbax(path) and not is_ours
    if model is not None and not is_published:
        raise ValueError(f"--model is for Orbax trees of the gemma library; {path} stores which model it is")
    if is_gguf:
        return _from_source(path, "gguf", gguf_file.open_source(path))
    if is_ours:
        return _open_ours(path)
    if is_published:
        return _from_source(path, "published", gemma_orbax.open_source(path, model))
    if packed.is_packed(path):
        return _from_source(path, "hf", packed.open_source(path))
    if hf.is_hf(path):
        return _from_source(path, "hf", hf.open_source(path))
    if files := sorted(path.glob("*.gguf")):
        raise ValueError(f"{path} holds {files[0].name}; a GGUF file is named itself, not its directory")
    raise ValueError(
        f"{path} is no known kind of checkpoint; it must be a run directory, an Orbax checkpoint of this program, "
        f"a Hugging Face directory ({hf.CONFIG}, {hf.WEIGHTS}), a GGUF file, or an Orbax tree of the gemma library"
    )


def _open_ours(path: pathlib.Path) -> Checkpoint:
    source = orbax.open_source(path)

    def load(mesh, dtype=None, progress=console.ignore):
        params = orbax.load(path, mesh, dtype)  # each device reads its shards
        progress(sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
        return params

    return dataclasses.replace(_from_source(path, "orbax", source), load=load, tokenizer=orbax.read_tokenizer(path))


def _from_source(path: pathlib.Path, kind: str, source: tensor_source.TensorSource) -> Checkpoint:
    load = functools.partial(load_sharded.load, source)
    return Checkpoint(path, kind, source.model, source.shapes(), source.notes, load, source, quant=dict(source.quant))


def _newest(checkpoints: pathlib.Path) -> pathlib.Path:
    steps = manager.steps(checkpoints)
    if not steps:
        raise ValueError(f"{checkpoints} holds no checkpoint yet")
    return checkpoints / str(steps[0])
