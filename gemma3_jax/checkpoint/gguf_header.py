"""The header of a GGUF file: its metadata, and where each tensor is stored.

The reader of the `gguf` package takes 12 s for the pieces of a Gemma tokenizer, and loops as often as a damaged count
says. This one takes a fraction of a second, and checks every count against the size of the file.
Source: ggml-org/ggml docs/gguf.md.
"""

import dataclasses
import math
import mmap
import pathlib
import struct
from typing import Any

import gguf

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # alike but for the byte order of 3, which is little-endian in all but a few files
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
MAX_DIMS = 4


@dataclasses.dataclass(frozen=True)
class ArrayLength:
    """What is read of an array in the metadata."""

    length: int


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """How a tensor is stored: its bytes from `start` on, as rows of `shape[-1]` numbers in the blocks of its type."""

    type: str  # ggml's name: F32, Q4_0
    shape: tuple[int, ...]
    start: int
    num_bytes: int


def is_gguf(path: pathlib.Path) -> bool:
    """Whether a file starts as GGUF does. Raises: OSError if it may not be read."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Returns the metadata by key, and the tensors by name.

    Raises: ValueError naming the file if it is cut short or inconsistent. OSError.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Parser(content).header()
    except ValueError as error:  # an empty file, or text that is not UTF-8, too
        raise ValueError(f"{path} is damaged or cut short: {error}") from error


class _Parser:
    """Reads a header from its start, and never beyond the end of the file."""

    def __init__(self, content: mmap.mmap):
        self._content, self._offset = content, 0

    def header(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        if self._take(len(MAGIC)) != MAGIC:
            raise ValueError("it is not GGUF")
        if (version := self._number("I")) not in VERSIONS:
            raise ValueError(f"it is of version {version}; this program reads {' and '.join(map(str, VERSIONS))}")
        num_tensors, num_keys = self._number("Q"), self._number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string()
            if key in metadata:
                raise ValueError(f"key {key} occurs twice")
            metadata[key] = self._value(self._number("I"))
        stored: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        for _ in range(num_tensors):
            name = self._string()
            if name in stored:
                raise ValueError(f"tensor {name} occurs twice")
            stored[name] = self._tensor(name)
        alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {alignment!r:.40}; it must be a power of two")
        return metadata, self._infos(stored, alignment)

    def _infos(self, stored: dict[str, tuple[str, tuple[int, ...], int, int]], alignment: int) -> dict[str, TensorInfo]:
        infos, expected = {}, 0
        start = -(-self._offset // alignment) * alignment
        for name, (kind, shape, num_bytes, offset) in stored.items():
            if offset != expected:  # as llama.cpp requires
                raise ValueError(f"tensor {name} has offset {offset}; it must be {expected}")
            if start + offset + num_bytes > len(self._content):
                raise ValueError(f"it ends in the middle of tensor {name}")
            infos[name] = TensorInfo(kind, shape, start + offset, num_bytes)
            expected += -(-num_bytes // alignment) * alignment
        return infos

    def _tensor(self, name: str) -> tuple[str, tuple[int, ...], int, int]:
        """Returns type, shape, bytes, and offset from the first tensor."""
        if (num_dims := self._number("I")) > MAX_DIMS:
            raise ValueError(f"tensor {name} has {num_dims} dims; there may be {MAX_DIMS}")
        shape = tuple(reversed([self._number("Q") for _ in range(num_dims)]))
        kind = gguf.GGMLQuantizationType(self._number("I"))
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % block:
            raise ValueError(f"tensor {name} of type {kind.name} has shape {shape}; its rows must be of whole blocks")
        return kind.name, shape, math.prod(shape) // block * block_bytes, self._number("Q")

    def _take(self, num_bytes: int) -> bytes:
        end = self._offset + num_bytes
        if end > len(self._content):
            raise ValueError("it ends in the middle of its header")
        taken = self._content[self._offset : end]
        self._offset = end
        return taken

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack(f"<{code}", self._take(struct.calcsize(code)))
        return value

    def _string(self) -> str:
        return self._take(self._number("Q")).decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind != _ARRAY:
            raise ValueError(f"a value has the unknown type {kind}")
        kind, length = self._number("I"), self._number("Q")
        if kind == _STRING:
            for _ in range(length):
                self._take(self._number("Q"))
        elif kind in _SCALARS:
            self._take(length * struct.calcsize(_SCALARS[kind]))
        else:
            raise ValueError(f"an array is of type {kind}, which this program does not read")
        return ArrayLength(length)
