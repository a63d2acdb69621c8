"""Tokenized documents and packed rows as bytes, and the ArrayRecord files that hold them.

A record is a msgpack map. Token ids are little-endian int32; ArrayRecord compresses.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence

import fsspec
import fsspec.implementations.local
import msgpack
import numpy as np
from array_record.python import array_record_module

from gemma3_jax.data import record_ids
from gemma3_jax.durable import atomic

# The keys are the file format.
DOCUMENT_FIELDS = {
    "place": list,
    "bucket": str,
    "language": str,
    "tokens": bytes,
    "learned": (bytes, type(None)),
    "characters": int,
    "bytes": int,
}
ROW_FIELDS = {"tokens": bytes, "lengths": bytes, "learned": (bytes, type(None)), "pieces": list}


@dataclasses.dataclass(frozen=True)
class TokenizedDocument:
    """A document as tokens: BOS ... EOS, or a chat."""

    record_id: record_ids.RecordId
    bucket: str
    language: str
    tokens: np.ndarray  # int32[T]
    loss_mask: np.ndarray | None  # bool[T], of a chat: the tokens of model turns; None: all tokens
    num_characters: int
    num_bytes: int  # of the text, as UTF-8

    def to_bytes(self) -> bytes:
        return msgpack.packb(
            {
                "place": dataclasses.astuple(self.record_id),
                "bucket": self.bucket,
                "language": self.language,
                "tokens": _pack_ids(self.tokens),
                "learned": _pack_bits(self.loss_mask),
                "characters": self.num_characters,
                "bytes": self.num_bytes,
            }
        )

    @staticmethod
    def from_bytes(content: bytes) -> "TokenizedDocument":
        """Raises: ValueError if the record is none of a document."""
        fields = _unpack(content, DOCUMENT_FIELDS)
        tokens = _unpack_ids(fields, "tokens")
        [record_id] = _integers([fields["place"]], 3, "place")
        return TokenizedDocument(
            record_id=record_ids.RecordId(*record_id),
            bucket=fields["bucket"],
            language=fields["language"],
            tokens=tokens,
            loss_mask=_unpack_bits(fields, "learned", len(tokens)),
            num_characters=fields["characters"],
            num_bytes=fields["bytes"],
        )


@dataclasses.dataclass(frozen=True)
class PackedRow:
    """Spans of documents, one after the other; at most `seq_len` tokens."""

    tokens: np.ndarray  # int32[T]
    lengths: np.ndarray  # int32: tokens of each span
    loss_mask: np.ndarray | None  # bool[T]; None: all tokens
    spans: Sequence[tuple[record_ids.RecordId, int]]  # the document of each span, and its first token in it

    def to_bytes(self) -> bytes:
        return msgpack.packb(
            {
                "tokens": _pack_ids(self.tokens),
                "lengths": _pack_ids(self.lengths),
                "learned": _pack_bits(self.loss_mask),
                "pieces": [[*dataclasses.astuple(record_id), start] for record_id, start in self.spans],
            }
        )

    @staticmethod
    def from_bytes(content: bytes) -> "PackedRow":
        """Raises: ValueError if the record is none of a row."""
        fields = _unpack(content, ROW_FIELDS)
        tokens = _unpack_ids(fields, "tokens")
        return PackedRow(
            tokens=tokens,
            lengths=_unpack_ids(fields, "lengths"),
            loss_mask=_unpack_bits(fields, "learned", len(tokens)),
            spans=[
                (record_ids.RecordId(*record_id), start)
                for *record_id, start in _integers(fields["pieces"], 4, "pieces")
            ],
        )

    def check(self, seq_len: int, num_ids: int) -> None:
        """Raises: ValueError if the row is longer than `seq_len`, or has ids outside a vocabulary of `num_ids`."""
        if len(self.tokens) > seq_len:
            raise ValueError(f"it has {len(self.tokens)} tokens; a row has at most {seq_len}")
        if len(self.lengths) and self.lengths.min() < 1 or self.lengths.sum() != len(self.tokens):
            raise ValueError(f"its spans do not add up to its {len(self.tokens)} tokens")
        # As unsigned numbers, ids below 0 are beyond any vocabulary.
        if len(self.tokens) and self.tokens.view("<u4").max() >= num_ids:
            unknown = self.tokens[self.tokens.view("<u4") >= num_ids][0]
            raise ValueError(f"it has token id {unknown}, and the vocabulary has {num_ids}")


def _pack_ids(ids: np.ndarray) -> bytes:
    return np.ascontiguousarray(ids, "<i4").tobytes()


def _pack_bits(bits: np.ndarray | None) -> bytes | None:
    return None if bits is None else np.packbits(bits).tobytes()


def _unpack(content: bytes, kinds: Mapping[str, type | tuple[type, ...]]) -> dict:
    """Returns the fields of a record. Raises: ValueError if it is no map, or a field is absent or of another kind."""
    try:
        fields = msgpack.unpackb(content)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"it is not msgpack ({str(error) or type(error).__name__})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"it is a msgpack {type(fields).__name__}, not a map")
    for name, kind in kinds.items():
        if name not in fields:
            raise ValueError(f"it has no field {name}")
        if not isinstance(fields[name], kind) or isinstance(fields[name], bool):
            raise ValueError(f"its field {name} is of type {type(fields[name]).__name__}")
    return fields


def _unpack_ids(fields: Mapping, name: str) -> np.ndarray:
    if len(fields[name]) % 4:
        raise ValueError(f"its field {name} has {len(fields[name])} bytes; it must be 4 a number")
    return np.frombuffer(fields[name], "<i4")


def _unpack_bits(fields: Mapping, name: str, count: int) -> np.ndarray | None:
    content = fields[name]
    if content is None:
        return None
    if len(content) != -(-count // 8):
        raise ValueError(f"its field {name} has {len(content)} bytes for {count} tokens; it must be a bit a token")
    return np.unpackbits(np.frombuffer(content, np.uint8), count=count).astype(bool)


def _integers(entries: list, size: int, name: str) -> list[list[int]]:
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != size or not all(type(number) is int for number in entry):
            raise ValueError(f"its field {name} is not made of {size} integers each")
    return entries


def check_path(path: str, where: str) -> None:
    """Refuses the path of a shard that leads out of the directory of its manifest. Raises: ValueError."""
    parsed = pathlib.PurePosixPath(path)
    if not path or parsed.is_absolute() or ".." in parsed.parts or "\\" in path or "\0" in path:
        raise ValueError(f"{where} is {path!r:.60}; it must be a path below the directory of the manifest")


def write(url: str, contents: Iterable[bytes], *, compress: bool = True) -> dict:
    """Writes an ArrayRecord file that appears whole or not at all; returns {"records", "bytes", "sha256"}.

    `url` is a local path or one of any file system fsspec knows; the same contents give the same bytes.
    """
    files, path = fsspec.core.url_to_fs(url)
    local = isinstance(files, fsspec.implementations.local.LocalFileSystem)
    files.makedirs(os.path.dirname(path), exist_ok=True)
    # Beside its target where it can be renamed; what a killed process leaves of it is never read.
    prefix = f".{os.path.basename(path)}{atomic.PARTIAL}"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=os.path.dirname(path) if local else None) as directory:
        partial = pathlib.Path(directory) / "shard"
        # One record per chunk, so that a row is read without its neighbors; one thread, as every core has a writer.
        options = "group_size:1" if compress else "group_size:1,uncompressed"
        writer = array_record_module.ArrayRecordWriter(str(partial), options)
        count = 0
        for content in contents:
            with _as_os_error(url):
                writer.write(content)
            count += 1
        with _as_os_error(url):
            writer.close()
        size = partial.stat().st_size
        with partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if local:
            partial.rename(path)
        else:
            files.put_file(str(partial), path)
    return {"records": count, "bytes": size, "sha256": digest}


@contextlib.contextmanager
def _as_os_error(url: str) -> Iterator[None]:
    """Turns an error of the ArrayRecord writer into the OSError that it is."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).split(";")[0]
        raise OSError(
            f"{url} cannot be written: {reason}; once that is fixed, run the same command to resume"
        ) from error


class Reader:
    """Random access to the records of a local ArrayRecord file."""

    def __init__(self, path: pathlib.Path, num_records: int | None = None):
        """Raises: ValueError if the file is missing, cut off, or has another number of records than it should."""
        if not path.is_file():
            raise ValueError(f"{path} is missing, though the manifest lists it; copy or prepare the data again")
        path.open("rb").close()  # permissions and the like raise the error of the system
        self._path = path
        self._reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
        num_readable = self._reader.num_records() if self._reader.ok() else 0
        if not self._reader.ok() or num_records not in (None, num_readable):
            expected = "its" if num_records is None else num_records
            raise ValueError(
                f"{path} is damaged: {num_readable} of {expected} records can be read; copy or prepare the data again"
            )
        self._num_records = num_readable

    def __len__(self) -> int:
        return self._num_records

    def __getitem__(self, index: int) -> bytes:
        if not self:  # of a file without records, the library returns an empty one at any index
            raise ValueError(f"{self._path} is damaged at record {index}: it has no records")
        try:
            [content] = self._reader.read([index])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self._path} is damaged at record {index}: {error}") from error
        return content

    def close(self) -> None:
        self._reader.close()
