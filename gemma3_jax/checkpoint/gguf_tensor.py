"""The values of a tensor in a GGUF file, stored in any type of ggml that holds weights.

This program's own formats are decoded by the code that encodes them; the package gguf decodes the others.
"""

import gguf
import numpy as np

from gemma3_jax.checkpoint import encoding, gguf_header

FORMATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "Q4_0": "q4_0", "Q8_0": "q8_0"}
OTHERS = tuple(
    "Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 "
    "MXFP4 NVFP4".split()
)
_ROWS = 4096  # decoded at a time: the package needs memory for several copies


def check(name: str, info: gguf_header.TensorInfo) -> None:
    """Raises: ValueError if a tensor has a type that holds no weights."""
    if info.type not in FORMATS and info.type not in OTHERS:
        allowed = ", ".join((*FORMATS, *OTHERS))
        raise ValueError(f"{info.file}: tensor {name} is {info.type}; it must be one of {allowed}")


def dtype_of(info: gguf_header.TensorInfo) -> np.dtype:
    """Returns the dtype of what `read` returns."""
    return encoding.dtype_of(FORMATS.get(info.type, "float32"))


def read(info: gguf_header.TensorInfo, start: int = 0, end: int | None = None) -> np.ndarray:
    """Returns the rows `start` to `end` of a tensor: floats as they are, others as float32. A vector is one row."""
    *_, num_rows, num_columns = (1, *info.shape)
    stored = np.memmap(info.file, np.uint8, "r", info.start, (info.num_bytes,)).reshape(num_rows, -1)[start:end]
    shape = (len(stored), num_columns) if len(info.shape) > 1 else info.shape
    if info.type in FORMATS:
        return encoding.unpacked(FORMATS[info.type], stored, (len(stored), num_columns)).reshape(shape)
    values = np.empty((len(stored), num_columns), np.float32)
    for row in range(0, len(stored), _ROWS):
        values[row : row + _ROWS] = gguf.dequantize(stored[row : row + _ROWS], gguf.GGMLQuantizationType[info.type])
    return values.reshape(shape)
