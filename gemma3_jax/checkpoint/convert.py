"""Opens a checkpoint of any known kind, and writes it as another."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jax.typing import DTypeLike

from gemma3_jax.checkpoint import fingerprint, hf, hf_config, placing, published, series, store, target
from gemma3_jax.model import config

FORMATS = ("orbax", "hf")


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

    def fingerprint(self) -> str:
        """A short name for what it holds: the same for a copy, wherever it lies."""
        return fingerprint.of(self.path)

    def num_bytes(self, dtype: DTypeLike | None = None) -> int:
        """Bytes of the parameters as `dtype`, or as stored."""
        return sum(leaf.size * np.dtype(dtype or leaf.dtype).itemsize for leaf in jax.tree.leaves(self.shapes))


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
    """Recognises the kind of checkpoint at `path`. `model` is for Orbax trees of the gemma library alone.

    Raises: ValueError if nothing is there, if it is of no known kind, if it is damaged, or if it says itself what model
    it is and `model` is given too.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is no directory; a checkpoint is one")
    if (path / series.CHECKPOINTS).is_dir():
        path = _newest(path / series.CHECKPOINTS)
    is_ours = store.is_ours(path)
    is_published = store.is_orbax(path) and not is_ours
    if model is not None and not is_published:
        raise ValueError(f"--model is for Orbax trees of the gemma library; {path} says itself what model it is")
    if is_ours:
        model, shapes = store.read_model(path)

        def load(mesh, dtype=None, progress=lambda num_bytes: None):
            params = store.load(path, mesh, dtype)
            progress(sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
            return params

        return Checkpoint(path, "orbax", model, shapes, (), load, store.read_tokenizer(path))
    if is_published:
        kind, source = "published", published.open_source(path, model)
    elif hf.is_hf(path):
        kind, source = "hf", hf.open_source(path)
    else:
        raise ValueError(
            f"{path} is no known kind of checkpoint; it must be a run directory, an Orbax checkpoint of this program, "
            f"a Hugging Face directory ({hf.CONFIG}, {hf.WEIGHTS}), or an Orbax tree of the gemma library"
        )
    shapes = placing.stored_shapes(source)
    return Checkpoint(path, kind, source.model, shapes, source.notes, functools.partial(placing.load, source))


def _newest(checkpoints: pathlib.Path) -> pathlib.Path:
    found = series.steps(checkpoints)
    if not found:
        raise ValueError(f"{checkpoints} holds no checkpoint yet")
    return checkpoints / str(found[0])


def write(
    path: pathlib.Path,
    kind: str,
    model: config.Config,
    params: dict,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Writes `params`, each in its dtype, as a new checkpoint of `kind` at `path`: whole, or not at all."""
    with target.new_directory(path) as partial:
        if kind == "hf":
            partial.mkdir()
            hf.write(partial, model, params, progress)
        else:
            assert kind in FORMATS, kind
            with target.uninterrupted(partial):
                store.save(partial, model, params)
