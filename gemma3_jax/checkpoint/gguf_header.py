"""The header of a GGUF file: its metadata, and where each tensor is stored.

The reader of the `gguf` package takes 12 s for the pieces of a Gemma tokenizer, and loops as often as a damaged count
says. This one takes a fraction of a second, and checks every count against the size of the file and a limit.
Source: ggml-org/ggml docs/gguf.md.
"""

import dataclasses
import math
import mmap
import pathlib
import struct
from typing import Any

import gguf
import numpy as np

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # alike but for the byte order of 3, which is little-endian in all but a few files
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Far more than any file of Gemma 3 has. They bound the time and memory that a damaged count can take in a large file.
MAX_DIMS = 4
MAX_ENTRIES = 1 << 16  # keys, and tensors
MAX_LENGTH = 1 << 22  # of an array; the tokenizer has 2**18 pieces
MAX_ARRAY_BYTES = 1 << 28
MAX_STRING_BYTES = 1 << 24
MAX_NAME_BYTES = (1 << 16) - 1


@dataclasses.dataclass(frozen=True)
class MetadataArray:
    """Where an array of the metadata is; `array_values` reads it."""

    type: int  # of its values, by the number in the file
    length: int
    file: pathlib.Path
    start: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """How a tensor is stored: its bytes from `start` on, as rows of `shape[-1]` numbers in the blocks of its type."""

    type: str  # ggml's name: F32, Q4_0
    shape: tuple[int, ...]
    file: pathlib.Path
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
            return _Parser(path, content).header()
    except ValueError as error:  # an empty file, too
        raise ValueError(f"{path} is damaged or cut short: {error}") from error


def array_values(array: MetadataArray) -> list[bytes] | np.ndarray:
    """Returns the values of an array: strings as bytes, numbers in the dtype of the file. Raises: OSError."""
    with array.file.open("rb") as file:
        file.seek(array.start)
        content = file.read(array.num_bytes)
    if array.type != _STRING:
        return np.frombuffer(content, np.dtype(_SCALARS[array.type]).newbyteorder("<"))
    strings, offset = [], 0
    for _ in range(array.length):
        start = offset + 8
        offset = start + int.from_bytes(content[offset:start], "little")
        strings.append(content[start:offset])
    return strings


class _Parser:
    """Reads a header from its start, and never beyond the end of the file."""

    def __init__(self, path: pathlib.Path, content: mmap.mmap):
        self._path, self._content, self._offset = path, content, 0

    def header(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        if self._take(len(MAGIC)) != MAGIC:
            raise ValueError("it is not GGUF")
        if (version := self._number("I")) not in VERSIONS:
            if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
                raise ValueError("it is big-endian; convert it with the gguf package: gguf-convert-endian FILE little")
            raise ValueError(f"it is of version {version}; this program reads {' and '.join(map(str, VERSIONS))}")
        num_tensors, num_keys = self._number("Q"), self._number("Q")
        for count, kind in ((num_tensors, "tensors"), (num_keys, "keys")):
            if count > MAX_ENTRIES:
                raise ValueError(f"it has {count} {kind}; there may be {MAX_ENTRIES}")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._name()
            if key in metadata:
                raise ValueError(f"key {key} occurs twice")
            metadata[key] = self._value(self._number("I"))
        stored: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        for _ in range(num_tensors):
            name = self._name()
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
            infos[name] = TensorInfo(kind, shape, self._path, start + offset, num_bytes)
            expected += -(-num_bytes // alignment) * alignment
        return infos

    def _tensor(self, name: str) -> tuple[str, tuple[int, ...], int, int]:
        """Returns type, shape, bytes, and offset from the first tensor."""
        if (num_dims := self._number("I")) > MAX_DIMS:
            raise ValueError(f"tensor {name} has {num_dims} dims; there may be {MAX_DIMS}")
        shape = tuple(reversed([self._number("Q") for _ in range(num_dims)]))
        number = self._number("I")
        try:
            kind = gguf.GGMLQuantizationType(number)
        except ValueError as error:
            raise ValueError(f"tensor {name} is of type {number}, which this program does not know") from error
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % block:
            raise ValueError(f"tensor {name} of type {kind.name} has shape {shape}; its rows must be of whole blocks")
        return kind.name, shape, math.prod(shape) // block * block_bytes, self._number("Q")

    def _skip(self, num_bytes: int) -> int:
        """Moves beyond bytes without reading them. Returns where they start."""
        start, end = self._offset, self._offset + num_bytes
        if end > len(self._content):
            raise ValueError("it ends in the middle of its header")
        self._offset = end
        return start

    def _take(self, num_bytes: int) -> bytes:
        start = self._skip(num_bytes)
        return self._content[start : self._offset]

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack(f"<{code}", self._take(struct.calcsize(code)))
        return value

    def _string(self, most: int = MAX_STRING_BYTES) -> str:
        num_bytes, start = self._number("Q"), self._offset
        if num_bytes > most and start + num_bytes <= len(self._content):
            raise ValueError(f"the string at byte {start} has {num_bytes} bytes; it may have {most}")
        try:
            return self._take(num_bytes).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"the string at byte {start} is not UTF-8: {error}") from error

    def _name(self) -> str:
        """Returns the name of a key or a tensor, which messages may show as it is."""
        start, name = self._offset, self._string(MAX_NAME_BYTES)
        if not name.isprintable():
            raise ValueError(f"the name at byte {start} is {name!r:.60}; it must be printable")
        return name

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind != _ARRAY:
            raise ValueError(f"a value has the unknown type {kind}")
        return self._array()

    def _array(self) -> MetadataArray:
        kind, length, start = self._number("I"), self._number("Q"), self._offset
        if kind == _STRING:
            for index in range(length):
                if index == MAX_LENGTH:
                    raise ValueError(f"an array has {length} strings; there may be {MAX_LENGTH}")
                self._skip(self._number("Q"))
        elif kind in _SCALARS:
            self._skip(length * struct.calcsize(_SCALARS[kind]))
        else:
            raise ValueError(f"an array is of type {kind}, which this program does not read")
        if (num_bytes := self._offset - start) > MAX_ARRAY_BYTES:
            raise ValueError(f"the array at byte {start} has {num_bytes} bytes; it may have {MAX_ARRAY_BYTES}")
        return MetadataArray(kind, length, self._path, start, num_bytes)
