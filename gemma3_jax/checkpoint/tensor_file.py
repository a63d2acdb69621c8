"""Files of a header and tensors at known offsets, which may be written in any order."""

import dataclasses
import json
import os
import pathlib
import struct
from collections.abc import Mapping

import numpy as np

# Bytes of the dtypes, as safetensors calls them. It writes tensors of later ones first.
SAFETENSORS_BYTES = {"U8": 1, "F16": 2, "BF16": 2, "F32": 4}
_RANKS = {dtype: rank for rank, dtype in enumerate(SAFETENSORS_BYTES)}


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """A file that has its header and its final length. Its tensors may be written in any order."""

    path: pathlib.Path
    offsets: dict[str, int]  # of the first byte of each tensor

    def write(self, name: str, x: np.ndarray) -> int:
        """Writes a tensor, and returns its bytes. Raises: OSError naming the file."""
        try:
            with self.path.open("r+b") as file:
                file.seek(self.offsets[name])
                file.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8))
        except OSError as error:  # Python names no file when the disk is full
            raise OSError(f"{self.path} cannot be written: {error.strerror or error}") from error
        return x.nbytes


def write_small(path: pathlib.Path, content: bytes) -> None:
    """Writes a file that has no tensors. Raises: OSError naming it."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error


def after_header(path: pathlib.Path, num_bytes: Mapping[str, int], *, alignment: int = 1) -> TensorFile:
    """Returns a file for tensors of so many bytes, in this order behind the header that `path` holds.

    Every tensor starts, and the file ends, at a multiple of `alignment`.
    """
    end, offsets = path.stat().st_size, {}
    for name, size in num_bytes.items():
        offsets[name] = _aligned(end, alignment)
        end = offsets[name] + size
    os.truncate(path, _aligned(end, alignment))
    return TensorFile(path, offsets)


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def create_safetensors(
    path: pathlib.Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    metadata: Mapping[str, str],
    *,
    separators: tuple[str, str] = (",", ":"),
) -> TensorFile:
    """Creates a safetensors file for tensors of these dtypes and shapes, in this order.

    In `library_order`, and with the default separators, it has the very bytes that safetensors writes.
    Raises: OSError naming the file.
    """
    num_bytes = {name: int(np.prod(shape)) * SAFETENSORS_BYTES[dtype] for name, (dtype, shape) in tensors.items()}
    header, end = {"__metadata__": dict(metadata)}, 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + num_bytes[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=separators).encode()
    text += b" " * (_aligned(len(text), 8) - len(text))
    try:
        path.write_bytes(struct.pack("<Q", len(text)) + text)
        return after_header(path, num_bytes)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error


def library_order(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Returns tensors in the order in which safetensors writes them: the widest dtype first, then by name.

    Source: huggingface/safetensors, safetensors/src/tensor.rs, prepare and Dtype.
    """
    return dict(sorted(tensors.items(), key=lambda item: (-_RANKS[item[1][0]], item[0])))
