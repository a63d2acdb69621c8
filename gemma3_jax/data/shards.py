"""Tokenized documents and packed rows as bytes, and the ArrayRecord files that hold them.

A record is a msgpack map. Token ids are little-endian int32; ArrayRecord compresses.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence

import fsspec
import fsspec.implementations.local
import msgpack
import numpy as np
from array_record.python import array_record_module

from gemma3_jax.data import record_ids
from gemma3_jax.durable import atomic


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
                "place": dataclasses.astuple(self.record_id),  # the keys are the file format
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
        fields = msgpack.unpackb(content)
        tokens = np.frombuffer(fields["tokens"], "<i4")
        return TokenizedDocument(
            record_id=record_ids.RecordId(*fields["place"]),
            bucket=fields["bucket"],
            language=fields["language"],
            tokens=tokens,
            loss_mask=_unpack_bits(fields["learned"], len(tokens)),
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
        fields = msgpack.unpackb(content)
        tokens = np.frombuffer(fields["tokens"], "<i4")
        return PackedRow(
            tokens=tokens,
            lengths=np.frombuffer(fields["lengths"], "<i4"),
            loss_mask=_unpack_bits(fields["learned"], len(tokens)),
            spans=[(record_ids.RecordId(*record_id), start) for *record_id, start in fields["pieces"]],
        )


def _pack_ids(ids: np.ndarray) -> bytes:
    return np.ascontiguousarray(ids, "<i4").tobytes()


def _pack_bits(bits: np.ndarray | None) -> bytes | None:
    return None if bits is None else np.packbits(bits).tobytes()


def _unpack_bits(content: bytes | None, count: int) -> np.ndarray | None:
    return None if content is None else np.unpackbits(np.frombuffer(content, np.uint8), count=count).astype(bool)


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

    def __getitem__(self, index: int) -> bytes:
        try:
            [content] = self._reader.read([index])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self._path} is damaged at record {index}: {error}") from error
        return content

    def close(self) -> None:
        self._reader.close()
