"""How parameters are stored for other programs: as rows of outputs, in a few bits or in floats.

The matrices have one format, the embedding table another, and norms are float32. quant.formats defines the formats: a
file holds, bit for bit, the weights that training with the same formats saw.
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
CONTRACTED = (1,)  # the dims of rows of outputs that a product sums over, of every parameter


@dataclasses.dataclass(frozen=True)
class StoragePlan:
    """The format of the matrices of attention and MLP, and that of the embedding table.

    Each is one of FLOATS or of formats.MATRICES.
    """

    matrices: str
    table: str

    def format_of(self, spec: names.ParamSpec) -> str:
        if is_norm(spec):
            return "float32"
        return self.table if "V" in spec.layout else self.matrices

    def check(self, model: config.Config, name_of: Callable[[names.Slot], str]) -> None:
        """Raises: ValueError naming the first parameter that does not consist of whole blocks, by `name_of`."""
        sizes = names.dim_sizes(model)
        for slot in names.slots(model):
            if not is_norm(slot.spec):
                shape = names.shape_of(slot.spec.hf_layout, sizes)
                formats.check_shape(name_of(slot), shape, self.format_of(slot.spec), CONTRACTED)


def is_norm(spec: names.ParamSpec) -> bool:
    return " " not in spec.layout


def rows(slot: names.Slot, model: config.Config, x: np.ndarray) -> np.ndarray:
    """Returns a parameter of one layer as rows of outputs (a norm as a vector), the table without padding."""
    return np.ascontiguousarray(names.relayout(x, slot.spec.layout, slot.spec.hf_layout, names.dim_sizes(model)))


def rounded(name: str, x: np.ndarray, format: str) -> np.ndarray:
    """Returns `x` encoded and decoded again, as float32. Raises: ValueError as `encoded`."""
    if format in FLOATS:
        return as_float(name, x, format).astype(np.float32)
    return np.asarray(formats.decode(format, encoded(name, x, format))).reshape(x.shape)


def as_float(name: str, x: np.ndarray, format: str) -> np.ndarray:
    """Returns `x` in a format of FLOATS. Raises: ValueError as `encoded`."""
    formats.check(name, x.astype(np.float32), format, (x.ndim - 1,))
    return x.astype(FLOATS[format])


def encoded(name: str, x: np.ndarray, format: str) -> formats.Encoded:
    """Returns `x` in a format of formats.MATRICES. Raises: ValueError naming a parameter that it cannot hold."""
    x = x.astype(np.float32)
    formats.check(name, x, format, CONTRACTED)
    return formats.Encoded(*map(np.asarray, _encode(format, x)))


@functools.partial(jax.jit, static_argnums=0)
def _encode(format: str, x: jax.Array) -> formats.Encoded:
    return formats.encode(format, x, CONTRACTED)


def unpacked(format: str, content: np.ndarray, shape: tuple[int, ...], scale: np.ndarray | None = None) -> np.ndarray:
    """Returns the values in the bytes of a stored parameter: floats as they are, other formats as float32."""
    if format in FLOATS:
        return content.view(np.dtype(FLOATS[format]).newbyteorder("<")).reshape(shape)
    codes = packing.unpack(format, content.reshape(shape[0], -1), shape[1], scale)
    return formats.decode(format, codes).reshape(shape)


def dtype_of(format: str) -> np.dtype:
    """Returns the dtype of what `unpacked` returns."""
    return np.dtype(FLOATS.get(format, np.float32))
