"""The bytes of tokenised documents and of packed rows, and the ArrayRecord files they stand in.

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

from gemma3_jax.data import records

WRITING = ".writing-"  # begins the name of what is not whole yet; no bucket and no language begins so


@dataclasses.dataclass(frozen=True)
class Document:
    """A tokenised document: BOS ... EOS, or a chat."""

    place: records.Place
    bucket: str
    language: str
    tokens: np.ndarray  # int32[T]
    learned: np.ndarray | None  # bool[T], of a chat: what the model is to write; None: all of it
    num_characters: int
    num_bytes: int  # of the text, as UTF-8

    def to_bytes(self) -> bytes:
        return msgpack.packb(
            {
                "place": dataclasses.astuple(self.place),
                "bucket": self.bucket,
                "language": self.language,
                "tokens": _pack_ids(self.tokens),
                "learned": _pack_bits(self.learned),
                "characters": self.num_characters,
                "bytes": self.num_bytes,
            }
        )

    @staticmethod
    def from_bytes(content: bytes) -> "Document":
        fields = msgpack.unpackb(content)
        tokens = np.frombuffer(fields["tokens"], "<i4")
        return Document(
            place=records.Place(*fields["place"]),
            bucket=fields["bucket"],
            language=fields["language"],
            tokens=tokens,
            learned=_unpack_bits(fields["learned"], len(tokens)),
            num_characters=fields["characters"],
            num_bytes=fields["bytes"],
        )


@dataclasses.dataclass(frozen=True)
class Row:
    """Pieces of documents, one after the other; at most `seq_len` tokens."""

    tokens: np.ndarray  # int32[T]
    lengths: np.ndarray  # int32: tokens of each piece
    learned: np.ndarray | None  # bool[T]; None: all of it
    pieces: Sequence[tuple[records.Place, int]]  # the document of each piece, and its first token in it

    def to_bytes(self) -> bytes:
        return msgpack.packb(
            {
                "tokens": _pack_ids(self.tokens),
                "lengths": _pack_ids(self.lengths),
                "learned": _pack_bits(self.learned),
                "pieces": [[*dataclasses.astuple(place), start] for place, start in self.pieces],
            }
        )

    @staticmethod
    def from_bytes(content: bytes) -> "Row":
        fields = msgpack.unpackb(content)
        tokens = np.frombuffer(fields["tokens"], "<i4")
        return Row(
            tokens=tokens,
            lengths=np.frombuffer(fields["lengths"], "<i4"),
            learned=_unpack_bits(fields["learned"], len(tokens)),
            pieces=[(records.Place(*place), start) for *place, start in fields["pieces"]],
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
    with tempfile.TemporaryDirectory(prefix=WRITING, dir=os.path.dirname(path) if local else None) as directory:
        partial = pathlib.Path(directory) / "shard"
        # One record a chunk, so that a row can be read without its neighbours; one thread, as every core has a writer.
        options = "group_size:1" if compress else "group_size:1,uncompressed"
        writer = array_record_module.ArrayRecordWriter(str(partial), options)
        count = 0
        for content in contents:
            with _told(url):
                writer.write(content)
            count += 1
        with _told(url):
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
def _told(url: str) -> Iterator[None]:
    """What the writer cannot do, as the error of the operating system that it is."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).split(";")[0]
        raise OSError(f"{url} cannot be written: {reason}; once that is mended the same command goes on") from error


class Reader:
    """Random access to the records of a local ArrayRecord file."""

    def __init__(self, path: pathlib.Path, num_records: int | None = None):
        """Raises: ValueError if the file is missing, cut off, or has another number of records than it should."""
        if not path.is_file():
            raise ValueError(f"{path} is missing, though the manifest lists it; copy or prepare the data again")
        path.open("rb").close()  # what the system has against it is told by the system
        self._path = path
        self._reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
        found = self._reader.num_records() if self._reader.ok() else 0
        if not self._reader.ok() or num_records not in (None, found):
            expected = "its" if num_records is None else num_records
            raise ValueError(
                f"{path} is damaged: {found} of {expected} records can be found; copy or prepare the data again"
            )

    def __getitem__(self, index: int) -> bytes:
        try:
            [content] = self._reader.read([index])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self._path} is damaged at record {index}: {error}") from error
        return content

    def close(self) -> None:
        self._reader.close()
