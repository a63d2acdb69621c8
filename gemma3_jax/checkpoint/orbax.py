"""This program's checkpoints: an Orbax directory of parameters, with the model's shape in its metadata."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.typing import DTypeLike
from orbax.checkpoint import v1 as ocp

from gemma3_jax import renamed
from gemma3_jax.checkpoint import adapter, names, tensor_source
from gemma3_jax.model import adapters, config, lora, parameters

PARAMS = "params"
METADATA_KEY = "gemma3_jax"  # marks this program's checkpoints
FORMAT = 1
_BASE_KEYS = ("base", "base_digest")  # of the metadata of adapters, beside the fields of lora.Lora


def is_orbax(path: pathlib.Path) -> bool:
    """Whether `path` looks like an Orbax checkpoint of any program. Orbax itself takes any directory for one."""
    return any((path / name).exists() for name in ("_CHECKPOINT_METADATA", "_METADATA"))


def is_ours(path: pathlib.Path) -> bool:
    """Whether `path` looks like a checkpoint of this program, damaged or not."""
    return is_orbax(path) and (path / PARAMS).is_dir()


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """Raises one ValueError, with the path and the first cause, for whatever Orbax raises over a damaged checkpoint."""
    try:
        yield
    except Exception as error:  # Orbax wraps what tensorstore and json raise in exceptions of any class
        cause = first_cause(error)
        if isinstance(cause, MemoryError) or str(cause).startswith("RESOURCE_EXHAUSTED"):
            raise cause from None  # too large for this machine, not damaged
        raise ValueError(f"{path} cannot be read: {first_line(cause)}") from error


def save(path: pathlib.Path, model: config.Config, params: dict) -> None:
    """Writes a checkpoint at `path`, which must not exist. It appears there complete or not at all.

    Orbax takes a tree as a whole: this is the one kind of checkpoint that is not written tensor by tensor.
    Raises: OSError if the disk refuses.
    """
    metadata = {METADATA_KEY: {"format": FORMAT, "model": dataclasses.asdict(model)}}
    try:
        ocp.save_checkpointables(path.absolute(), {PARAMS: params}, custom_metadata=metadata)
    except (ValueError, OSError) as error:  # tensorstore raises ValueError for a full disk
        raise OSError(f"{path} cannot be written: {first_line(first_cause(error))}") from error


def read_model(path: pathlib.Path) -> tuple[config.Config, dict]:
    """Returns the model, and the shapes and dtypes of the parameters as stored.

    Raises: ValueError naming the checkpoint and the parameter that does not fit the model.
    """
    with reading(path):
        metadata = ocp.checkpointables_metadata(path.absolute())  # for a relative path Orbax returns empty metadata
        ours, tree = (metadata.custom_metadata or {}).get(METADATA_KEY), metadata.metadata[PARAMS]
    if not isinstance(ours, dict) or not isinstance(tree, dict):
        # Orbax returns nothing for files that it cannot parse.
        raise ValueError(f"{path} cannot be read: its metadata is damaged, or not written by this program")
    if ours.get("format") != FORMAT:
        raise ValueError(f"{path} has format {ours.get('format')}; this program reads format {FORMAT}")
    try:
        model = config.Config(**renamed.current(ours["model"]))
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error
    if "lora" in ours:
        expected = adapters.shapes(model, _lora(path, ours["lora"]))
    else:
        expected = parameters.shapes(model)
    return model, _with_stored_dtypes(path, expected, dict(names.flatten(tree)))


def _with_stored_dtypes(path: pathlib.Path, shapes: dict, stored: dict) -> dict:
    """Returns shapes with the stored dtypes. Raises: ValueError naming a parameter that does not fit."""
    for param, expected in list(names.flatten(shapes)):
        name = "/".join(param)
        if param not in stored:
            raise ValueError(f"{path} lacks parameter {name}")
        leaf = stored.pop(param)
        if not hasattr(leaf, "shape"):
            raise ValueError(f"{path}: parameter {name} is no array")
        if tuple(leaf.shape) != expected.shape:
            raise ValueError(
                f"{path}: parameter {name} has shape {tuple(leaf.shape)}; its model asks for {expected.shape}"
            )
        names.get(shapes, param[:-1])[param[-1]] = jax.ShapeDtypeStruct(expected.shape, leaf.dtype)
    if stored:
        raise ValueError(f"{path} has an unknown parameter {'/'.join(min(stored))}")
    return shapes


def _lora(path: pathlib.Path, stored: object) -> lora.Lora:
    try:
        return lora.Lora(**{key: _tuple(value) for key, value in stored.items() if key not in _BASE_KEYS})
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: its adapters cannot be read: {error}") from error


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def is_adapter(path: pathlib.Path) -> bool:
    """Whether a checkpoint of this program holds the factors of adapters alone."""
    return "lora" in _read_metadata(path)


def open_adapter(path: pathlib.Path) -> tuple[config.Config, adapter.Adapter]:
    """Returns the model that the adapters in a checkpoint are of, and their factors, which are read all at once.

    Raises: ValueError as `read_model`. Reading raises ValueError if the files are damaged.
    """
    model, shapes = read_model(path)
    stored = _read_metadata(path)["lora"]
    settings = _lora(path, stored)

    @functools.cache
    def load_all() -> dict:
        with reading(path):
            host = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
            return ocp.load_checkpointables(path.absolute(), {PARAMS: host})[PARAMS]

    def read(slot: names.Slot) -> tuple[np.ndarray, np.ndarray]:
        pair = names.get(load_all(), slot.path)
        return pair["down"][slot.index], pair["up"][slot.index]

    matrices = adapters.targets(model, settings)
    factors = {slot: functools.partial(read, slot) for slot in names.slots(model) if "/".join(slot.path) in matrices}
    base, digest = (str(stored.get(key, "")) for key in _BASE_KEYS)
    return model, adapter.Adapter(settings, factors, base, digest)


def read_tokenizer(path: pathlib.Path) -> str:
    """Returns the digest of the tokenizer that the parameters were trained with; empty if it is unknown."""
    return _read_metadata(path).get("tokenizer", "")


def read_quant(path: pathlib.Path) -> dict[str, str]:
    """Returns the `format` and `embedding` that the parameters were trained to be stored in; empty if none."""
    return _read_metadata(path).get("quant", {})


def _read_metadata(path: pathlib.Path) -> dict:
    with reading(path):
        return ocp.checkpointables_metadata(path.absolute()).custom_metadata[METADATA_KEY]


def load(path: pathlib.Path, mesh: jax.sharding.Mesh, dtype: DTypeLike | None = None) -> dict:
    """Returns the parameters, each read straight onto the mesh, in `dtype` or as stored (None).

    Raises: ValueError naming the checkpoint if its files are damaged.
    """
    model, stored = read_model(path)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding),
        stored,
        parameters.shardings(model, mesh),
    )
    with reading(path):
        return ocp.load_checkpointables(path.absolute(), {PARAMS: abstract})[PARAMS]


def open_source(path: pathlib.Path) -> tensor_source.TensorSource:
    """Returns the checkpoint as tensors that are read one at a time.

    The layers of a parameter are stored as one array, which Orbax compresses in one piece where one device wrote it.
    So it is read as a whole, once for all its layers.
    Raises: ValueError as `read_model`. Reading a tensor raises ValueError if the files are damaged.
    """
    model, shapes = read_model(path)
    reader = ArrayReader(shapes, lambda abstract: ocp.load_checkpointables(path.absolute(), {PARAMS: abstract})[PARAMS])

    def read(slot: names.Slot) -> np.ndarray:
        with reading(path):
            return reader.read(slot.path)[slot.index]

    tensors = {}
    for slot in sorted(names.slots(model), key=lambda slot: (slot.path, slot.index)):
        dtype = np.dtype(names.get(shapes, slot.path).dtype)
        tensors[slot] = tensor_source.StoredTensor(dtype, functools.partial(read, slot))
    return tensor_source.TensorSource(model, tensors, quant=read_quant(path))


class ArrayReader:
    """Reads one array of a tree to the host at a time, and holds the last one."""

    def __init__(self, tree: dict, load: Callable[[dict], dict]):
        """`tree` has what is stored; `load` takes the like of it, with a placeholder for what is not to be read."""
        self._tree, self._load = tree, load
        self._path: tuple[str, ...] | None = None
        self._array: np.ndarray | None = None

    def read(self, path: tuple[str, ...]) -> np.ndarray:
        if path != self._path:
            self._path = self._array = None  # freed before the next one is read
            self._array = names.get(self._load(self._abstract(self._tree, path)), path)
            self._path = path
        return self._array

    def _abstract(self, node: object, target_path: tuple[str, ...], path: tuple[str, ...] = ()) -> object:
        if isinstance(node, dict):
            return {key: self._abstract(child, target_path, (*path, key)) for key, child in node.items()}
        return np.empty(node.shape, node.dtype) if path == target_path else ocp.PLACEHOLDER


def first_cause(error: BaseException) -> BaseException:
    """Returns the exception that started a chain; those that wrap it print pages."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return error


def first_line(error: BaseException) -> str:
    line = str(error).partition("\n")[0]
    return line if isinstance(error, ValueError | OSError) else f"{type(error).__name__} {line}"
