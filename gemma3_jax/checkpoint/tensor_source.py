"""A checkpoint as tensors that are read one at a time: what every reader returns and every writer takes."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from gemma3_jax import console
from gemma3_jax.checkpoint import encoding, names
from gemma3_jax.model import config, parameters

# The dtypes that a parameter may be stored in.
DTYPES = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))

# Writes a parameter of one layer, as rows of outputs; returns how many bytes that took.
Write = Callable[[names.Slot, np.ndarray], int]


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A parameter of one layer, as a checkpoint stores it. `read` returns it in our layout; nobody may change that."""

    dtype: np.dtype
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class TensorSource:
    """A checkpoint whose names, shapes and dtypes have been checked, and of which no tensor has been read.

    Tensors are in the order that reads every stored array once.
    """

    model: config.Config
    tensors: Mapping[names.Slot, StoredTensor]
    notes: tuple[str, ...] = ()  # for the user, such as that the vision tower is left out
    quant: Mapping[str, str] = dataclasses.field(default_factory=dict)  # `format` and `embedding` it is rounded to
    architecture: str = ""  # of a Hugging Face directory, by its config.json
    padding: Callable[[], np.ndarray] | None = None  # returns the rows of a Hugging Face table behind the vocabulary

    def shapes(self) -> dict:
        """Returns the shape of every stacked parameter, with the widest dtype that one of its layers is stored in."""
        shapes = parameters.shapes(self.model)
        stored: dict[tuple[str, ...], list[np.dtype]] = {}
        for slot, tensor in self.tensors.items():
            stored.setdefault(slot.path, []).append(tensor.dtype)
        for path, dtypes in stored.items():
            parent = names.get(shapes, path[:-1])
            parent[path[-1]] = jax.ShapeDtypeStruct(parent[path[-1]].shape, jnp.result_type(*dtypes))
        return shapes


def from_params(model: config.Config, params: dict) -> TensorSource:
    """Returns parameters that are in memory as a source."""
    tensors = {}
    for slot in names.slots(model):
        stack = names.get(params, slot.path)
        tensors[slot] = StoredTensor(np.dtype(stack.dtype), functools.partial(_layer, stack, slot.index))
    return TensorSource(model, tensors)


def _layer(stack: np.ndarray | jax.Array, index: tuple[int, ...]) -> np.ndarray:
    return np.asarray(stack[index])


def copy(source: TensorSource, writes: Iterable[Write], progress: Callable[[int], None] = console.ignore) -> None:
    """Reads the tensors one at a time, and writes each before the next is read.

    Host memory in use is a few copies of the largest array that the source stores: a tensor of one layer in a Hugging
    Face or a GGUF checkpoint, a parameter of all layers in an Orbax checkpoint.
    """
    for slot, tensor in source.tensors.items():
        _copy_one(slot, tensor, source.model, writes, progress)


def _copy_one(slot: names.Slot, tensor: StoredTensor, model: config.Config, writes: Iterable[Write], progress) -> None:
    """Copies one tensor, all of which is freed before the next one is read."""
    rows = encoding.rows(slot, model, tensor.read())
    for write in writes:
        progress(write(slot, rows))


def check_names(path: str, expected: set[str], stored: set[str]) -> None:
    """Raises: ValueError naming the first missing or extra tensor, and how many more there are."""
    for problem, some in (("lacks", expected - stored), ("has an unknown", stored - expected)):
        if some:
            more = f" (and {len(some) - 1} more)" if len(some) > 1 else ""
            raise ValueError(
                f"{path} {problem} tensor {min(some)}{more}; the files of a checkpoint must describe one model"
            )
