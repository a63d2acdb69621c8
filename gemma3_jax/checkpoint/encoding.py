"""How parameters are stored for other programs: as rows of outputs, in few bits or in floats.

Matrices have one format, the table another; norms are float32. What a format holds is quant.formats' to say: the
weights that a file comes back with are, bit for bit, those that training with the same format saw.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import ml_dtypes
import numpy as np

from gemma3_jax.checkpoint import names
from gemma3_jax.model import config
from gemma3_jax.quant import formats, packing

FLOATS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
CONTRACTED = (1,)  # of rows of outputs, whatever the parameter


@dataclasses.dataclass(frozen=True)
class Plan:
    """The format of the matrices of attention and MLP, one of FLOATS or formats.MATRICES, and that of the table."""

    matrices: str
    table: str

    def format_of(self, row: names.Row) -> str:
        if is_norm(row):
            return "float32"
        return self.table if "V" in row.layout else self.matrices

    def check(self, model: config.Config, name_of: Callable[[names.Slot], str]) -> None:
        """Raises: ValueError naming the first parameter that is not whole blocks, as `name_of` names it."""
        sizes = names.dim_sizes(model)
        for slot in names.slots(model):
            if not is_norm(slot.row):
                shape = names.shape_of(slot.row.hf_layout, sizes)
                formats.check_shape(name_of(slot), shape, self.format_of(slot.row), CONTRACTED)


def is_norm(row: names.Row) -> bool:
    return " " not in row.layout


def rows(slot: names.Slot, model: config.Config, params: dict) -> np.ndarray:
    """A parameter of one layer as rows of outputs, or as the vector it is; the table without padding."""
    x = np.asarray(names.get(params, slot.path)[slot.index])
    return np.ascontiguousarray(names.relayout(x, slot.row.layout, slot.row.hf_layout, names.dim_sizes(model)))


def rounded(name: str, x: np.ndarray, format: str) -> np.ndarray:
    """The values that `x` comes back with, float32. Raises: ValueError as `encoded`."""
    if format in FLOATS:
        return as_float(name, x, format).astype(np.float32)
    return np.asarray(formats.decode(format, encoded(name, x, format))).reshape(x.shape)


def as_float(name: str, x: np.ndarray, format: str) -> np.ndarray:
    """`x` in a format of FLOATS. Raises: ValueError as `encoded`."""
    formats.check(name, x.astype(np.float32), format, (x.ndim - 1,))
    return x.astype(FLOATS[format])


def encoded(name: str, x: np.ndarray, format: str) -> formats.Encoded:
    """`x` in a format of formats.MATRICES. Raises: ValueError naming a parameter that the format cannot hold."""
    x = x.astype(np.float32)
    formats.check(name, x, format, CONTRACTED)
    return formats.Encoded(*map(np.asarray, _encode(format, x)))


@functools.partial(jax.jit, static_argnums=0)
def _encode(format: str, x: jax.Array) -> formats.Encoded:
    return formats.encode(format, x, CONTRACTED)


def unpacked(format: str, content: np.ndarray, shape: tuple[int, ...], scale: np.ndarray | None = None) -> np.ndarray:
    """The values in the bytes of a stored parameter: floats as they are, all else float32."""
    if format in FLOATS:
        return content.view(np.dtype(FLOATS[format]).newbyteorder("<")).reshape(shape)
    codes = packing.unpack(format, content.reshape(shape[0], -1), shape[1], scale)
    return formats.decode(format, codes).reshape(shape)


def dtype_of(format: str) -> np.dtype:
    """Of what `unpacked` gives."""
    return np.dtype(FLOATS.get(format, np.float32))
