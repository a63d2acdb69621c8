"""What a stage with adapters reads besides its data: the base that they are added to, and the factors they begin as."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from gemma3_jax import settings
from gemma3_jax.checkpoint import adapter, names
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.model import adapters
from gemma3_jax.stages import inputs, trained


@dataclasses.dataclass(frozen=True)
class BaseSource:
    """The model that a stage's adapters train on, and that no step changes."""

    path: str
    digest: str
    load: Callable[[Mesh], dict]


def open_base(config: settings.StageConfig, files: Mapping[str, bytes], warn: Callable[..., None]) -> BaseSource | None:
    """Opens what the adapters of a stage are added to; None if it has none. `files`: as in open_init_from.

    Raises: ValueError if the config names no model, or it is of another shape or tokenizer.
    """
    if not config.lora.rank:
        return None
    if not config.init_from:
        raise ValueError(
            f"lora.rank is {config.lora.rank}, and config.init_from is empty; adapters train on a model that exists: "
            "name it with --config.init_from=PATH"
        )
    checkpoint = inputs.open_init_from(config, files)
    if checkpoint.base:
        raise ValueError(
            f"config.init_from {config.init_from} holds adapters, and config.lora trains others; name their base "
            f"({checkpoint.base.path}) with it and them with --config.lora.init_from, or merge them first (convert)"
        )
    opened, digest = open_init_adapter(config), checkpoint.fingerprint()
    if opened and opened.base_digest not in ("", digest):
        raise ValueError(
            f"lora.init_from {config.lora.init_from} holds adapters of another base than config.init_from "
            f"{config.init_from}: its digest was {opened.base_digest}, and is {digest}; name {opened.base}"
        )

    def load(mesh: Mesh) -> dict:
        mib = checkpoint.num_bytes() / 2**20
        warn(f"reading base {checkpoint.path} ({checkpoint.kind}, {mib:.1f} MiB)", *checkpoint.notes)
        params = checkpoint.load(mesh, "float32")
        inputs.check_finite(params, f"config.init_from {config.init_from}")
        return trained.freeze(config, mesh, params)

    return BaseSource(str(checkpoint.path.absolute()), digest, load)


def open_init_adapter(config: settings.StageConfig) -> adapter.Adapter | None:
    """Opens the adapters that config.lora.init_from names, to begin with; None if it names none.

    Raises: ValueError if they are of another shape, rank or scale, or of other matrices than config.lora says.
    """
    ours = config.lora
    if not ours.init_from:
        return None
    opened = checkpoint_open.open_adapter(pathlib.Path(ours.init_from), config.model)
    theirs = opened.lora
    # A directory of PEFT does not say in which format its base was.
    for field in ("rank", "alpha", "rslora", *(["base_format"] if opened.base_digest else [])):
        if getattr(theirs, field) != getattr(ours, field):
            raise ValueError(
                f"lora.{field} is {getattr(ours, field)!r}, and lora.init_from {ours.init_from} has "
                f"{getattr(theirs, field)!r}; make them one"
            )
    targets = adapters.targets(config.model, ours)
    wanted = {slot for slot in names.slots(config.model) if "/".join(slot.path) in targets}
    for some, problem in ((wanted - opened.factors.keys(), "has none for"), (opened.factors.keys() - wanted, "has")):
        if some:
            slot = min(some, key=lambda slot: (slot.layer, slot.spec.path))
            raise ValueError(
                f"lora.targets name {len(wanted)} matrices, and lora.init_from {ours.init_from} {problem} "
                f"{slot.spec.path} of layer {slot.layer}; let them name the matrices that it has factors of"
            )
    return opened


def initial_factors(config: settings.StageConfig, mesh: Mesh) -> dict:
    """Returns the factors that adapters begin with, sharded over the mesh."""
    opened = open_init_adapter(config)
    if opened is None:
        return trained.fresh(config, mesh)
    tree = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), adapters.shapes(config.model, config.lora))
    for slot, read in opened.factors.items():
        pair = names.get(tree, slot.path)
        pair["down"][slot.index], pair["up"][slot.index] = read()
    factors = jax.device_put(tree, adapters.shardings(config.model, config.lora, mesh))
    inputs.check_finite(factors, f"lora.init_from {config.lora.init_from}")
    return factors
