"""What every checkpoint of another program looks like to us: a model shape, and tensors that can be read one by one."""

import dataclasses
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from gemma3_jax.checkpoint import names
from gemma3_jax.model import config

# The dtypes a parameter may be stored in.
FLOATS = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One of our per-layer parameters as the source holds it. `read` returns it in our layout, from disk each time."""

    dtype: np.dtype
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint whose names, shapes and dtypes have all been checked; no tensor has been read yet."""

    model: config.Config
    tensors: Mapping[names.Slot, Tensor]
    notes: tuple[str, ...] = ()  # what a person should know: tensors left out, for example
    quant: Mapping[str, str] = dataclasses.field(default_factory=dict)  # `format` and `embedding` it is rounded to


def check_names(place: str, expected: set[str], found: set[str]) -> None:
    """Raises: ValueError naming the first missing or extra tensor, and how many more there are."""
    for problem, some in (("lacks", expected - found), ("has an unknown", found - expected)):
        if some:
            more = f" (and {len(some) - 1} more)" if len(some) > 1 else ""
            raise ValueError(
                f"{place} {problem} tensor {min(some)}{more}; the files of a checkpoint must describe one model"
            )
