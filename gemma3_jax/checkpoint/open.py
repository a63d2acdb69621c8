"""Opens a checkpoint of any known kind."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jax.typing import DTypeLike

from gemma3_jax import console
from gemma3_jax.checkpoint import adapter as adapter_lib
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
    peft,
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
    adapter: adapter_lib.Adapter | None = None  # of kind "adapter" or "peft": what is merged into the base
    base: "Checkpoint | None" = None
    # `format` and `embedding` that it was trained to be stored in (kind orbax), or that it is rounded to (other kinds).
    quant: dict = dataclasses.field(default_factory=dict)

    def fingerprint(self) -> str:
        """Returns a short name for the contents, the same for a copy elsewhere."""
        own = fingerprint.digest_of(self.path)
        return f"{own} on {self.base.fingerprint()}" if self.base else own

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


def open_checkpoint(
    path: pathlib.Path, model: config.Config | None = None, *, base: pathlib.Path | None = None
) -> Checkpoint:
    """Recognizes and checks the checkpoint at `path`. `model` is for Orbax trees of the gemma library alone.

    Adapters open as the model that they are added to, with their factors merged; `base` is that model, if it is not
    where they say.
    Raises: ValueError if there is none, if it is damaged or of no known kind, or if it stores its model and `model` is
    passed too; if the base of an adapter is not there, of another shape, or not the one that it was trained on.
    """
    is_gguf = path.is_file() and gguf_header.is_gguf(path)
    if not is_gguf and not path.is_dir():
        raise ValueError(f"{path} is no directory, and no GGUF file; a checkpoint is one or the other")
    path = newest(path)
    is_ours = orbax.is_ours(path)
    is_adapter = peft.is_peft(path) or (is_ours and orbax.is_adapter(path))
    if base is not None and not is_adapter:
        raise ValueError(f"--base is {base}, which is for adapters; {path} holds a whole model")
    is_published = orbax.is_orbax(path) and not is_ours
    if model is not None and not is_published:
        raise ValueError(f"--model is for Orbax trees of the gemma library; {path} stores which model it is")
    if is_adapter:
        return _open_adapter(path, base)
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
        f"a Hugging Face directory ({hf.CONFIG}, {hf.WEIGHTS}), a directory of PEFT ({peft.CONFIG}), a GGUF file, or "
        "an Orbax tree of the gemma library"
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


def open_adapter(path: pathlib.Path, model: config.Config) -> adapter_lib.Adapter:
    """Opens the adapters alone at `path`, a run directory or one of PEFT, which are to be of `model`.

    Raises: ValueError if there are none, or they are of another shape.
    """
    path = newest(path)
    if peft.is_peft(path):
        return peft.open_adapter(path, model)
    if not (orbax.is_ours(path) and orbax.is_adapter(path)):
        raise ValueError(f"{path} holds no adapters; they are in a directory of PEFT ({peft.CONFIG}), or in a run's")
    theirs, opened = orbax.open_adapter(path)
    _check_shape(path, theirs, model, "the model")
    return opened


def _open_adapter(path: pathlib.Path, base_path: pathlib.Path | None) -> Checkpoint:
    """Opens adapters with their base, and as one with it."""
    is_peft = peft.is_peft(path)
    theirs, opened = (None, None) if is_peft else orbax.open_adapter(path)
    name = peft.base_of(path) if is_peft else opened.base
    if base_path is None and not (name and pathlib.Path(name).exists()):
        raise ValueError(
            f"{path} holds adapters, and their base {name!r:.200} is not there; name the model that they were trained "
            "on with --base=PATH, or put it there"
        )
    if _holds_adapters(base_path or pathlib.Path(name)):
        raise ValueError(
            f"{base_path or name} is the base of {path}, and holds adapters itself; merge those first (convert)"
        )
    base = open_checkpoint(base_path or pathlib.Path(name))
    opened = opened or peft.open_adapter(path, base.model)
    if theirs:
        _check_shape(path, theirs, base.model, str(base.path))
    is_known = not opened.base_digest or base.fingerprint() == opened.base_digest
    if not is_known and base_path is None:
        raise ValueError(
            f"{base.path} is not what it was when {path} was trained on it: its digest is {base.fingerprint()}, and "
            f"was {opened.base_digest}; put it back, or name the same weights with --base=PATH"
        )
    notes = (f"adapters of {path}: {opened.lora.name}",)
    if not is_known:
        notes += (f"warning: {base.path} is not the very base of {path}: its digest is another",)
    # The model as trained: an extension to longer sequences has another RoPE scale than its base.
    source = dataclasses.replace(adapter_lib.merged(base.source, opened), model=theirs or base.model)
    merged = _from_source(path, "peft" if is_peft else "adapter", source)
    tokenizer = base.tokenizer if is_peft else orbax.read_tokenizer(path)
    return dataclasses.replace(merged, notes=base.notes + notes, adapter=opened, base=base, tokenizer=tokenizer)


def _holds_adapters(path: pathlib.Path) -> bool:
    path = newest(path)
    return peft.is_peft(path) or (orbax.is_ours(path) and orbax.is_adapter(path))


def _check_shape(path: pathlib.Path, theirs: config.Config, model: config.Config, what: str) -> None:
    for field in dataclasses.fields(model):
        ours, stored = getattr(model, field.name), getattr(theirs, field.name)
        if field.compare and field.name != "rope_scale" and ours != stored:
            raise ValueError(
                f"{path} holds adapters of a model with {field.name} {stored}, and {what} has {ours}; name the model "
                "that they were trained on"
            )


def newest(path: pathlib.Path) -> pathlib.Path:
    """Returns the newest checkpoint of a run directory; any other path as it is. Raises: ValueError if it has none."""
    checkpoints = path / manager.CHECKPOINTS
    if not checkpoints.is_dir():
        return path
    steps = manager.steps(checkpoints)
    if not steps:
        raise ValueError(f"{checkpoints} holds no checkpoint yet")
    return checkpoints / str(steps[0])
