"""Our own checkpoints: an Orbax directory of parameters, with the model's shape in its metadata."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator

import jax
from jax.typing import DTypeLike
from orbax.checkpoint import v1 as ocp

from gemma3_jax.checkpoint import names
from gemma3_jax.model import config, parameters

PARAMS = "params"
METADATA_KEY = "gemma3_jax"  # its presence tells our checkpoints from others
FORMAT = 1


def is_orbax(path: pathlib.Path) -> bool:
    """Whether `path` looks like an Orbax checkpoint, ours or not (Orbax's own test takes any directory for one)."""
    return any((path / name).exists() for name in ("_CHECKPOINT_METADATA", "_METADATA"))


def is_ours(path: pathlib.Path) -> bool:
    """Whether `path` looks like a checkpoint that `save` wrote, damaged or not."""
    return is_orbax(path) and (path / PARAMS).is_dir()


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """Turns whatever Orbax raises over a damaged checkpoint into one ValueError that names it and the first cause."""
    try:
        yield
    except Exception as error:  # Orbax wraps what tensorstore and json raise in exceptions of any class
        cause = first_cause(error)
        if isinstance(cause, MemoryError) or str(cause).startswith("RESOURCE_EXHAUSTED"):
            raise cause from None  # too large for this machine, not damaged
        raise ValueError(f"{path} cannot be read: {first_line(cause)}") from error


def save(path: pathlib.Path, model: config.Config, params: dict) -> None:
    """Writes a checkpoint at `path`, which must not exist; appears there whole or not at all.

    Raises: OSError where the disk refuses.
    """
    meta = {METADATA_KEY: {"format": FORMAT, "model": dataclasses.asdict(model)}}
    try:
        ocp.save_checkpointables(path.absolute(), {PARAMS: params}, custom_metadata=meta)
    except (ValueError, OSError) as error:  # tensorstore makes a ValueError of a full disk
        raise OSError(f"{path} cannot be written: {first_line(first_cause(error))}") from error


def read_model(path: pathlib.Path) -> tuple[config.Config, dict]:
    """The model's shape, and the shapes and dtypes of the parameters as stored.

    Raises: ValueError naming the checkpoint and the parameter, if what is stored does not fit the model's shape.
    """
    with reading(path):
        metadata = ocp.checkpointables_metadata(path.absolute())  # of a relative path Orbax returns empty metadata
        meta, tree = (metadata.custom_metadata or {}).get(METADATA_KEY), metadata.metadata[PARAMS]
    if not isinstance(meta, dict) or not isinstance(tree, dict):
        # Of files it cannot parse Orbax returns nothing.
        raise ValueError(f"{path} cannot be read: its metadata is damaged, or not written by this program")
    if meta.get("format") != FORMAT:
        raise ValueError(f"{path} has format {meta.get('format')}; this program reads format {FORMAT}")
    try:
        model = config.Config(**meta["model"])
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error
    shapes = parameters.shapes(model)
    stored = dict(names.flatten(tree))
    for param, expected in list(names.flatten(shapes)):
        name = "/".join(param)
        if param not in stored:
            raise ValueError(f"{path} lacks parameter {name}")
        found = stored.pop(param)
        if not hasattr(found, "shape"):
            raise ValueError(f"{path}: parameter {name} is no array")
        if tuple(found.shape) != expected.shape:
            raise ValueError(
                f"{path}: parameter {name} has shape {tuple(found.shape)}; its model asks for {expected.shape}"
            )
        names.get(shapes, param[:-1])[param[-1]] = jax.ShapeDtypeStruct(expected.shape, found.dtype)
    if stored:
        raise ValueError(f"{path} has an unknown parameter {'/'.join(min(stored))}")
    return model, shapes


def read_tokenizer(path: pathlib.Path) -> str:
    """The digest of the tokenizer that the parameters were trained with; empty if it is not said."""
    return _read_about(path).get("tokenizer", "")


def read_quant(path: pathlib.Path) -> dict[str, str]:
    """The `format` and `embedding` that the parameters were trained to be stored in; empty if in none."""
    return _read_about(path).get("quant", {})


def _read_about(path: pathlib.Path) -> dict:
    with reading(path):
        return ocp.checkpointables_metadata(path.absolute()).custom_metadata[METADATA_KEY]


def load(path: pathlib.Path, mesh: jax.sharding.Mesh, dtype: DTypeLike | None = None) -> dict:
    """The parameters, each read straight to where it rests on the mesh; `dtype` None keeps what is stored.

    Raises: ValueError naming the checkpoint if its files are damaged.
    """
    model, stored = read_model(path)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=place),
        stored,
        parameters.shardings(model, mesh),
    )
    with reading(path):
        return ocp.load_checkpointables(path.absolute(), {PARAMS: abstract})[PARAMS]


def first_cause(error: BaseException) -> BaseException:
    """The exception that started it all; what wraps it prints pages."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return error


def first_line(error: BaseException) -> str:
    line = str(error).partition("\n")[0]
    return line if isinstance(error, ValueError | OSError) else f"{type(error).__name__} {line}"
